"""Serves a trained strategist behind an OpenAI-compatible API.

    python -m epo_jax.serve --checkpoint=runs/alfshop [--port=8000] [--api_key_variable=STRATEGIST_KEY]
    curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{"messages": [{"role": "user", "content": "Your task is to: put some mug on desk."}], "max_tokens": 32}'

SIGTERM or Ctrl-C stops it: what is being answered is finished, within a few seconds.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import jax
from absl import flags

from epo_jax import command_line, strategist as strategists
from epo_jax.errors import UserError
from epo_jax.serve.replies import Limits
from epo_jax.serve.server import Options, is_loopback, serving

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's folder, a Hugging Face folder, gguf:PACKAGE_OR_FILE, or mini.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint of a run, by the number in its name; if not given, the best where the run keeps it, else the newest whole one.")
HOST = flags.DEFINE_string("host", "127.0.0.1", "The address to listen on; only this machine reaches the default.")
PORT = flags.DEFINE_integer("port", 8000, "The port to listen on; 0 takes a free one and prints it.", lower_bound=0, upper_bound=65535)
KEY_VARIABLE = flags.DEFINE_string("api_key_variable", None, "The environment variable that holds a key, which clients must send as a bearer token.")
SLOTS = flags.DEFINE_integer("slots", 32, "Replies sampled at once; more wait.", lower_bound=1)
MAX_CONTEXT = flags.DEFINE_integer(
    "max_context", None, "Tokens of a conversation with its reply; what the model knows, at most 4096, if not given.", lower_bound=2
)
MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", None, "The most tokens of one reply, which a request that does not say gets; what the context leaves if not given.", lower_bound=1
)
MAX_QUEUE = flags.DEFINE_integer("max_queue", 256, "Replies that may wait for a slot; beyond it clients are told to come later (429).", lower_bound=0)
MAX_BODY_BYTES = flags.DEFINE_integer("max_body_bytes", 1 << 20, "The largest body of a request (413 beyond it).", lower_bound=1)
DEADLINE = flags.DEFINE_float("deadline", 300.0, "Seconds a request may take, waiting included (504 beyond it).", lower_bound=0.001)
DECODE_CHUNK = flags.DEFINE_integer("decode_chunk", 8, "Tokens between two looks at the queue, and in one piece of a stream.", lower_bound=1)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of weights, activations and cache.")
MODEL_NAME = flags.DEFINE_string("model_name", None, "The name clients ask for; the checkpoint's own if not given.")


def main() -> None:
    if not CHECKPOINT.value:
        raise UserError("say what to serve: --checkpoint=runs/alfshop, a Hugging Face folder, or mini.")
    options = Options(
        host=HOST.value, port=PORT.value, api_key=_api_key(), slots=SLOTS.value, max_context=MAX_CONTEXT.value, max_body_bytes=MAX_BODY_BYTES.value,
        decode_chunk=DECODE_CHUNK.value, dtype=DTYPE.value, model_name=MODEL_NAME.value,
        limits=Limits(max_tokens=MAX_TOKENS.value, max_queue=MAX_QUEUE.value, deadline=DEADLINE.value),
    )  # fmt: skip
    if options.api_key is None and not is_loopback(options.host):
        print(f"epo_jax: anyone who reaches {options.host} can use this server: set a key with --api_key_variable=NAME.", file=sys.stderr)
    try:
        strategist = strategists.from_checkpoint(CHECKPOINT.value, STEP.value, options.dtype)
        asyncio.run(serve(strategist, options))
    except KeyboardInterrupt:  # before it listened
        pass


async def serve(strategist: strategists.Strategist, options: Options) -> None:
    """Serves until SIGTERM or Ctrl-C."""
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked_to_stop.set)
    async with serving(strategist, options) as server:
        await server.warm_up()
        device = jax.devices()[0].device_kind
        print(f"{server.model_name} ({strategist.config.num_params / 1e6:.1f} M parameters, {device}) at {server.url}/v1", flush=True)
        await asked_to_stop.wait()
        print("stopping: what is being answered is finished first.", flush=True)


def _api_key() -> str | None:
    if KEY_VARIABLE.value is None:
        return None
    key = os.environ.get(KEY_VARIABLE.value, "").strip()
    if not key:
        raise UserError(f"the environment variable {KEY_VARIABLE.value} is empty or not set: put the key in it, or leave --api_key_variable out.")
    return key


if __name__ == "__main__":
    command_line.run(main)

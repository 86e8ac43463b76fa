"""An OpenAI-compatible server that this project did not write: `transformers serve`, with torch on the CPU, in a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

START_SECONDS = 300  # it imports torch and compiles nothing


@dataclasses.dataclass(frozen=True)
class ForeignServer:
    """base_url: for an openai client. model: the name to ask for."""

    base_url: str
    model: str


@contextlib.contextmanager
def transformers_serve(folder: pathlib.Path, log: pathlib.Path) -> Iterator[ForeignServer]:
    """Serves the Hugging Face model in `folder` until the end of the block; the server's own words go to `log`.

    It knows messages, temperature, top_p, max_tokens, seed, stop and stream; it refuses n, logprobs, response_format and stream_options.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--device", "cpu", "--dtype", "float32"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        _wait_until_healthy(process, f"http://127.0.0.1:{port}/health", log)
        yield ForeignServer(f"http://127.0.0.1:{port}/v1", str(folder))
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_healthy(process: subprocess.Popen, url: str, log: pathlib.Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(url, timeout=10):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.25)
            break
    raise AssertionError(f"transformers serve did not start:\n{log.read_text(errors='replace')[-2000:]}")

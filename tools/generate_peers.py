"""What bench_generate.py compares the engine with: transformers with and without a cache kept from turn to turn, and llama.cpp's server.

Every side plays a whole script (turn_script.py) greedily and says what it sampled, how long it took, and how many tokens it read.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import pathlib
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any, Protocol

import aiohttp
import gguf
import torch
import transformers

from epo_jax.errors import UserError
from tools.measurement import Stopwatch, Taken, cores
from tools.turn_script import Script


@dataclasses.dataclass(frozen=True)
class Played:
    """One run of a script. samples: [episode][turn] → tokens; taken: until the last episode ended; read: prompt tokens that were computed."""

    samples: list[list[list[int]]]
    taken: Taken
    read: int


class Side(Protocol):
    """One way to sample the turns of a script."""

    name: str

    def play(self, script: Script) -> Played: ...


# --- transformers ---------------------------------------------------------------------------------------------------


def torch_model(path: pathlib.Path) -> transformers.PreTrainedModel:
    """The model of a Hugging Face folder or a .gguf file in float32, with torch on all the cores that this process has."""
    torch.set_num_threads(cores())
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    source, options = (path.parent, {"gguf_file": path.name}) if path.is_file() else (path, {})
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **options).eval()
    model.generation_config.eos_token_id = None  # else `generate` stops there, whatever settings it is given
    return model


class ReadingAgain:
    """`generate` on the whole history in every turn. at_once: episodes in a batch, left padded; 1 is what the original's evaluation does."""

    def __init__(self, model: transformers.PreTrainedModel, at_once: int) -> None:
        self.model, self.at_once = model, at_once
        self.name = f"transformers, reading again, {'one by one' if at_once == 1 else 'one batch'}"

    @torch.inference_mode()
    def play(self, script: Script) -> Played:
        watch = Stopwatch()
        settings = transformers.GenerationConfig(max_new_tokens=script.new_tokens, do_sample=False, pad_token_id=0)
        samples: list[list[list[int]]] = []
        for first in range(0, len(script.episodes), self.at_once):
            episodes = script.episodes[first : first + self.at_once]
            histories: list[list[int]] = [[] for _ in episodes]
            heard: list[list[list[int]]] = [[] for _ in episodes]
            for pieces in zip(*(episode.pieces() for episode in episodes), strict=True):
                histories = [[*history, *piece] for history, piece in zip(histories, pieces, strict=True)]
                tokens, mask = _left_padded(histories)
                answers = self.model.generate(tokens, attention_mask=mask, generation_config=settings)[:, tokens.shape[1] :].tolist()
                for row, answer in enumerate(answers):
                    histories[row] += answer
                    heard[row].append(answer)
            samples += heard
        return Played(samples, watch.taken(), script.prompt_tokens)


class KeepingCache:
    """All episodes in one batch whose cache lives from turn to turn: every turn reads only what is new, left padded, at each row's own positions.

    The loop is written out (no `generate`), makes the logits of the last token alone, and feeds a turn's last sample with the next turn's text.
    """

    name = "transformers, cache kept, one batch"

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        self.model = model

    @torch.inference_mode()
    def play(self, script: Script) -> Played:
        watch = Stopwatch()
        rows = KeptRows(self.model, len(script.episodes))
        samples: list[list[list[int]]] = [[] for _ in script.episodes]
        last: list[list[int]] = [[] for _ in script.episodes]
        read = 0
        for pieces in zip(*(episode.pieces() for episode in script.episodes), strict=True):
            new = [[*before, *piece] for before, piece in zip(last, pieces, strict=True)]
            read += sum(map(len, new))
            turn = rows.sample(*_left_padded(new), script.new_tokens).tolist()
            for row, answer in enumerate(turn):
                samples[row].append(answer)
            last = [answer[-1:] for answer in turn]
        return Played(samples, watch.taken(), read)


class KeptRows:
    """A batch of conversations with its cache."""

    def __init__(self, model: transformers.PreTrainedModel, number: int) -> None:
        self.model = model
        self.cache = transformers.DynamicCache(config=model.config)
        self.mask = torch.zeros((number, 0), dtype=torch.long)
        self.lengths = torch.zeros(number, dtype=torch.long)

    def sample(self, tokens: torch.Tensor, mask: torch.Tensor, steps: int) -> torch.Tensor:
        """Reads tokens[B,S], 0 in mask[B,S] where padding, then samples greedily: [B,steps]. The last sample is not read."""
        heard = []
        while True:
            positions = (self.lengths[:, None] + mask.cumsum(1) - 1).clamp(min=0)
            self.mask = torch.cat([self.mask, mask], dim=1)
            self.lengths = self.lengths + mask.sum(1)
            answer = self.model(
                input_ids=tokens, attention_mask=self.mask, position_ids=positions, past_key_values=self.cache, use_cache=True, logits_to_keep=1
            )
            tokens = answer.logits[:, -1].argmax(-1, keepdim=True)
            mask = torch.ones_like(tokens)
            heard.append(tokens)
            if len(heard) == steps:
                return torch.cat(heard, dim=1)


def _left_padded(sequences: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, mask), both [B, longest]; 0 is the padding's token and its mask."""
    width = max(map(len, sequences))
    tokens = torch.tensor([[0] * (width - len(sequence)) + sequence for sequence in sequences])
    mask = torch.tensor([[0] * (width - len(sequence)) + [1] * len(sequence) for sequence in sequences])
    return tokens, mask


# --- llama.cpp ------------------------------------------------------------------------------------------------------


class LlamaServer:
    """llama.cpp's server with a slot for every episode and its prompt cache on; every turn sends the whole history and the slot's number.

    `ignore_eos` keeps it sampling; unlike the other sides it never samples an end token then, so its samples may part from theirs there.
    """

    def __init__(self, url: str, name: str, process: int) -> None:
        self.url, self.name, self.process = url, name, process

    def play(self, script: Script) -> Played:
        return asyncio.run(self._play(script))

    async def _play(self, script: Script) -> Played:
        read = 0
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=3600)) as session:

            async def complete(slot: int, history: list[int]) -> list[int]:
                nonlocal read
                asked = {
                    "prompt": history, "id_slot": slot, "cache_prompt": True, "n_predict": script.new_tokens, "temperature": 0, "ignore_eos": True,
                    "return_tokens": True,
                }  # fmt: skip
                async with session.post(f"{self.url}/completion", json=asked) as response:
                    answer = await response.json()
                    if response.status != 200:
                        raise UserError(f"llama.cpp's server answered {response.status}: {json.dumps(answer)[:300]}")
                read += answer["timings"]["prompt_n"]
                return answer["tokens"]

            async def converse(slot: int) -> list[list[int]]:
                history: list[int] = []
                heard = []
                for piece in script.episodes[slot].pieces():
                    heard.append(await complete(slot, history := [*history, *piece]))
                    history = [*history, *heard[-1]]
                return heard

            for slot in range(len(script.episodes)):  # so that no run finds what the run before it left
                async with session.post(f"{self.url}/slots/{slot}?action=erase") as response:
                    if response.status != 200:
                        raise UserError(f"llama.cpp's server answered {response.status} to erasing a slot: {(await response.text())[:300]}")
            watch = Stopwatch(self.process)
            samples = await asyncio.gather(*(converse(slot) for slot in range(len(script.episodes))))
            taken = watch.taken()
        if any(len(answer) != script.new_tokens for heard in samples for answer in heard):
            raise UserError(f"llama.cpp's server did not sample {script.new_tokens} tokens a turn: its answers cannot be compared.")
        return Played(samples, taken, read)


@contextlib.contextmanager
def llama_server(binary: str, model: pathlib.Path, script: Script, name: str) -> Iterator[LlamaServer]:
    """A server of this model for the time of the context. Raises `UserError` where it does not start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    slots, context = len(script.episodes), script.longest + 32
    command = [
        binary, "--model", str(model), "--host", "127.0.0.1", "--port", str(port), "--parallel", str(slots), "--ctx-size", str(slots * context),
        "--threads", str(cores()), "--threads-batch", str(cores()), "--slot-save-path", tempfile.gettempdir(), "--no-warmup", "--cache-ram", "0",
    ]  # fmt: skip
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process:
        try:
            asyncio.run(_until_ready(process, f"http://127.0.0.1:{port}/health"))
            yield LlamaServer(f"http://127.0.0.1:{port}", name, process.pid)
        except UserError as error:
            log.seek(0)
            raise UserError(f"{error} Its last words: {log.read()[-600:].decode(errors='replace')}") from error
        finally:
            process.terminate()


async def _until_ready(process: subprocess.Popen, url: str) -> None:
    async with aiohttp.ClientSession() as session:
        for _ in range(600):
            if process.poll() is not None:
                raise UserError(f"llama.cpp's server ended with code {process.returncode}.")
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url) as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.1)
    raise UserError("llama.cpp's server did not get ready within a minute.")


def float32_copy(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """A .gguf file with the same weights in float32, so that all sides compute with the same numbers."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, _text(reader, gguf.Keys.General.ARCHITECTURE))
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in (gguf.Keys.General.ARCHITECTURE, gguf.Keys.General.FILE_TYPE):
            continue
        kind, *inner = field.types
        writer.add_key_value(field.name, field.contents(), kind, inner[-1] if inner else None)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _text(reader: gguf.GGUFReader, key: str) -> Any:
    return reader.fields[key].contents()

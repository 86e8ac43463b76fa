"""Judges again the episodes of a run that only their judge failed on.

    python tools/judge.py --run=runs/alfshop_gpt [--round=N] [--judge=NAME] [--base_url=URL] [--model=NAME] [--budget_money=X] [--budget_tokens=N]

Every round of the run, or round N alone (from 1, as a run counts them). The judge, its model, prices and limits are the run's, unless said
otherwise; what it costs counts towards the run's budget. It is asked anew, even where the run's cache holds an (unusable) answer. A scored episode
loses its mask and gets its process rewards and reasons; advantages stay as learning saw them (none). Each round's file is replaced at once when its
episodes are judged. Do not use it while the run runs: a file that changes meanwhile is left alone.
"""

from __future__ import annotations

import asyncio
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from ml_collections import ConfigDict  # noqa: E402

from configs.defaults import get_defaults  # noqa: E402
from epo_jax import command_line, partners  # noqa: E402
from epo_jax.errors import UserError  # noqa: E402
from epo_jax.reward.judge import Judge, judge_all, masked_by_judge  # noqa: E402
from epo_jax.trajectory import read_jsonl, write_jsonl  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    parser = command_line.argument_parser("judge.py", __doc__)
    parser.add_argument("--run", required=True, metavar="DIR", help="a run's folder, such as runs/alfshop")
    parser.add_argument("--round", type=int, metavar="N", help="only this round, from 1")
    parser.add_argument("--judge", metavar="NAME", help=f"another judge than the run's: {', '.join(partners.JUDGES)}")
    for name, kind in (("base_url", str), ("model", str), ("budget_money", float), ("budget_tokens", int)):
        parser.add_argument(f"--{name}", type=kind, help=f"instead of the run's judge_api.{name}")
    options = parser.parse_args(arguments)
    try:
        run = pathlib.Path(options.run)
        config = config_of(run)
        if options.judge is not None:
            config.judge = options.judge
        for name in ("base_url", "model", "budget_money", "budget_tokens"):
            if getattr(options, name) is not None:
                config.judge_api[name] = getattr(options, name)
        judge_again(run, config, options.round)
    except UserError as error:
        print(f"judge.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def config_of(run: pathlib.Path) -> ConfigDict:
    """The configuration that a run's folder holds, as far as it concerns judges. Raises `UserError` where there is none."""
    try:
        values = json.loads((run / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"there is no run at {run} ({error}): give a run's folder, such as runs/alfshop.") from error
    config = get_defaults()
    wanted = {name: value for name, value in values.items() if name == "judge" or name.partition(".")[0] in ("judge_api", "api")}
    try:
        config.update_from_flattened_dict(wanted)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{run / 'config.json'} is of another version of this project: {error}.") from error
    return config


def judge_again(run: pathlib.Path, config: ConfigDict, round: int | None = None) -> None:
    """Does it, and prints what came of it."""
    files = sorted((run / "trajectories").glob("round_*.jsonl"))
    if round is not None:
        files = [path for path in files if path.name == f"round_{round - 1:03d}.jsonl"]
    if not files:
        raise UserError(f"{run} has no {'episodes' if round is None else f'round {round}'}.")
    partners.check_judge(config)
    clients = partners.ApiClients(config, run, {"judge": "judge_api"} if config.judge in partners.API_JUDGES else {})
    try:
        judge = partners.make_judge(config.judge, clients, salt=time.strftime("again %Y-%m-%dT%H:%M:%S"))
        for path in files:
            print(_judge_file(path, judge, config.judge_api.concurrency))
    finally:
        clients.close()
        if note := clients.note():
            print(note)


def _judge_file(path: pathlib.Path, judge: Judge, concurrency: int) -> str:
    before = path.stat()
    trajectories = read_jsonl(path)
    failed = [trajectory for trajectory in trajectories if masked_by_judge(trajectory)]
    if not failed:
        return f"{path.name}: {len(trajectories)} episodes, none that only its judge failed on"
    reasons = {id(trajectory): trajectory.masked for trajectory in failed}
    for trajectory in failed:
        trajectory.masked = trajectory.judge = None
    try:
        counts = asyncio.run(judge_all(judge, failed, concurrency=concurrency))
    finally:
        for trajectory in failed:
            if trajectory.masked is None and trajectory.judge is None:  # it was not its turn before all ended
                trajectory.masked = reasons[id(trajectory)]
        now = path.stat()
        if (now.st_mtime_ns, now.st_size, now.st_ino) != (before.st_mtime_ns, before.st_size, before.st_ino):
            raise UserError(f"{path} changed while its episodes were judged, so it was left alone: wait until the run has stopped.")
        write_jsonl(path, trajectories)
    again = f", {counts.failed} failed again" if counts.failed else ""
    return f"{path.name}: judged {counts.scored} of {len(failed)} episodes that no judge had scored{again}"


if __name__ == "__main__":
    sys.exit(main())

"""The learning table: methods × seeds on one budget of episodes, each row a run of the main command; docs/learning.md says what came out.

    python tools/compare.py                                  runs what is not finished, then writes docs/learning.md
    python tools/compare.py --methods=grpo,ppo --seeds=0     some rows of it
    python tools/compare.py --write                          writes the table from what is recorded; runs nothing
    python tools/compare.py --episodes=16 --rounds=1 --tasks=8 --output=runs/small --document=runs/small/learning.md     a look at it

A row that is finished is skipped, one that was stopped is continued where it stood (Ctrl-C stops after saving). A row that fails is told and the
others go on. Every method's rounds are given the same number of episodes, in the same mixture of environments; those of the experts, which
StepAgent and cloning read, count like those that are played.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import pathlib
import subprocess
import sys
from collections.abc import Sequence

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import numpy as np  # noqa: E402

from configs.alfshop import get_config  # noqa: E402
from epo_jax import command_line  # noqa: E402
from epo_jax.errors import UserError  # noqa: E402
from epo_jax.evaluation import Estimate, estimate, values_of  # noqa: E402
from epo_jax.run_folder import write_whole  # noqa: E402
from epo_jax.trajectory import Trajectory, read_jsonl  # noqa: E402

Changes = dict[str, object]


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """A row. changes: of the configuration's fields; one_round: the whole budget in one round; agent: the policy itself acts."""

    name: str
    told: str
    changes: Changes = dataclasses.field(default_factory=dict)
    config: str = "configs/alfshop.py"
    one_round: bool = False
    agent: bool = False
    seeded: bool = True


SHORT = {"learn.learning_rate": 4e-4, "learn.accumulation": 4}  # a few small rounds need more and larger steps than ten of 192 episodes
GROUP = {"rollout.group_size": 8}
PUBLISHED = {"credit.estimator": "epo", "credit.discount": 0.99, "learn.clip_low": 0.0, "learn.clip_high": 0.0}
METHODS = (
    Method("none", "no training", {"rounds": 0}, seeded=False),
    Method("bc", "cloning more demonstrations", {"credit.estimator": "bc", "learn.clip_low": 0.0, "learn.clip_high": 0.0}),
    Method("epo", "`epo` as published", PUBLISHED),
    Method("epo_verifier", "`epo` with verifier only (no process reward)", PUBLISHED | {"judge": "verifier"}),
    Method("epo_one_round", "`epo` in one round (no self-play)", PUBLISHED, one_round=True),
    Method("reinforce", "`reinforce`"),
    Method("grpo", "`grpo`", GROUP | {"credit.estimator": "grpo"}),
    Method("gigpo", "`gigpo`", GROUP | {"credit.estimator": "gigpo"}),
    Method("ppo", "`ppo`", {"credit.estimator": "ppo", "critic.trunk": "own"}),
    Method("permuted", "control (`reinforce` with permuted advantages)", {"credit.permute": True}),
    Method("stepagent_implicit", "StepAgent implicit", config="configs/stepagent.py:implicit", agent=True),
    Method("stepagent_inverse", "StepAgent inverse", config="configs/stepagent.py:inverse", agent=True),
    Method("stepagent_clone", "control (StepAgent without reflection)", {"stepagent.beta": 0.0}, config="configs/stepagent.py:implicit", agent=True),
)


@dataclasses.dataclass(frozen=True)
class Budget:
    """What every method gets: rounds of so many episodes, and so many held-out tasks of each environment before and after."""

    rounds: int
    episodes: int
    tasks: int

    def changes(self, method: Method) -> Changes:
        """The fields that make a method's run cost this much. A field that the method sets itself is the method's."""
        rounds, episodes = (1, self.rounds * self.episodes) if method.one_round else (self.rounds, self.episodes)
        common: Changes = {"rounds": rounds, "evaluate.tasks": self.tasks, "evaluate.every": rounds, "tensorboard": False}
        own: Changes = {"stepagent.experts": episodes, "environments.alfworld.share": 2.0} if method.agent else {"rollout.episodes": episodes} | SHORT
        return common | own | method.changes


def main(arguments: list[str] | None = None) -> int:
    names = [method.name for method in METHODS]
    parser = command_line.argument_parser("compare.py", __doc__)
    parser.add_argument("--methods", default=",".join(names), help=f"of {', '.join(names)}")
    parser.add_argument("--seeds", default="0,1,2", help="of each method, joined by commas")
    parser.add_argument("--rounds", type=int, default=5, help="of each run")
    parser.add_argument("--episodes", type=int, default=64, help="a round; a multiple of 8, which the group methods need")
    parser.add_argument("--tasks", type=int, default=64, help="held-out tasks of each environment")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of every row's configuration")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/compare"), help="a folder with a run's folder a row")
    parser.add_argument("--document", type=pathlib.Path, default=REPOSITORY / "docs" / "learning.md", help="the file to write")
    parser.add_argument("--write", action="store_true", help="only write the document")
    options = parser.parse_args(arguments)
    try:
        methods, seeds = _chosen(options.methods, names), _numbers(options.seeds)
        budget = Budget(options.rounds, options.episodes, options.tasks)
        if min(dataclasses.astuple(budget)) < 1 or budget.episodes % 8:
            raise UserError("rounds, episodes and tasks must be positive, and episodes a multiple of 8.")
        failed = []
        if not options.write:
            for method, seed in ((method, seed) for seed in seeds for method in methods):  # a whole table of one seed first
                if (method.seeded or seed == seeds[0]) and not run(method, seed, budget, options.output, options.set):
                    failed.append(f"{method.name}, seed {seed}")
        write(options.document, options.output, budget)
    except UserError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("compare: stopped; the same command continues.", file=sys.stderr)
        return 130
    if failed:
        print(f"compare: these rows failed: {'; '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


# --- running ----------------------------------------------------------------------------------------------------------


def folder_of(method: Method, seed: int, output: pathlib.Path) -> pathlib.Path:
    return output / (f"{method.name}-seed{seed}" if method.seeded else method.name)


def finished(folder: pathlib.Path) -> bool:
    """Whether a run has come to its end: the export is the last thing that it writes."""
    return (folder / "strategist" / "config.json").is_file()


def run(method: Method, seed: int, budget: Budget, output: pathlib.Path, settings: Sequence[str] = ()) -> bool:
    """Runs a row to its end, or continues it; True where it is finished. Raises `KeyboardInterrupt` where the run was stopped."""
    folder = folder_of(method, seed, output)
    if finished(folder):
        print(f"{folder}: finished", flush=True)
        return True
    changes = {"workdir": str(folder), "seed": seed} | budget.changes(method)
    command = [sys.executable, "-m", "epo_jax.train", f"--config={method.config}"]
    command += [f"--config.{name}={value}" for name, value in changes.items()] + [f"--config.{setting}" for setting in settings]
    print(f"{folder}: {' '.join(command[1:])}", flush=True)
    code = subprocess.run(command, cwd=None if (pathlib.Path.cwd() / method.config.partition(":")[0]).is_file() else REPOSITORY).returncode
    if code in (130, -2):
        raise KeyboardInterrupt
    return code == 0 and finished(folder)


# --- the table --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Result:
    """One finished run: its episodes before and after, how many tokens its optimizer steps read in all, and how long it took."""

    before: list[Trajectory]
    after: list[Trajectory]
    budget: Budget
    tokens: float
    seconds: float

    def figure(self, environment: str, name: str, *, after: bool) -> dict[str, float]:
        return values_of(self.after if after else self.before, environment, name)


def read(folder: pathlib.Path) -> Result | None:
    """What a finished row recorded; None where it is not finished. Raises `UserError` for a damaged one."""
    if not finished(folder):
        return None
    played = sorted((folder / "evaluation").glob("round_*.jsonl"))
    if not played:
        raise UserError(f"{folder} has no evaluations: remove the folder and run the row again.")
    config = json.loads((folder / "config.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    starts = [json.loads(line) for line in (folder / "provenance.jsonl").read_text().splitlines()]
    seconds = rows[-1]["time"] - _seconds(starts[0]["time"]) if len(starts) == 1 else math.nan  # of a continued run nobody knows
    episodes = config["stepagent.experts"] if config["learn_from"] == "stepagent" else config["rollout.episodes"]
    budget = Budget(config["rounds"], episodes, config["evaluate.tasks"])
    read_tokens = {row["step"]: row["read_tokens"] for row in rows if row["kind"] == "step"}  # a step that was taken again is written twice
    return Result(list(read_jsonl(played[0])), list(read_jsonl(played[-1])), budget, sum(read_tokens.values()), seconds)


FIGURES = (("alfworld", "success", "ALFWorld success"), ("webshop", "success", "WebShop success"), ("webshop", "reward", "WebShop reward"))


def write(document: pathlib.Path, output: pathlib.Path, budget: Budget) -> None:
    """The table of all rows that are finished with this budget."""
    found: dict[Method, list[Result]] = {}
    for method in METHODS:
        folders = sorted(output.glob(f"{method.name}-seed*")) if method.seeded else [output / method.name]
        results = [result for folder in folders if (result := read(folder)) is not None and _is_of(result.budget, budget, method)]
        if results:
            found[method] = results
    if not found:
        raise UserError(f"no row in {output} is finished with this budget: run the table first, without --write.")
    pending = [method.told for method in METHODS if method not in found]
    seconds = [result.seconds for results in found.values() for result in results if math.isfinite(result.seconds)]
    header = [f"| method | runs | tokens, thousands | {' | '.join(title for _, _, title in FIGURES)} |", "|---|---|---|---|---|---|"]
    lines = [_line(method, results) for method, results in found.items()]
    text = TEXT.format(
        rate=get_config().learn.learning_rate, short=SHORT["learn.learning_rate"],
        rounds=budget.rounds, episodes=budget.episodes, total=budget.rounds * budget.episodes, tasks=budget.tasks,
        table="\n".join(header + lines), runs=len(seconds), minutes=f"{np.median(seconds) / 60:.1f}" if seconds else "–",
        pending=f"\nNot finished: {'; '.join(pending)}.\n" if pending else "", told="\n".join(what_came_out(found)),
    )  # fmt: skip
    document.parent.mkdir(parents=True, exist_ok=True)
    write_whole(document, text)
    print(f"wrote {document}: {len(lines)} methods" + (f", {len(pending)} not finished" if pending else ""))


def what_came_out(found: dict[Method, list[Result]]) -> list[str]:
    """Of every figure a line of the document: for whom it rose or fell, and who ended above or below the published method."""
    published = next((results for method, results in found.items() if method.name == "epo"), None)
    lines = []
    for environment, figure, title in FIGURES:
        trained = {method: results for method, results in found.items() if method.seeded}
        changes = {method.told: difference(results, results, environment, figure, before=True) for method, results in trained.items()}
        parts = [_by_sign(changes, "rose", "fell")]
        others = {method: results for method, results in trained.items() if method.name != "epo" and not method.agent}
        if published is not None and others:
            margins = {method.told: difference(published, results, environment, figure) for method, results in others.items()}
            parts.append(_by_sign(margins, "ended above `epo` as published", "ended below it"))
        lines.append(f"- {title}: {'; '.join(parts)}.")
    return lines


def difference(results: Sequence[Result], others: Sequence[Result], environment: str, figure: str, *, before: bool = False) -> Estimate | None:
    """How much more the others had after their training than the first had after theirs, or `before` it; None where they share no task."""
    first = _over_seeds([result.figure(environment, figure, after=not before) for result in results])
    second = _over_seeds([result.figure(environment, figure, after=True) for result in others])
    both = sorted(first.keys() & second.keys())
    return estimate([second[task] - first[task] for task in both]) if both else None


def _by_sign(differences: dict[str, Estimate | None], above: str, below: str) -> str:
    """In words: whose intervals lie above 0, and whose below."""
    known = {name: found for name, found in differences.items() if found is not None}
    names = {above: [name for name, found in known.items() if found.low > 0], below: [name for name, found in known.items() if found.high < 0]}
    return "; ".join(f"{words}: {', '.join(those) or 'none'}" for words, those in names.items())


def _line(method: Method, results: Sequence[Result]) -> str:
    cells = [_cell(results, environment, figure, trained=method.seeded) for environment, figure, _ in FIGURES]
    return f"| {method.told} | {len(results)} | {np.median([result.tokens for result in results]) / 1000:.0f} | {' | '.join(cells)} |"


TEXT = """# What the methods learn

Written by `python tools/compare.py` from what its runs recorded; the rows and their settings stand in that file.

Every run had {rounds} rounds of {episodes} episodes ({total} in all) in generated households and in the project's own shop, from the mini model, and
played {tasks} held-out tasks of each environment before and after, sampled at temperature 1. A cell is the mean before → after over all tasks and
seeds, and in brackets the difference with its 95 % interval: a bootstrap over tasks, each paired with itself and averaged over seeds first. The
interval knows of the tasks that happened to be played, and of seeds only as far as they differ on them. Tokens are what the optimizer steps
read, median of the runs. So short a training takes larger steps than `configs/alfshop.py` does in 1920 episodes: the learning rate of all
methods that advise is {short:g} here and {rate:g} there.

Most rows are strategists that advise the literal actor. In those of StepAgent the policy itself acts, from a clone of demonstrations that are
not counted in the budget, so these compare with their own beginning alone. Their episodes are the experts', inspected and not played, and they
hold up the expert's actions beside what reflection does (`stepagent.clone_weight`): what that does alone, without reflection, is the control below them.

{table}
{pending}
What came out, of the differences whose intervals do not hold 0 (of so many, one or two in twenty exclude it by chance):

{told}

A run took {minutes} minutes (median of {runs} runs that were not interrupted; the machine was not measured to be idle).

What this table cannot show: anything about large models, whose priors decide what there is to explore; about longer training than this budget; about
the published judge, as these rewards are the environments' own; or differences that are smaller than the intervals.
"""


def _cell(results: Sequence[Result], environment: str, figure: str, *, trained: bool) -> str:
    """ "12.0 → 20.5 (+8.5 [+3.0, +14.0])": percentages for success, thousandths for the reward."""
    before = _over_seeds([result.figure(environment, figure, after=False) for result in results])
    change = difference(results, results, environment, figure, before=True)
    if change is None:
        return "–"
    scale, digits = (100.0, 1) if figure != "reward" else (1.0, 3)
    mean = scale * float(np.mean(list(before.values())))
    if not trained:
        found = estimate(list(before.values()))
        return f"{mean:.{digits}f} [{scale * found.low:.{digits}f}, {scale * found.high:.{digits}f}]"
    signed = ", ".join(f"{scale * value:+.{digits}f}" for value in (change.low, change.high))
    return f"{mean:.{digits}f} → {mean + scale * change.mean:.{digits}f} ({scale * change.mean:+.{digits}f} [{signed}])"


def _over_seeds(values: Sequence[dict[str, float]]) -> dict[str, float]:
    """Task → the mean over the runs that played it."""
    found: dict[str, list[float]] = {}
    for each in values:
        for task, value in each.items():
            found.setdefault(task, []).append(value)
    return {task: float(np.mean(several)) for task, several in found.items()}


def _is_of(found: Budget, wanted: Budget, method: Method) -> bool:
    if method.changes.get("rounds") == 0:
        return found.tasks == wanted.tasks
    same_episodes = found.rounds * found.episodes == wanted.rounds * wanted.episodes
    return found.tasks == wanted.tasks and same_episodes and found.rounds == (1 if method.one_round else wanted.rounds)


def _seconds(time: str) -> float:
    """Seconds since the epoch of a time as provenance.jsonl has it."""
    return datetime.datetime.strptime(time, "%Y-%m-%dT%H:%M:%S%z").timestamp()


def _chosen(told: str, names: Sequence[str]) -> list[Method]:
    unknown = sorted(set(told.split(",")) - set(names))
    if unknown:
        raise UserError(f"there is no method {unknown[0]!r}: choose of {', '.join(names)}.")
    return [method for method in METHODS if method.name in told.split(",")]


def _numbers(told: str) -> list[int]:
    try:
        return [int(number) for number in told.split(",")]
    except ValueError:
        raise UserError(f"--seeds={told} is not a list of whole numbers, such as 0,1,2.") from None


if __name__ == "__main__":
    sys.exit(main())

"""How fast the environments load and play, on one core, and how that compares with the originals.

    python tools/bench_env.py [--quick] [--json]                                            all of them, generated games
    python tools/bench_env.py --env=alfworld --split=generated:eval --games=50 --steps=100
    python tools/bench_env.py --env=webshop --split=synthetic --games=500 --steps=20        (needs WEBSHOP_DATA)

Milliseconds to start a game, and steps a second with random admissible actions: of the whole environment with its progress, and of its
engine alone (ALFWorld's environment plans at each step to know the progress). In the shop a query is three to eight words of the instruction,
in random order, so that hardly any query comes twice. In SOTOPIA a step is the move of the advised seat and its scripted partner's answer; the
words are those of the expert. Times are of the processor, so that other programs' work does not count.

The originals' steps a second (ORIGINALS) were not measured in the same run: where a figure is known, it is what that engine made elsewhere.
"""

from __future__ import annotations

import pathlib
import random
import re
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import envs  # noqa: E402
from epo_jax import command_line  # noqa: E402
from epo_jax.errors import UserError  # noqa: E402
from tools import measurement  # noqa: E402

# Steps a second. TextWorld 1.7 with ALFWorld 0.4.2 (users tell the same: github.com/alfworld/alfworld/issues/23), and WebShop with its Lucene index,
# both measured apart from this tool. A step of the original SOTOPIA is a call of a language model for either party: there is no such figure.
ORIGINALS = {"alfworld": 10.0, "webshop": 28.0}


def main(arguments: list[str] | None = None) -> int:
    parser = command_line.argument_parser("bench_env.py", __doc__)
    parser.add_argument("--env", default="all", help=f"which environment: all, {', '.join(envs.names())}")
    parser.add_argument("--split", default="", help="its split; without one, the one it is evaluated on by default")
    parser.add_argument("--games", type=int, default=50, help="how many are loaded and played")
    parser.add_argument("--steps", type=int, default=100, help="per game at most")
    return measurement.main(parser, arguments, measure, show, quick={"games": 10})


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """{"machine", "environments": a row for each}."""
    if options.env == "all" and options.split:
        raise UserError(f"--split={options.split} is of one environment: name it with --env.")
    names = envs.names() if options.env == "all" else [options.env]
    return {"machine": measurement.machine(), "environments": [_played(name, options.split, options.games, options.steps) for name in names]}


def _played(name: str, split: str, games: int, steps: int) -> dict[str, Any]:
    """Random play of the first `games` of a split; times in seconds of the processor."""
    environment = envs.make(name)
    split = split or environment.default_splits()[1]
    tasks = environment.tasks(split)[:games]
    rng = random.Random(0)
    loading = playing = alone = 0.0
    played = 0
    for task in tasks:
        started = time.process_time()
        first = environment.reset(task)
        loading += time.process_time() - started
        admissible, actions = environment.admissible, []
        started = time.process_time()
        for _ in range(steps):
            actions.append(_filled(rng.choice(admissible), first, rng, environment))
            _, _, done, info = environment.step(actions[-1])
            environment.progress()
            admissible = info["admissible"]
            if done:
                break
        playing += time.process_time() - started
        played += len(actions)
        if (engine := getattr(environment, "engine", None)) is not None:
            engine.reset()
            started = time.process_time()
            for action in actions:
                engine.step(action)
                engine.admissible_commands()
            alone += time.process_time() - started
    speed = played / playing
    return {
        "environment": name,
        "split": split,
        "games": len(tasks),
        "steps": played,
        "milliseconds_to_start": 1e3 * loading / len(tasks),
        "steps_per_second": speed,
        "engine_steps_per_second": played / alone if alone else None,
        "original_steps_per_second": ORIGINALS.get(name),
        "ours_to_original": speed / ORIGINALS[name] if name in ORIGINALS else None,
    }


def _filled(action: str, observation: str, rng: random.Random, environment: envs.Environment) -> str:
    """The action, with words of the first observation where it leaves a query open, and the expert's where anything can be said."""
    if action == envs.ANYTHING:
        return environment.expert_action()
    if "<query>" not in action:
        return action
    words = re.findall(r"[a-z0-9'.-]+", observation.lower())
    return action.replace("<query>", " ".join(rng.sample(words, min(len(words), rng.randint(3, 8)))))


def show(result: dict[str, Any]) -> None:
    told = measurement.told
    measurement.show(
        "environments, one core",
        ("environment, split", "games", "steps", "ms to start", "steps/s", "engine alone", "original", "ours ÷ original"),
        [
            (
                f"{row['environment']} {row['split']}", str(row["games"]), str(row["steps"]), told(row["milliseconds_to_start"]),
                told(row["steps_per_second"], "{:,.0f}"), told(row["engine_steps_per_second"], "{:,.0f}"),
                told(row["original_steps_per_second"], "{:.0f}"), told(row["ours_to_original"], "{:.0f}"),
            )
            for row in result["environments"]
        ],
    )  # fmt: skip
    measurement.show_machine(result["machine"])


if __name__ == "__main__":
    sys.exit(main())

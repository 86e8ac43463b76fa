"""How fast an environment loads and plays, on one core.

    python tools/bench_env.py --env=alfworld --split=generated:eval --games=50 --steps=100
    python tools/bench_env.py --env=webshop --split=synthetic --games=500 --steps=20        (needs WEBSHOP_DATA)

Prints milliseconds to start a game, and steps a second with random admissible actions: of the whole environment with its
progress, and of its engine alone (ALFWorld's environment plans at each step to know the progress). In the shop a query is three
to eight words of the instruction, in random order, so that hardly any query comes twice. Times are of the processor, so that other programs' work does not count.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import re
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import envs  # noqa: E402
from epo_jax.errors import UserError  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench_env.py", description="Measure an environment's speed.")
    parser.add_argument("--env", default="alfworld", help=f"which environment: {', '.join(envs.names())}")
    parser.add_argument("--split", default="generated:eval")
    parser.add_argument("--games", type=int, default=50)
    parser.add_argument("--steps", type=int, default=100, help="per game")
    options = parser.parse_args(arguments)
    try:
        environment = envs.make(options.env)
        tasks = environment.tasks(options.split)[: options.games]
        measure(environment, tasks, options.steps)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def measure(environment: envs.Environment, tasks: list[envs.Task], steps: int) -> None:
    """Random play; prints what it measured."""
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
            actions.append(_filled(rng.choice(admissible), first, rng))
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
    print(f"{len(tasks)} games: {1e3 * loading / len(tasks):.2f} ms to start one")
    print(f"{played} steps: {played / playing:,.0f} steps/s with admissible actions and progress")
    if alone:
        print(f"engine alone: {played / alone:,.0f} steps/s with admissible actions")


def _filled(action: str, observation: str, rng: random.Random) -> str:
    """The action, with words of the first observation where it leaves a query open."""
    if "<query>" not in action:
        return action
    words = re.findall(r"[a-z0-9'.-]+", observation.lower())
    return action.replace("<query>", " ".join(rng.sample(words, min(len(words), rng.randint(3, 8)))))


if __name__ == "__main__":
    sys.exit(main())

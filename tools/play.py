"""Play an environment in the terminal, or drive it from a program, one JSON line a move.

    python tools/play.py --env=alfworld                                   a household made by the project
    python tools/play.py --env=alfworld --split=valid_seen --task=17      a real game (needs ALFWORLD_DATA)
    python tools/play.py --env=alfworld --game=path/to/game.tw-pddl
    python tools/play.py --env=webshop                                    a shop made by the project
    python tools/play.py --env=webshop --task=17 [--goals=human]          the original's goal 17 (where WEBSHOP_DATA is set)
    python tools/play.py --env=sotopia                                    a bargaining game made by the project, against a scripted partner
    python tools/play.py --env=sotopia --split=hard --task=3/1            the second seat of a real combination (where SOTOPIA_DATA is set)
    … --json < actions.txt

With --json it writes one line for the reset, then reads one action a line from standard input and
answers each with one line: {"observation", "admissible", "reward", "done", "success"}, in WebShop also "bought". The
observation is what the game itself says. The end of the input ends the program. Without it, type "?" for the
admissible actions and "quit" (or Ctrl-D) to leave.
In SOTOPIA an action is JSON, {"action_type": "speak", "argument": "I offer price $50."}, or words that advise a negotiator: hold at 50.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import envs  # noqa: E402
from epo_jax import command_line  # noqa: E402
from epo_jax.errors import UserError  # noqa: E402

# Per environment: options that make it speak as the game itself does, and the split to play when none is named.
OPTIONS: dict[str, dict[str, Any]] = {"alfworld": {"banner": True}, "webshop": {"pages": "full"}, "sotopia": {"text": "full"}}
DEFAULT_SPLIT = {"alfworld": "generated:eval", "webshop": "generated:eval", "sotopia": "generated:eval"}
# What --goals may be: the splits that are kinds of goals.
GOALS = {"webshop": ("synthetic", "human")}


def main(arguments: list[str] | None = None) -> int:
    parser = command_line.argument_parser("play.py", __doc__)
    parser.add_argument("--env", required=True, help=f"which environment: {', '.join(envs.names())}")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--game", metavar="FILE", help="a game file")
    chosen.add_argument("--task", metavar="ID", help="a task's id, or its number in the split")
    parser.add_argument("--split", help="where the task is from")
    parser.add_argument("--goals", help="webshop: synthetic or human goals of the original's files; short for --split")
    parser.add_argument("--json", action="store_true", help="read actions from standard input, answer in JSON lines")
    options = parser.parse_args(arguments)
    try:
        environment = envs.make(options.env, **OPTIONS.get(options.env, {}))
        if options.goals is not None:
            if options.goals not in GOALS.get(options.env, ()) or options.split is not None:
                raise UserError("--goals is synthetic or human, for --env=webshop and instead of --split")
            options.split = options.goals
        if options.game is not None:
            if options.split is not None:
                raise UserError("--game names a file, which belongs to no split: leave --split out")
            task = environment.task_of_file(options.game)
        elif options.task is not None:
            split = options.split
            if split is None and "/" not in options.task:
                split = _default_split(options.env)
            task = environment.find_task(options.task, split)
        else:
            task = environment.find_task("0", options.split or DEFAULT_SPLIT.get(options.env))
        observation = environment.reset(task)
        (play_json if options.json else play_terminal)(environment, observation)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has left; keep Python from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _default_split(environment: str) -> str | None:
    """Where a bare number counts: a WebShop goal's is the original's, where its files are there."""
    if environment == "webshop" and os.environ.get("WEBSHOP_DATA"):
        return "synthetic"
    return DEFAULT_SPLIT.get(environment)


def play_json(environment: envs.Environment, observation: str) -> None:
    """The reset and every answer as one JSON line each."""
    success = environment.progress() >= 1
    info: dict[str, Any] = {"admissible": environment.admissible, "success": success}
    if hasattr(environment, "bought"):
        info["bought"] = environment.bought
    _answer(observation, 0.0, success, info)
    for line in _lines():
        _answer(*environment.step(line))


def _answer(observation: str, reward: float, done: bool, info: dict[str, Any]) -> None:
    fields = {"observation": observation, "admissible": info["admissible"], "reward": reward, "done": done, "success": info["success"]}
    if "bought" in info:
        fields["bought"] = info["bought"]
    print(json.dumps(fields), flush=True)


def _lines() -> Any:
    """Lines of standard input without their ends; bytes that are no UTF-8 do not stop the game."""
    for line in sys.stdin.buffer:
        yield line.decode("utf-8", "replace").rstrip("\r\n")


def play_terminal(environment: envs.Environment, observation: str) -> None:
    """A person plays."""
    try:
        import readline  # noqa: F401  (line editing and history, where there is such a thing)
    except ImportError:
        pass
    print(observation)
    print('\n(type "?" for what is possible here, "quit" to leave)')
    while True:
        try:
            action = input("\n> ").strip()
        except EOFError:
            print()
            return
        if action in ("quit", "exit"):
            return
        if action == "?":
            print("\n".join(environment.admissible))
            continue
        if not action:
            continue
        observation, _, done, info = environment.step(action)
        print(observation)
        if done:
            print("\nYou have won!" if info["success"] else "\nThe game is over.")
            return


if __name__ == "__main__":
    sys.exit(main())

"""Evaluates a strategist on held-out tasks, and compares two evaluations task by task.

    python -m epo_jax.evaluate --config=configs/alfshop.py --checkpoint=runs/alfshop          a run's best or newest checkpoint
    python -m epo_jax.evaluate --config=configs/alfshop.py --strategist=vanilla               the same strategist before any training
    python -m epo_jax.evaluate --config=configs/alfshop.py --checkpoint=mini --tasks=64 --split=alfworld=generated:train
    python -m epo_jax.evaluate --compare=runs/evaluation/A,runs/evaluation/B                  A minus B, without playing
    python -m epo_jax.evaluate --config=configs/sotopia.py:compare                            none, react, vanilla and trained in one table

Environments, prompts, sampling and actor are the configuration's, whatever the strategist was trained with. The same command continues an
evaluation that was stopped (Ctrl-C, SIGTERM, a kill) where it stood.
"""

from __future__ import annotations

import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from epo_jax import command_line
from epo_jax.errors import UserError
from epo_jax.evaluate import compare
from epo_jax.evaluate.folder import EvaluationFolder, write_table
from epo_jax.evaluate.run import Evaluation, Options
from epo_jax.evaluate.several import evaluate_several
from epo_jax.interrupt import Stopped, StopRequest

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration: a file, with :PRESET where it has presets.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "", "A run's folder, a Hugging Face folder, gguf:PACKAGE_OR_FILE, or mini.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint of a run, by the number in its name; if not given, the best where the run keeps it, else the newest whole one.")
STRATEGIST = flags.DEFINE_string(
    "strategist",
    "trained",
    "trained: the weights of --checkpoint; vanilla: the configuration's, untrained; none: the actor alone; "
    "react: the actor writes its own strategy first.",
)
ACTOR = flags.DEFINE_string("actor", None, "The actor; the configuration's if not given.")
PARTNER = flags.DEFINE_string(
    "partner",
    "",
    "Who sits at the other seat in SOTOPIA: self (the strategist has both), scripted, untrained, none or react (the actor alone); the "
    "configuration's self_play.evaluate if not given.",
)
SPLIT = flags.DEFINE_string("split", "", "A split's name, or ENVIRONMENT=NAME,...; the configuration's if not given.")
TASKS = flags.DEFINE_integer("tasks", None, "At most so many tasks of each environment, always the same ones; all of the split if not given.")
REPEATS = flags.DEFINE_integer("repeats", 1, "Episodes a task.")
TEMPERATURE = flags.DEFINE_float("temperature", None, "Of the strategist; the configuration's evaluate.temperature if not given.")
OUTPUT = flags.DEFINE_string("output", "", "The folder to write; one below runs/evaluation, named after strategist and actor, if not given.")
COMPARE = flags.DEFINE_string("compare", "", "The folder of an evaluation to compare this one with; A,B compares two without playing.")


def main() -> None:
    """Plays and reports; a request to stop ends it early, with everything kept and the exit code that shells expect."""
    folders = [pathlib.Path(name) for name in COMPARE.value.split(",")] if COMPARE.value else []
    if len(folders) > 2:
        raise UserError(f"--compare={COMPARE.value} names {len(folders)} folders: give one, to compare with what is played, or two.")
    others = [EvaluationFolder.of_results(folder) for folder in folders]
    if len(others) == 2:
        _compare(*others, pathlib.Path(OUTPUT.value) if OUTPUT.value else None)
        return
    config = command_line.config_value(CONFIG)
    if ACTOR.value is not None:
        config.actor = ACTOR.value
    if TEMPERATURE.value is not None:
        config.evaluate.temperature = TEMPERATURE.value
    options = Options(STRATEGIST.value, CHECKPOINT.value, STEP.value, SPLIT.value, TASKS.value, REPEATS.value, OUTPUT.value, PARTNER.value)
    several = config.compare.strategists and not FLAGS["strategist"].present
    if several and others:
        raise UserError("--compare with a configuration that compares several strategists: say which of them, with --strategist.")
    with StopRequest() as stop:
        try:
            if several:
                evaluate_several(config, options, stop)
                return
            evaluation = Evaluation(config, options, stop)
            evaluation.everything()
        except Stopped:
            sys.exit(130)
    for other in others:
        _compare(evaluation.folder, other, evaluation.folder.path)


def _compare(this: EvaluationFolder, other: EvaluationFolder, output: pathlib.Path | None) -> None:
    found = compare.compare(this, other)
    compare.show(this, other, found)
    if output is not None:
        sides = {name: {"path": str(folder.path), "what": folder.what} for name, folder in (("this", this), ("other", other))}
        write_table(output / "comparison", sides, found)


if __name__ == "__main__":
    command_line.run(main)

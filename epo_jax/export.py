"""Any checkpoint of a run as a Hugging Face folder.

    python -m epo_jax.export --checkpoint=runs/alfshop --output=DIR [--step=N]
"""

from __future__ import annotations

import pathlib

from absl import flags

from epo_jax import command_line
from epo_jax.errors import UserError
from epo_jax.model import hf_weights
from epo_jax.run_folder import run_of
from epo_jax.strategist import params_of_run

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's folder, or its folder of checkpoints.")
OUTPUT = flags.DEFINE_string("output", None, "The folder to write; it must not exist, or be empty.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint, by the number in its name; if not given, the best where the run keeps it, else the newest whole one.")


def main() -> None:
    if not CHECKPOINT.value or not OUTPUT.value:
        raise UserError("say what to export and where: --checkpoint=runs/alfshop --output=DIR.")
    export(pathlib.Path(CHECKPOINT.value), pathlib.Path(OUTPUT.value), STEP.value)
    print(f"wrote {OUTPUT.value}: load it with transformers.AutoModelForCausalLM.from_pretrained")


def export(checkpoint: pathlib.Path, output: pathlib.Path, step: int | None = None) -> None:
    """Writes the parameters and tokenizer of a run's checkpoint to `output`.

    Raises `UserError` where there is no checkpoint or tokenizer, or if `output` already holds something.
    """
    run = run_of(checkpoint)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} already holds something: give another --output, or remove it first.")
    model, params, _ = params_of_run(run, step)
    hf_weights.save(output, model, params, run / "tokenizer")


if __name__ == "__main__":
    command_line.run(main)

"""Strategists to use: from a run's checkpoints and from files."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax.checkpoint import Checkpoints
from epo_jax.errors import UserError
from epo_jax.strategist import MINI, from_checkpoint


def test_from_a_run_or_its_folder_of_checkpoints_or_files(tmp_path: pathlib.Path) -> None:
    mini = from_checkpoint("mini")
    assert mini.name == "mini"
    run = tmp_path / "walk"
    mini.tokenizer.save(run / "tokenizer")
    checkpoints = Checkpoints(run / "checkpoints")
    (run / "config.json").write_text("{}")  # the run's configuration, not a model's
    for step, scale in ((3, 1.0), (5, 2.0)):
        checkpoints.save(step, {"params": jax.tree.map(lambda x: x * scale, mini.params), "step": step}, {"model": mini.config.to_hf()})

    newest, older = from_checkpoint(str(run)), from_checkpoint(str(run / "checkpoints"), step=3, dtype=jnp.bfloat16)
    assert newest.name == older.name == "walk" and newest.config == mini.config
    jax.tree.map(lambda ours, theirs: np.testing.assert_array_equal(ours, theirs * 2), newest.params, mini.params)
    jax.tree.map(lambda ours, theirs: np.testing.assert_array_equal(ours, theirs.astype(jnp.bfloat16)), older.params, mini.params)
    assert newest.tokenizer.fingerprint == mini.tokenizer.fingerprint

    files = from_checkpoint(str(MINI), dtype=jnp.bfloat16)
    assert jax.tree.leaves(files.params)[0].dtype == jnp.bfloat16
    with pytest.raises(UserError, match="no checkpoint of step 4"):
        from_checkpoint(str(run), 4)
    with pytest.raises(UserError, match="has no steps"):
        from_checkpoint("mini", 4)
    with pytest.raises(UserError, match="only for training"):
        from_checkpoint("random")
    with pytest.raises(UserError, match="no model weights"):
        from_checkpoint(str(tmp_path))

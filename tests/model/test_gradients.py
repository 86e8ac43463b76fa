"""The gradient of the published loss against torch's, for every kind of model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference gradient needs torch: pip install torch==2.13.0")

from epo_jax.model import llama  # noqa: E402
from tests.model.reference import VARIANTS, random_params, to_hf_arrays, torch_model  # noqa: E402

# Each row: (length, [(first token, end, advantage) of each strategist turn]); the second row has a turn of advantage 0.
ROWS = [(40, [(5, 9, 1.0), (20, 21, 0.99), (33, 40, 0.3)]), (29, [(4, 11, 0.0), (15, 29, 1.0)]), (12, [(3, 7, -0.5)])]


def torch_loss(model, tokens) -> torch.Tensor:
    """L_i = -(1/T_i) sum_t A_t (1/k_t) sum_j log pi(a_tj | prefix), summed over rows, read straight off the formula."""
    total = torch.zeros(())
    for row, (length, turns) in zip(tokens, ROWS, strict=True):
        ids = torch.from_numpy(row[:length])[None]
        logprobs = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        for start, end, advantage in turns:
            chosen = torch.stack([logprobs[j - 1, ids[0, j]] for j in range(start, end)])
            total = total - advantage * chosen.sum() / (end - start) / len(turns)
    return total


def our_loss(params, config, tokens, segments, weights, remat) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = llama.hidden_states(params, config, tokens, positions, segments, remat=remat)
    logprobs = jax.nn.log_softmax(llama.logits(params, config, hidden[:, :-1]))
    return -jnp.sum(jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0] * weights[:, 1:])


@pytest.mark.parametrize("name", VARIANTS)
def test_gradient_of_the_published_loss(name) -> None:
    config = VARIANTS[name]
    params = random_params(config)
    length = max(row[0] for row in ROWS)
    # Token 2 is the end token and, in many models, the padding token too: its gradient must not be lost.
    tokens = np.random.default_rng(0).integers(2, config.vocab_size, (len(ROWS), length))
    tokens[0, 8] = tokens[1, 10] = 2
    segments, weights = np.zeros((len(ROWS), length), np.int32), np.zeros((len(ROWS), length), np.float32)
    for i, (end_of_row, turns) in enumerate(ROWS):
        segments[i, :end_of_row] = 1
        for start, end, advantage in turns:
            weights[i, start:end] = advantage / (end - start) / len(turns)
    model = torch_model(config, params)
    want_loss = torch_loss(model, tokens)
    want_loss.backward()
    got_loss, gradient = jax.jit(jax.value_and_grad(our_loss), static_argnums=(1, 5))(params, config, jnp.asarray(tokens), segments, weights, "full")
    assert abs(float(got_loss) - float(want_loss.detach())) < 1e-4
    theirs = {key: parameter.grad.numpy() for key, parameter in model.named_parameters()}
    compared = 0
    for key, array in to_hf_arrays(config, gradient):
        scale = max(1.0, np.abs(theirs[key]).max())
        assert np.abs(array - theirs[key]).max() < 1e-5 * scale, key
        compared += 1
    assert compared == len(theirs)

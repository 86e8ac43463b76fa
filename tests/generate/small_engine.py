"""A small engine, short buckets, and conversations with it whose samples can be scored again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax.generate import batches
from epo_jax.generate.engine import Engine, Sampled, Sampling, Session
from epo_jax.model import llama
from epo_jax.model.config import LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=96, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
    rope_theta=10000.0, tie_embeddings=False, max_positions=256,
)  # fmt: skip
STOP = 5


def make_params(seed: int = 0) -> llama.Params:
    params = llama.init_params(CONFIG, jax.random.key(seed))
    return {**params, "head": params["head"] * 3}  # peaked enough that a wrong cache would show


@pytest.fixture(scope="module", autouse=True)
def small_buckets() -> Iterator[None]:
    """Buckets small enough that short conversations cross several of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "SMALLEST_LENGTH", 8)
        patch.setattr(batches, "SMALLEST_CAPACITY", 48)
        yield


def make_engine(**options) -> Engine:
    defaults = dict(stop_ids=[STOP], pad_id=0, slots=8, max_length=96, decode_chunk=6, prefill_chunk=16)
    return Engine(CONFIG, options.pop("params", None) or make_params(), **{**defaults, **options})


@pytest.fixture(scope="module")
def engine(small_buckets: None) -> Iterator[Engine]:
    with make_engine() as shared_engine:
        yield shared_engine


@jax.jit
def full_forward(params: llama.Params, tokens: jax.Array) -> jax.Array:
    positions = jnp.arange(tokens.shape[1])[None]
    return jax.nn.log_softmax(llama.logits(params, CONFIG, llama.hidden_states(params, CONFIG, tokens, positions, jnp.ones_like(tokens))))


def rescore(params: llama.Params, tokens: list[int], begin: int, end: int) -> np.ndarray:
    """log π(tokens[t] | tokens[<t]) for begin <= t < end by one forward pass over everything (right padding is never seen)."""
    padded = np.zeros((1, 96), np.int32)
    padded[0, : len(tokens)] = tokens
    logprobs = np.asarray(full_forward(params, padded))[0]
    return logprobs[np.arange(begin, end) - 1, tokens[begin:end]]


async def converse(
    engine: Engine, seed: int, turns: int = 3, sampling: Sampling = Sampling(max_new_tokens=9), longest: int = 20, beginning: Sequence[int] = ()
) -> tuple[Session, list[tuple[int, Sampled]]]:
    """A conversation whose prompts, after the beginning, depend on the seed alone; each turn with the place where its sample begins."""
    rng = np.random.default_rng(seed)
    session = engine.open(seed)
    heard = []
    for turn in range(turns):
        new = [*(beginning if turn == 0 else ()), *rng.integers(6, CONFIG.vocab_size, int(rng.integers(1, longest))).tolist()]
        begin = len(session.tokens) + len(new)
        heard.append((begin, await engine.generate(session, new, sampling)))
    engine.close(session)
    return session, heard


async def converse_all(engine: Engine, seeds: range, **options) -> list[tuple[Session, list[tuple[int, Sampled]]]]:
    return await asyncio.gather(*(converse(engine, seed, **options) for seed in seeds))


def samples(conversation: tuple[Session, list[tuple[int, Sampled]]]) -> list[list[int]]:
    return [sampled.tokens for _, sampled in conversation[1]]

"""What is sampled in other company, in another slot, after other work: the same bits, where the engine is asked for it."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable

import jax
import numpy as np
import pytest

from epo_jax.generate.engine import Engine, Sampling
from epo_jax.model import llama
from epo_jax.model.config import LlamaConfig

# Wide enough that a matrix product is divided over threads in some shapes and not in others, and long enough to cross the cache's buckets.
CONFIG = LlamaConfig(
    vocab_size=512, hidden_size=256, intermediate_size=704, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=64,
    rope_theta=10000.0, tie_embeddings=True, max_positions=1024,
)  # fmt: skip
NEW_TOKENS = 24  # sampled in a turn, at most
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

Heard = list[tuple[list[int], list[float]]]  # a conversation's turns: tokens and log-probabilities


def make_params() -> llama.Params:
    return llama.init_params(CONFIG, jax.random.key(0))


async def converse(engine: Engine, seed: int) -> Heard:
    """A conversation of three turns whose prompts, long and short by turns, depend on the seed alone."""
    rng = np.random.default_rng(seed)
    session, heard = engine.open(seed), []
    for turn in range(3):
        length = int(rng.integers(100, 280) if (turn + seed) % 2 else rng.integers(3, 40))
        sampled = await engine.generate(session, rng.integers(6, CONFIG.vocab_size, length).tolist(), Sampling(max_new_tokens=NEW_TOKENS))
        heard.append((sampled.tokens, sampled.logprobs))
    engine.close(session)
    return heard


async def converse_all(engine: Engine, seeds: Iterable[int]) -> list[Heard]:
    return await asyncio.gather(*(converse(engine, seed) for seed in seeds))


def differing(slots: int, **options) -> dict[str, int]:
    """How many conversations are not the same to the last bit as when all slots began together: had alone, in other slots, or with few others."""
    seeds = list(range(slots))

    def differences(ours: list[Heard], theirs: list[Heard]) -> int:
        return sum(one != other for one, other in zip(ours, theirs, strict=True))

    with Engine(
        CONFIG, make_params(), stop_ids=[5], pad_id=0, slots=slots, max_length=900, decode_chunk=8, prefill_chunk=128, **options
    ) as engine:  # fmt: skip
        together = asyncio.run(converse_all(engine, seeds))
        alone = [asyncio.run(converse(engine, seed)) for seed in seeds[-3:]]
        engine.update_weights(make_params(), "again")  # forgets what is cached, and with it who has which slot
        backwards = asyncio.run(converse_all(engine, seeds[::-1]))[::-1]
        engine.update_weights(make_params(), "again")
        few = asyncio.run(converse_all(engine, seeds[: slots // 3 + 1]))
    assert sum(len(tokens) for heard in together for tokens, _ in heard) > 40 * slots
    return {
        "alone": differences(alone, together[-3:]),
        "in other slots": differences(backwards, together),
        "with few others": differences(few, together[: len(few)]),
    }


def test_nothing_depends_on_the_company_in_a_single_bit():
    assert set(differing(6, exact=True).values()) == {0}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("slots", [1, 3, 8, 13, 32])
def test_so_it_is_for_every_number_of_slots_in_programs_as_users_compile_them(slots, dtype):
    """In a process of its own: the suite's programs are not optimised, and its process has eight devices."""
    program = f"from tests.generate.test_exact import *; print(json.dumps(differing({slots}, exact=True, compute_dtype={dtype!r})))"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(json.loads(done.stdout.splitlines()[-1]).values()) == {0}

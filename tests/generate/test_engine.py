"""The engine against a full forward pass, against transformers, and against itself in other company."""

from __future__ import annotations

import asyncio

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax.errors import UserError
from epo_jax.generate import cache as kv
from epo_jax.generate.engine import ContextFull, Engine, Sampled, Sampling, Session
from epo_jax.generate.programs import Settings, programs_for
from epo_jax.mesh import make_mesh
from epo_jax.model import llama
from tests.generate.small_engine import engine, small_buckets  # noqa: F401
from tests.generate.small_engine import CONFIG, STOP, converse, converse_all, make_engine, make_params, rescore, samples


def test_logprobs_over_many_turns_equal_a_full_forward_pass(engine: Engine) -> None:
    params = make_params()
    for session, heard in asyncio.run(converse_all(engine, range(8))):
        for begin, sampled in heard:
            end = begin + len(sampled.tokens)
            assert session.tokens[begin:end] == sampled.tokens
            np.testing.assert_allclose(sampled.logprobs, rescore(params, session.tokens, begin, end), atol=1e-4)


def test_a_session_does_not_depend_on_its_company(engine: Engine) -> None:
    together = asyncio.run(converse_all(engine, range(8)))
    alone = asyncio.run(converse(engine, 3))
    more_than_slots = asyncio.run(converse_all(engine, range(11)))
    assert samples(alone) == samples(together[3]) == samples(more_than_slots[3])
    with make_engine(decode_chunk=2) as other:
        assert [samples(one) for one in asyncio.run(converse_all(other, range(5)))] == [samples(one) for one in together[:5]]


def test_a_listener_hears_the_answer_in_pieces(engine: Engine) -> None:
    prompt, sampling = list(range(20, 30)), Sampling(max_new_tokens=20)
    with make_engine(stop_ids=[]) as endless:
        (expected,) = endless.generate_batch([prompt], sampling, [4])
        tokens: list[int] = []
        logprobs: list[float] = []
        pieces: list[int] = []

        def listen(new: list[int], new_logprobs: list[float]) -> None:
            tokens.extend(new)
            logprobs.extend(new_logprobs)
            pieces.append(len(new))

        async def scenario() -> Sampled:
            session = endless.open(4)
            try:
                return await endless.generate(session, prompt, sampling, listen)
            finally:
                endless.close(session)

        assert asyncio.run(scenario()) == expected
    assert (tokens, logprobs) == (expected.tokens, expected.logprobs)
    assert pieces == [6, 6, 6, 2]  # decode_chunk is 6


def test_requests_of_one_batch_keep_their_own_settings(engine: Engine) -> None:
    settings = [Sampling(temperature=0.0, max_new_tokens=4), Sampling(max_new_tokens=7), Sampling(temperature=0.5, top_k=3, max_new_tokens=2)]

    async def together() -> list:
        return await asyncio.gather(*(converse(engine, seed, sampling=sampling) for seed, sampling in enumerate(settings)))

    mixed = asyncio.run(together())
    for seed, sampling in enumerate(settings):
        assert samples(mixed[seed]) == samples(asyncio.run(converse(engine, seed, sampling=sampling)))
        assert max(map(len, samples(mixed[seed]))) <= sampling.max_new_tokens


def test_greedy_tokens_equal_transformers() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    params = make_params(1)
    hf_config = transformers.LlamaConfig(
        vocab_size=CONFIG.vocab_size, hidden_size=CONFIG.hidden_size, intermediate_size=CONFIG.intermediate_size, num_hidden_layers=CONFIG.num_layers,
        num_attention_heads=CONFIG.num_heads, num_key_value_heads=CONFIG.num_kv_heads, head_dim=CONFIG.head_dim, rms_norm_eps=CONFIG.rms_norm_eps,
        max_position_embeddings=CONFIG.max_positions, tie_word_embeddings=False, pad_token_id=0, eos_token_id=STOP, bos_token_id=1,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(hf_config).eval()
    state = {"model.embed_tokens.weight": params["embed"], "model.norm.weight": params["final_norm"], "lm_head.weight": params["head"].T}
    names = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm", "wq": "self_attn.q_proj", "wk": "self_attn.k_proj", "wv": "self_attn.v_proj", "wo": "self_attn.o_proj", "w_gate": "mlp.gate_proj", "w_up": "mlp.up_proj", "w_down": "mlp.down_proj"}  # fmt: skip
    for ours, name in names.items():
        for layer, weight in enumerate(params["layers"][ours]):
            flat = weight if weight.ndim == 1 else weight.reshape(-1, CONFIG.hidden_size).T if ours == "wo" else weight.reshape(weight.shape[0], -1).T
            state[f"model.layers.{layer}.{name}.weight"] = flat
    theirs.load_state_dict({name: torch.tensor(np.asarray(array)) for name, array in state.items()})

    with make_engine(params=params) as engine:
        conversations = asyncio.run(converse_all(engine, range(3), sampling=Sampling(temperature=0.0, max_new_tokens=9)))
    for session, heard in conversations:
        for begin, sampled in heard:
            history = torch.tensor([session.tokens[:begin]])
            generated = theirs.generate(history, attention_mask=torch.ones_like(history), do_sample=False, max_new_tokens=9)
            assert sampled.tokens == generated[0, begin:].tolist()


def compiled(engine: Engine) -> int:
    programs = engine._device.programs
    return sum(program._cache_size() for program in (programs.prefill, programs.decode, programs.copy))


def test_each_turn_reads_only_its_new_tokens_and_nothing_compiles_twice(engine: Engine) -> None:
    asyncio.run(converse_all(engine, range(8)))
    before = engine.stats
    conversations = asyncio.run(converse_all(engine, range(8)))
    after = engine.stats
    assert after["compilations"] == before["compilations"] < 16
    assert compiled(engine) == engine._device.programs.traces
    sampled = sum(len(one.tokens) for _, heard in conversations for _, one in heard)
    assert after["decode_tokens"] - before["decode_tokens"] == sampled
    assert after["prompt_tokens"] - before["prompt_tokens"] == sum(begin for _, heard in conversations for begin, _ in heard)
    # every token is read once, by prefill or by decode, but for the very last one of each session and what was there from the first time
    fed = sum(after[name] - before[name] for name in ("prefill_tokens", "shared_tokens")) + sampled
    assert fed == sum(len(session.tokens) - 1 for session, _ in conversations)
    assert 0 < after["decode_steps"] - before["decode_steps"] < sampled


def test_caches_are_donated(engine: Engine) -> None:
    asyncio.run(converse(engine, 0, turns=1))
    keys, _ = engine._device.caches[0]
    asyncio.run(converse(engine, 0, turns=1))
    assert keys.is_deleted()


def test_a_decode_program_makes_no_copy_of_a_cache() -> None:
    """Its temporary memory is less than one layer's keys of one slot would take, in any order of dimensions."""
    programs = programs_for(CONFIG, compute_dtype=jnp.dtype("float32"), mesh=None, slots=1)
    home = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    caches = kv.allocate(layers=2, slots=1, capacity=8192, kv_heads=CONFIG.num_kv_heads, head_dim=CONFIG.head_dim, dtype=jnp.float32, sharding=home)
    settings = Settings(np.zeros((1, 2), np.uint32), np.ones(1, np.float32), np.zeros(1, np.int32), np.ones(1, np.float32))
    one = np.ones(1, np.int32)
    layers, rest = llama.unstack(make_params())
    lowered = programs.decode.lower(layers, rest, caches, None, one, one, one * 4, settings, np.full(8, -1, np.int32), attended=8192, steps=4)
    memory = lowered.compile().memory_analysis()
    assert memory.temp_size_in_bytes < caches[0][0].nbytes
    assert memory.alias_size_in_bytes >= sum(array.nbytes for array in jax.tree.leaves(caches))


def test_new_weights_are_used_without_compiling_and_old_caches_are_not() -> None:
    old, new = make_params(0), make_params(9)
    with make_engine(params=old) as engine:
        prompt, again = list(range(6, 26)), list(range(30, 35))
        sampling = Sampling(max_new_tokens=4)

        async def play(switch: bool) -> tuple[Session, Sampled]:
            session = engine.open(1)
            await engine.generate(session, prompt, sampling)
            if switch:
                engine.update_weights(new, "1")
            return session, await engine.generate(session, again, sampling)

        asyncio.run(play(False))
        asyncio.run(play(False))  # the second time meets the caches that the first left behind
        engine.update_weights(new, "1")
        asyncio.run(play(False))
        engine.update_weights(old, "0")
        compilations = engine.stats["compilations"]
        session, sampled = asyncio.run(play(True))
        assert engine.weights_version == "1"
        # the re-reading of the whole conversation may be a length that had not come up; nothing else is new
        assert engine.stats["compilations"] <= compilations + 1
        begin = len(session.tokens) - len(sampled.tokens)
        np.testing.assert_allclose(sampled.logprobs, rescore(new, session.tokens, begin, len(session.tokens)), atol=1e-4)
        before = engine.stats["compilations"]
        for version in range(3):
            engine.update_weights(make_params(version), str(version))
            asyncio.run(play(False))
        assert engine.stats["compilations"] == before


def test_stop_tokens_and_lengths() -> None:
    prompt = list(range(20, 30))
    greedy = Sampling(temperature=0.0, max_new_tokens=8)
    with make_engine(stop_ids=[]) as engine:
        (free,) = engine.generate_batch([prompt], greedy, [0])
        assert len(free.tokens) == 8 and free.stop_reason == "length"
    stop = free.tokens[4]
    first = free.tokens.index(stop)
    with make_engine(stop_ids=[stop, 95]) as engine:
        (stopped,) = engine.generate_batch([prompt], greedy, [0])
        assert stopped.tokens == free.tokens[: first + 1] and stopped.stop_reason == "stop"
        assert len(stopped.logprobs) == first + 1


def test_full_context(engine: Engine) -> None:
    long = [7] * 90

    async def fill() -> None:
        session = engine.open(0)
        sampled = await engine.generate(session, long, Sampling(temperature=0.0, max_new_tokens=50))
        assert sampled.stop_reason == "stop" or (len(sampled.tokens) == 6 and sampled.stop_reason == "length")
        kept = list(session.tokens)
        with pytest.raises(ContextFull, match="96"):
            await engine.generate(session, [8] * (96 - len(kept)), Sampling())
        assert session.tokens == kept
        other = engine.open(0)
        with pytest.raises(UserError, match="larger max_length"):
            await engine.generate(other, [7] * 96, Sampling())
        sampled = await engine.generate(other, [7] * 95, Sampling())  # fills the cache to its last place
        assert len(sampled.tokens) == 1
        engine.close(session)
        engine.close(other)

    asyncio.run(fill())
    assert engine.busy_slots == 0


@pytest.mark.parametrize("shape", [{"data": 2, "fsdp": 2, "tensor": 2}, {"tensor": 2}, {"fsdp": 2, "sequence": 2, "tensor": 2}])
def test_a_mesh_samples_what_one_device_samples(engine: Engine, shape: dict[str, int]) -> None:
    devices = jax.devices()
    if len(devices) < 8:
        pytest.skip("needs XLA_FLAGS=--xla_force_host_platform_device_count=8")
    mesh = make_mesh(shape, devices[: int(np.prod(list(shape.values())))])
    short = dict(turns=2, longest=8, sampling=Sampling(max_new_tokens=6), beginning=range(10, 30))
    expected = asyncio.run(converse_all(engine, range(3), **short))
    with make_engine(mesh=mesh) as divided:
        ours = asyncio.run(converse_all(divided, range(3), **short))
        sharding = divided._device.caches[0][0].sharding
        assert divided.stats["shared_tokens"] >= 2 * 16  # whole pieces
        assert sharding.num_devices == mesh.size and not sharding.is_fully_replicated
        compilations = divided.stats["compilations"]
        divided.update_weights(make_params(), "1")
        assert [samples(one) for one in asyncio.run(converse_all(divided, range(3), **short))] == [samples(one) for one in ours]
        assert divided.stats["compilations"] == compilations == compiled(divided)
    for (_, theirs), (_, heard) in zip(expected, ours, strict=True):
        for (_, one), (_, other) in zip(theirs, heard, strict=True):
            assert one.tokens == other.tokens
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
    if mesh.size > 2:
        with pytest.raises(UserError, match="multiple of 4"):
            make_engine(mesh=mesh, slots=6)


def test_bfloat16_stays_near_the_float32_model() -> None:
    with make_engine(compute_dtype=jnp.bfloat16, cache_dtype=jnp.bfloat16) as engine:
        conversations = asyncio.run(converse_all(engine, range(3), turns=2, longest=8, sampling=Sampling(max_new_tokens=6)))
        assert engine._device.caches[0][0].dtype == jnp.bfloat16
    gaps = [
        np.abs(np.asarray(sampled.logprobs) - rescore(make_params(), session.tokens, begin, begin + len(sampled.tokens)))
        for session, heard in conversations
        for begin, sampled in heard
    ]
    assert 0 < np.mean(np.concatenate(gaps)) < 0.1


def test_an_engine_that_gave_its_memory_back_samples_as_before() -> None:
    """Released: no weights and no caches, and a clear refusal; with the weights back, the same samples."""
    prompts, sampling = [[7, 8, 9], [11, 12]], Sampling(max_new_tokens=6)
    with make_engine() as engine:
        before = engine.generate_batch(prompts, sampling, seeds=[1, 2])
        engine.release()
        device = engine._device
        assert (device.caches, device._params, device._layers, device._rest) == (None, None, None, None)
        with pytest.raises(RuntimeError, match="update_weights before"):
            engine.generate_batch(prompts, sampling, seeds=[1, 2])
        engine.update_weights(make_params(), "0")
        assert engine.generate_batch(prompts, sampling, seeds=[1, 2]) == before

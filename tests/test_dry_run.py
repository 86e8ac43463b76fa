"""The dry run: what it tells, every problem at once, nothing written; and its estimates against what they estimate."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from configs.alfshop import get_config
from configs.offline import get_config as get_offline
from epo_jax import dry_run, forecast, memory_plan
from epo_jax.batch import TrajectoryBatch
from epo_jax.check_learning import check_learning
from epo_jax.dry_run import DryRun
from epo_jax.learn.optimizer import make_optimizer
from epo_jax.learn.step import Sums, init_state, make_step
from epo_jax.mesh import make_mesh
from epo_jax.model.config import LlamaConfig
from epo_jax.model.weights import declare, init_params
from epo_jax.rollout.actor_openai import OpenAIActor
from epo_jax.strategist import MINI
from epo_jax.trajectory import Trajectory, Turn

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


def _config(tmp_path, get=get_config, **changes):
    config = get()
    config.workdir = str(tmp_path / "run")
    config.mesh.fsdp, config.mesh.data = 1, -1
    config.learn.rows = config.warm_start.rows = 8
    config.update_from_flattened_dict(changes)
    return config


def _told(config, capsys):
    code = DryRun(config, check_learning).everything()
    return code, capsys.readouterr().out


def test_a_run_that_could_start(tmp_path, capsys, monkeypatch):
    for name in ("ALFWORLD_DATA", "WEBSHOP_DATA"):
        monkeypatch.delenv(name, raising=False)
    code, out = _told(_config(tmp_path), capsys)
    assert code == 0 and "no problem was found" in out
    assert "3.3 M parameters, 13.3 MB on disk" in out  # 3.3 M float32
    assert "alfworld generated:train (10000 tasks, 200 held out" in out
    assert "10 rounds of 192 episodes and 4 optimizer steps, 40 steps in all; 2 evaluations of 400 episodes" in out  # 8 rows × 6
    assert out.count("played") == 2 and "calls" not in out
    assert list(tmp_path.iterdir()) == []


def test_every_problem_is_told_and_each_once(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    changes = {
        "model.source": str(tmp_path / "nowhere"),
        "environments.alfworld.max_turns": 0,
        "actor": "openai",
        "judge": "psychic",
        "learn.rows": 3,
        "learn.max_length": 4096,
        "rollout.group_size": 7,
    }
    code, out = _told(_config(tmp_path, **changes), capsys)
    assert code == 2 and "6 problems were found" in out
    for piece in ("no model weights at", "an episode has at least one turn", "needs a key", "no judge 'psychic'", "learn.rows is 3", "length buckets"):
        assert out.count(piece) == 1, piece
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_run_and_a_full_disk(tmp_path, capsys, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"seed": 7}))
    usage = dry_run.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(dry_run.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    code, out = _told(_config(tmp_path), capsys)
    assert code == 2 and "holds a run with" in out and "and 1.0 kB are free: make room" in out
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_weights_that_are_cut_off_are_a_problem(tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in MINI.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    code, out = _told(_config(tmp_path, **{"model.source": str(folder)}), capsys)
    assert code == 2 and "damaged or cut off" in out


def test_more_than_a_device_has_is_a_problem(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory_plan, "available", lambda: 10_000_000)
    code, out = _told(_config(tmp_path), capsys)
    assert code == 2 and "split the weights over more devices" in out


def test_recorded_conversations(tmp_path, capsys):
    data = tmp_path / "data.json"
    talk = [{"from": "human", "value": "Where is the mug?"}, {"from": "gpt", "value": "Thought: look.", "score": "1.0"}]
    data.write_text(json.dumps([{"conversations": talk}] * 17))
    config = _config(tmp_path, get_offline, data=str(data))
    code, out = _told(config, capsys)
    assert code == 0 and "17 conversations" in out and "3 passes of 1 optimizer steps" in out
    config.data = str(tmp_path / "none.json")
    code, out = _told(config, capsys)
    assert code == 2 and "cannot read conversations" in out


def test_the_command(tmp_path):
    """One process: the flag, the exit code, and that nothing is written."""
    environment = {key: value for key, value in os.environ.items() if key != "OPENAI_API_KEY"} | {"XLA_FLAGS": ""}
    command = [sys.executable, "-m", "epo_jax.train", f"--config={REPOSITORY}/configs/alfshop.py", "--dry_run", "--config.rounds=1", "--config.judge=openai", f"--config.workdir={tmp_path}/run"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment | {"OPENAI_BASE_URL": ""}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2, done.stderr
    assert "1 problem was found" in done.stdout and "OPENAI_API_KEY" in done.stdout


# --- calls --------------------------------------------------------------------------------------------------------------


class _Asked:
    """A client that keeps the prompts."""

    name = "a model"

    def __init__(self):
        self.prompts = []

    async def complete(self, messages, *, schema=None, salt=""):
        self.prompts.append(messages)
        return type("Reply", (), {"text": "Action: look", "refusal": None})()


def test_the_formula_is_what_an_actor_is_sent():
    """Turns of one length: P(T) is exactly the sum of the prompts that the actor of a whole episode sends."""
    turns = [Turn(strategy="Thought: look.", action="look", observation="You see a mug.") for _ in range(5)]
    episode = Trajectory("alfworld", "x", first_observation="You see a mug.", turns=turns, outcome=1.0)
    shape = forecast.shape("alfworld", [episode], len)
    for length in (1, 2, 5, 9):
        asked = _Asked()
        session = OpenAIActor(asked, "a model").begin("alfworld", 0)

        async def play(session=session, length=length):
            for _ in range(length):
                await session.act("You see a mug.", strategy="Thought: look.", admissible=["look"])

        asyncio.run(play())
        sent = sum(len(message["content"]) + forecast.A_MESSAGE for prompt in asked.prompts for message in prompt)
        calls = shape.actor(length)
        assert calls.requests == len(asked.prompts) == length
        assert calls.prompt == pytest.approx(sent)
        assert calls.answer == length * len("Action: look")


def test_money_and_sums():
    calls = forecast.Calls(2, 1_000_000, 500_000) * 3 + forecast.Calls(1, 0, 500_000)
    assert calls == forecast.Calls(7, 3_000_000, 2_000_000)
    assert calls.money({"price_per_million_prompt": 2.5, "price_per_million_completion": 10.0}) == 27.5


def test_calls_and_cost_are_told_for_api_models(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    prices = {f"{section}.price_per_million_{what}": 1.0 for section in ("actor_api", "judge_api") for what in ("prompt", "completion")}
    changes = {"actor": "openai", "judge": "openai", "environments.webshop.share": 0.0, "rounds": 1, "evaluate.every": 1, "evaluate.tasks": 10, "rollout.episodes": 48}
    code, out = _told(_config(tmp_path, **changes, **prices), capsys)
    assert code == 0
    assert f"to {(48 + 2 * 10) * 20:,} requests" in out  # all 20 turns of 48 episodes and of two evaluations
    assert "judge gpt-4o-2024-08-06: 48.00 requests" in out  # evaluations are not judged
    assert out.count("in the currency of its prices") == 2


# --- memory ---------------------------------------------------------------------------------------------------------------


def _model(**changes):
    sizes = {"hidden_size": 64, "intermediate_size": 176, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "vocab_size": 512}
    constants = {"rope_theta": 1e4, "rope_scaling": None, "rms_norm_eps": 1e-5, "tie_embeddings": True, "sliding_window": None, "max_positions": 2048}
    tokens = {"architecture": "llama", "bos_token_id": None, "eos_token_ids": (1,), "pad_token_id": 0}
    return LlamaConfig(**(sizes | constants | tokens | changes))


@pytest.mark.parametrize("shape", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "sequence": 2, "tensor": 2}])
def test_what_lies_on_a_device_is_told_to_the_byte(tmp_path, shape):
    """Parameters and moments of a state on a mesh of eight devices, as they really lie."""
    config, model = _config(tmp_path), _model()
    mesh = make_mesh(shape)
    plan = memory_plan.plan(config, model, mesh)
    optimizer = make_optimizer(config.learn, 10)
    state = init_state(init_params(model, jax.random.key(0)), model, optimizer, mesh)

    def on_one_device(tree):
        return sum(array.addressable_shards[0].data.nbytes for array in jax.tree.leaves(tree) if array.ndim)

    assert plan.parameters == on_one_device(state.params)
    assert plan.optimizer == on_one_device(state.opt_state)


@pytest.mark.slow
@pytest.mark.parametrize(("remat", "sequence"), [("full", 1), ("dots", 1), ("none", 1), ("full", 4)])
def test_activations_are_near_what_xla_allocates(tmp_path, remat, sequence):
    length = 512 * sequence
    changes = {"learn.rows": 4, "model.remat": remat, "learn.max_length": length, "learn.length_buckets": (length,), "rollout.max_context": length}
    config, model = _config(tmp_path, **changes), _model()
    mesh = make_mesh({"sequence": sequence}, jax.devices()[:sequence])
    plan = memory_plan.plan(config, model, mesh)
    optimizer = make_optimizer(config.learn, 10)
    params = jax.tree.map(lambda weight: jax.ShapeDtypeStruct(weight.shape, jnp.float32), declare(model))
    kinds = (jnp.int32, jnp.int32, jnp.int32, jnp.float32, jnp.float32, jnp.int32)
    batch = TrajectoryBatch(*(jax.ShapeDtypeStruct((2, 4, length), kind) for kind in kinds))
    scores = jax.ShapeDtypeStruct((2, 4, length), jnp.float32)
    sums = Sums(jax.ShapeDtypeStruct((), jnp.float32), params, scores, scores)
    step = make_step(model, optimizer, None if sequence == 1 else mesh, remat=remat)
    compiled = step.accumulate.lower(params, None, sums, batch, jax.ShapeDtypeStruct((), jnp.int32), length).compile()
    allocated = compiled.memory_analysis().temp_size_in_bytes + plan.parameters  # the gradient's sum is an argument
    assert 0.6 < (plan.activations + plan.gradients) / allocated < 1.6


def test_a_wider_cache_and_smaller_weights(tmp_path):
    config, model, mesh = _config(tmp_path), _model(), make_mesh({"fsdp": 1}, jax.devices()[:1])
    before = memory_plan.plan(config, model, mesh)
    assert before.playing == 0 and before.cache == 2 * 2 * 32 * 2 * 1024 * 16 * 4  # keys and values, layers, slots, heads, context, head dim, bytes
    config.rollout.slots, config.rollout.weights = 64, "int8"
    after = memory_plan.plan(config, model, mesh)
    assert after.cache == 2 * before.cache and after.playing == before.parameters // 4
    config.model.lora.rank = 4
    adapted = memory_plan.plan(config, model, mesh)
    assert adapted.optimizer < before.optimizer / 4 and adapted.parameters == before.parameters + adapted.optimizer // 2
    assert dataclasses.replace(after, cache=before.cache, playing=0) == before

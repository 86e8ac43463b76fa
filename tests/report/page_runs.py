"""Run folders made up for the tests of the run page: small, with everything that the page shows, and with text that means harm."""

from __future__ import annotations

import json
import pathlib
import random
import shutil
from typing import Any

import configs.alfshop
from epo_jax.model.tokenizer import Tokenizer
from epo_jax.run_folder import flatten
from epo_jax.stepagent.inspection import inspected, states_of
from epo_jax.trajectory import Trajectory, Turn, write_jsonl

MINI = pathlib.Path(__file__).resolve().parents[2] / "epo_jax" / "model" / "mini"
WORDS = "go to cabinet drawer shelf take mug plate open close look fridge clean heat cool put search blue price buy now".split()

HOSTILE = (
    "<script>window.harmed = 1</script>",
    '</script><script>window.harmed = 2</script><!--<img src=x onerror="window.harmed = 3">',
    "\u202egnp.exe\u202c and \u2066isolated\u2069 and \u200bzero\u00adwidth",
    "bell\x07 escape\x1b[31m null\x00 delete\x7f next\x85 line\u2028end",
    "']);window.harmed=4;//`${window.harmed=5}`{{7*7}}&lt;b&gt;",
    "lone \ud800 surrogate, private \ue000, zalgo Z\u0351\u036b\u0343\u036a\u0302, emoji 👩‍👩‍👧",
    "العربية שלום ‏mixed abc",
    "x" * 30_000,
)


def turn(tokenizer: Tokenizer, words: str, number: random.Random, **more: Any) -> Turn:
    """A turn whose tokens say `words`."""
    tokens = [*tokenizer.encode(words), min(tokenizer.stop_ids)]
    values: dict[str, Any] = {
        "prompt_tokens": [5, 6],
        "tokens": tokens,
        "logprobs": [-round(number.expovariate(2.0), 3) for _ in tokens],
        "strategy": tokenizer.decode(tokens).strip(),
        "action": " ".join(number.choices(WORDS, k=3)),
        "observation": " ".join(number.choices(WORDS, k=12)),
        "reward": 0.0,
        "progress": round(number.random(), 2),
    }
    return Turn(**values | more)


def episode(tokenizer: Tokenizer, seed: int, *, turns: int = 3, learned: bool = True, **more: Any) -> Trajectory:
    """An episode that depends on `seed` alone. learned: it has advantages and the judge's rewards."""
    number = random.Random(seed)
    played = []
    for _ in range(turns):
        scores = {"process_reward": float(number.randint(0, 1)), "advantage": round(number.gauss(0, 1), 3)} if learned else {}
        played.append(turn(tokenizer, "Thought: " + " ".join(number.choices(WORDS, k=4)), number, **scores))
    outcome = round(number.random(), 2) if number.random() < 0.6 else 1.0
    values: dict[str, Any] = {
        "environment": number.choice(["alfworld", "webshop"]),
        "task_id": f"train/{seed}",
        "turns": played,
        "first_observation": "You are in a room. " + " ".join(number.choices(WORDS, k=10)),
        "outcome": outcome,
        "success": outcome == 1.0,
        "actor": "literal",
        "judge": "progress",
        "seed": seed,
        "extra": {"index": seed},
    }
    return Trajectory(**values | more)


def demonstrations(tokenizer: Tokenizer, count: int = 3) -> list[Trajectory]:
    """An expert's episodes, as `credit.estimator=bc` learns from: nobody sampled their tokens."""
    more = {"environment": "alfworld", "outcome": 1.0, "success": True, "actor": "expert", "judge": None, "weights_version": ""}
    played = [episode(tokenizer, seed, learned=False, **more) for seed in range(count)]
    for one in [turn for trajectory in played for turn in trajectory.turns]:
        one.logprobs, one.advantage = [], 1.0
    return played


def make_run(
    folder: pathlib.Path, *, rounds: int = 2, episodes: int = 12, turns: int = 3, resumed_after: int | None = None, **overrides: Any
) -> pathlib.Path:
    """A run of configs/alfshop.py: `rounds` of `episodes`, evaluations of 8 tasks before and after. overrides: fields of the configuration."""
    folder.mkdir(parents=True)
    shutil.copytree(MINI, folder / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors", "*.md"))
    tokenizer = Tokenizer.load(MINI)
    overrides["rounds"] = rounds
    config = flatten(configs.alfshop.get_config().to_dict()) | overrides
    (folder / "config.json").write_text(json.dumps(config))
    starts, rows = [_start("10:00:00", overrides)], []
    for done in sorted({0, rounds}):
        found = [
            episode(
                tokenizer,
                1000 * done + task,
                turns=turns,
                learned=False,
                environment="alfworld",
                task_id=f"eval/{task}",
                weights_version=f"step-{done}",
            )
            for task in range(8)
        ]
        write_jsonl(folder / "evaluation" / f"round_{done:03d}.jsonl", found)
    for round in range(rounds):
        played = [
            episode(tokenizer, 100_000 * (round + 1) + index, turns=turns, round=round, weights_version=f"step-{2 * round}")
            for index in range(episodes)
        ]
        write_jsonl(folder / "trajectories" / f"round_{round:03d}.jsonl", played)
        when = _seconds(f"10:{round + 1:02d}:00")
        for step in (2 * round + 1, 2 * round + 2):
            rows.append({"kind": "step", "step": step, "time": when - 5, "loss": -0.1 * step, "grad_norm": 0.3, "entropy": 0.3, "kl": 0.01 * step})
        rows.append(
            {"kind": "round", "step": round + 1, "time": when, "entropy": 0.3, "grad_norm": 0.3, "kl": 0.01, "logprob_gap": 1e-7, "compilations": 9.0}
        )
        if resumed_after == round + 1:
            starts.append(_start(f"10:{round + 1:02d}:30", overrides))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "provenance.jsonl").write_text("".join(json.dumps(start) + "\n" for start in starts))
    return folder


def make_hostile_run(folder: pathlib.Path) -> pathlib.Path:
    """Every text of the run that comes from outside says something hostile."""
    make_run(folder, rounds=1, name=HOSTILE[0], **{"environments.alfworld.prompt": HOSTILE[1]})
    tokenizer, number = Tokenizer.load(MINI), random.Random(0)
    played = []
    for index, text in enumerate(HOSTILE):
        said = [turn(tokenizer, "a", number, strategy=text, action=text, observation=text, advantage=1.0, process_reward=1.0) for _ in range(2)]
        said[1].tokens, said[1].logprobs = [], []  # a strategy that is text alone
        played.append(
            Trajectory(
                environment=f"alf{text[:80]}",
                task_id=text[:400],
                seat=text[:80],
                turns=said,
                first_observation=text,
                end=text,
                actor=text[:200],
                judge=text[:200],
                weights_version=text[:80],
                masked=text if index % 2 else None,
                extra={
                    "index": index,
                    "task_type": text[:80],
                    "judge": {"reasoning": text, "reasons": [text, text], "grades": [text, text]},
                    "inspected": [{"tokens": [], "logprobs": [], "text": text}] * 2,
                    "partner": {"strategist": text[:80], "weights": text[:80], "actor": text[:80]},
                },
            )  # fmt: skip
        )
    write_jsonl(folder / "trajectories" / "round_000.jsonl", played)
    with open(folder / "provenance.jsonl", "w") as file:
        for text in HOSTILE:
            start = {"time": text, "command": f"train.py --config={text}", "seed": text, "python": text, "versions": {text: text}, "devices": [text]}
            file.write(json.dumps(start) + "\n")
    return folder


def make_stepagent_run(folder: pathlib.Path, *, reflect_on: str = "inspection") -> pathlib.Path:
    """One cycle on two inspected episodes of an expert, the first with a policy that says at its second state what the expert says."""
    make_run(folder, rounds=1, learn_from="stepagent", **{"stepagent.reflect_on": reflect_on})
    tokenizer, number = Tokenizer.load(MINI), random.Random(5)
    experts = []
    for seed in range(2):
        expert = episode(tokenizer, seed, learned=False, turns=3, task_id=f"train/{seed}", actor="expert", judge=None, weights_version="step-0")
        for one in expert.turns:
            one.logprobs, one.advantage = [], 1.0  # as a demonstration has it
        words = ["Thought: open the fridge", expert.turns[1].strategy]  # the context ended before the third
        tokens = [[*tokenizer.encode(text), min(tokenizer.stop_ids)] for text in words]
        expert.extra["inspected"] = [
            {"tokens": ids, "logprobs": [-round(number.random(), 2) for _ in ids], "text": text} for ids, text in zip(tokens, words, strict=True)
        ]
        experts.append(expert)
    (folder / "inspections").mkdir()
    write_jsonl(folder / "inspections" / "cycle_000.jsonl", experts)
    states = states_of(inspected(experts, 1024))
    for place, state in enumerate(states):
        state.judge = "discriminator"  # as stepagent.inverse says
        state.turns[0].process_reward, state.turns[0].advantage = 0.5, place - 1.5
    write_jsonl(folder / "trajectories" / "round_000.jsonl", states)
    return folder


def _start(clock: str, overrides: dict[str, Any]) -> dict[str, Any]:
    command = " ".join(["epo_jax/train.py", "--config=configs/alfshop.py", *(f"--config.{name}={value}" for name, value in overrides.items())])
    return {
        "time": f"2026-11-21T{clock}+0000",
        "command": command,
        "seed": 0,
        "python": "3.11.7",
        "versions": {"jax": "0.10.2"},
        "devices": ["cpu:cpu"],
    }


def _seconds(clock: str) -> float:
    hours, minutes, seconds = map(int, clock.split(":"))
    return 1795219200.0 + 3600 * hours + 60 * minutes + seconds  # 2026-11-21T00:00:00 UTC

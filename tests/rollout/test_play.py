"""Episodes with a scripted strategist in place of the engine: what is recorded, and what happens when something fails."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

import envs
from envs.alfworld.generator import TASK_TYPES
from epo_jax.generate.engine import ContextFull, Sampled, Sampling
from epo_jax.rollout.actors import LiteralActor
from epo_jax.rollout.play import Episode, Player, episode_seed, episodes_of_evaluation, episodes_of_round, play_episodes
from epo_jax.rollout.prompts import Prompts, load
from epo_jax.rollout.tasks import TaskSet
from epo_jax.trajectory import read_jsonl, write_jsonl


class Letters:
    """A conversation format whose tokens are characters: enough to see exactly what was appended when."""

    stop_ids = frozenset({0})

    def start(self, messages):
        return [ord(character) for message in messages for character in message["content"]]

    def reply_and_continue(self, sampled, text):
        return [ord(character) for character in text]

    def text(self, ids):
        return "".join(chr(token) for token in ids if token)


class ScriptedEngine:
    """Says the walkthrough's commands one after the other; counts what is open."""

    def __init__(self, lines, full_after=None):
        self.lines, self.full_after, self.opened, self.closed = lines, full_after, 0, 0

    def open(self, seed):
        self.opened += 1
        return {"turn": 0, "seed": seed}

    async def generate(self, session, tokens, sampling):
        await asyncio.sleep(0)
        if self.full_after is not None and session["turn"] >= self.full_after:
            raise ContextFull("no room")
        line = self.lines[session["turn"] % len(self.lines)]
        session["turn"] += 1
        return Sampled(tokens=[ord(c) for c in line] + [0], logprobs=[-0.5] * (len(line) + 1), stop_reason="stop")

    def close(self, session):
        self.closed += 1


@pytest.fixture(scope="module")
def task():
    return envs.make("alfworld").tasks("generated:eval")[0]


@pytest.fixture(scope="module")
def winning_lines(task):
    environment = envs.make("alfworld")
    environment.reset(task)
    lines, done = [], False
    while not done:
        lines.append(environment.expert_action())
        _, _, done, _ = environment.step(lines[-1])
    return [f"Thought: {line}" for line in lines]


def task_set(max_turns=40, environment="alfworld"):
    return TaskSet(environment, 1.0, "generated:train", "generated:eval", [], [], load(environment, "brief"), max_turns)


def player(engine, actor=None):
    return Player(engine, Letters(), actor or LiteralActor(), Sampling(), 3, "step-7")


def play(engine, task, max_turns=40, environment="alfworld"):
    [trajectory] = asyncio.run(player(engine).play(Episode(0, task_set(max_turns, environment), task, seed=11)))
    return trajectory


def test_a_won_episode_is_recorded_whole(task, winning_lines, tmp_path):
    engine = ScriptedEngine(winning_lines)
    trajectory = play(engine, task)
    assert trajectory.success and trajectory.outcome == 1.0 and trajectory.end == "done"
    assert [turn.strategy for turn in trajectory.turns] == winning_lines
    assert trajectory.turns[-1].progress == 1.0 and trajectory.start_progress < 1.0
    assert (trajectory.round, trajectory.weights_version, trajectory.seed, trajectory.actor) == (3, "step-7", 11, "literal")
    # The token stream is what was read and said, in order, and nothing else.
    said = "".join(chr(token) for token in trajectory.tokens)
    expected = trajectory.first_observation
    for turn in trajectory.turns:
        expected += f"{turn.strategy}\0{turn.action}\n{turn.observation}"
    assert expected.startswith(said) and len(expected) - len(said) == len(f"{turn.action}\n{turn.observation}")
    write_jsonl(tmp_path / "t.jsonl", [trajectory])
    assert read_jsonl(tmp_path / "t.jsonl") == [trajectory]
    assert engine.opened == engine.closed == 1


def test_useless_words_end_at_the_turn_limit(task):
    trajectory = play(ScriptedEngine(["Thought: hm."]), task, max_turns=5)
    assert (trajectory.end, len(trajectory.turns), trajectory.success, trajectory.outcome) == ("max_turns", 5, False, 0.0)
    assert {turn.action for turn in trajectory.turns} == {"look"}


def test_a_full_context_ends_the_episode(task):
    trajectory = play(ScriptedEngine(["Thought: hm."], full_after=2), task)
    assert (trajectory.end, len(trajectory.turns), trajectory.masked) == ("context", 2, None)


def test_a_failing_actor_masks_only_its_episode(task, winning_lines):
    class Failing(LiteralActor):
        name = "failing"
        calls = 0

        async def act(self, observation, *, strategy, admissible):
            self.calls += 1
            if self.calls == 3:
                raise TimeoutError("no answer")
            return await super().act(observation, strategy=strategy, admissible=admissible)

    engine = ScriptedEngine(winning_lines)
    finished = []
    episodes = [Episode(index, task_set(), task, seed=index) for index in range(4)]
    trajectories = asyncio.run(play_episodes(player(engine, Failing()), episodes, at_once=2, on_finish=finished.extend))
    assert [trajectory.extra["index"] for trajectory in trajectories] == [0, 1, 2, 3]
    masked = [trajectory for trajectory in trajectories if trajectory.masked]
    assert len(masked) == 1 and "TimeoutError: no answer" in masked[0].masked
    assert sum(trajectory.success for trajectory in trajectories) == 3
    assert engine.opened == engine.closed == 4 and len(finished) == 4


def test_a_request_to_stop_drops_what_is_unfinished_and_closes_it(task):
    engine, finished = ScriptedEngine(["Thought: hm."]), []
    episodes = [Episode(index, task_set(), task, seed=index) for index in range(20)]
    trajectories = asyncio.run(
        play_episodes(player(engine), episodes, at_once=4, on_finish=finished.extend, should_stop=lambda: len(finished) >= 4)
    )
    assert 4 <= len(trajectories) < 20 and trajectories == sorted(finished, key=lambda t: t.extra["index"])
    assert engine.opened == engine.closed


def test_a_purchase_of_another_product_is_bought_but_no_success():
    """The trip's own reward becomes the outcome, whatever it is."""
    trip = envs.make("webshop")
    goal = trip.tasks("generated:eval")[3]
    lines = ["search for candles", "open the first product", "buy now"]
    trajectory = play(ScriptedEngine([f"Thought: {line}." for line in lines]), goal, environment="webshop")
    trip.reset(goal)
    steps = [trip.step(turn.action) for turn in trajectory.turns]
    assert trajectory.end == "done" and trajectory.extra["bought"] and not trajectory.success
    assert trajectory.outcome == steps[-1][1] and 0 <= trajectory.outcome < 1
    looked = play(ScriptedEngine(["Thought: hm."]), goal, max_turns=2, environment="webshop")
    assert (looked.extra["bought"], looked.outcome, looked.end) == (False, 0.0, "max_turns")


def test_episodes_of_a_round_depend_on_seed_and_round_alone():
    names = list("abcdef")
    tasks = [dataclasses.replace(task_set(), train=names)]
    one = episodes_of_round(tasks, count=9, seed=1, round=0)
    assert one == episodes_of_round(tasks, count=9, seed=1, round=0)
    assert one != episodes_of_round(tasks, count=9, seed=1, round=1)
    assert one[:4] == episodes_of_round(tasks, count=4, seed=1, round=0)  # a longer round begins like a shorter one
    assert sorted(episode.task for episode in one[:6]) == names  # each task once before any twice
    assert len({episode.seed for episode in one}) == 9
    groups = episodes_of_round(tasks, count=6, seed=1, round=0, group_size=3)
    assert [episode.task for episode in groups] == [one[0].task] * 3 + [one[1].task] * 3
    assert [episode.seed for episode in groups] == [episode.seed for episode in one[:6]]
    assert 0 <= episode_seed("x", 1) < 2**31


def test_an_evaluation_plays_every_held_out_task_alike_each_time(task):
    tasks = [dataclasses.replace(task_set(), held_out=[task]), dataclasses.replace(task_set(environment="webshop"), held_out=[task])]
    once, thrice = episodes_of_evaluation(tasks), episodes_of_evaluation(tasks, repeats=3)
    assert thrice[:2] == once and [episode.index for episode in thrice] == list(range(6))
    assert [episode.task_set.environment for episode in thrice] == ["alfworld", "webshop"] * 3
    assert len({episode.seed for episode in thrice}) == 6
    # The seed depends on task and repeat, and not on what else is played.
    assert [episode.seed for episode in episodes_of_evaluation(tasks[1:], repeats=3)] == [episode.seed for episode in thrice[1::2]]


def test_an_episode_tells_its_kind_where_there_are_kinds(task):
    environment = envs.make("alfworld")
    environment.reset(task)
    assert play(ScriptedEngine(["Thought: hm."]), task, max_turns=1).extra["task_type"] == environment.task_type in TASK_TYPES
    goal = envs.make("webshop").tasks("generated:eval")[0]
    assert "task_type" not in play(ScriptedEngine(["Thought: hm."]), goal, max_turns=1, environment="webshop").extra


def test_braces_in_an_observation_are_text():
    prompts = Prompts("", turn="Agent1's {action}\n{observation}")
    assert prompts.after("take {observation}", "a {0} {x}") == "Agent1's take {observation}\na {0} {x}"
    assert [message["role"] for message in load("alfworld", "full").opening("task")] == ["user", "assistant", "user"]

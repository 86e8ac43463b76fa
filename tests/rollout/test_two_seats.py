"""Conversations with scripted words in place of the engine: who reads what, what each seat keeps, and what happens when something fails."""

from __future__ import annotations

import asyncio

import pytest

import envs
from envs.sotopia.environment import SotopiaEnvironment
from epo_jax.errors import UserError
from epo_jax.generate.engine import ContextFull, Sampled, Sampling
from epo_jax.reward.evaluator import DIMENSIONS, Scores
from epo_jax.rollout.actors import LiteralActor
from epo_jax.rollout.keep import already_played
from epo_jax.rollout.opponents import SCRIPTED, SELF
from epo_jax.rollout.play import Episode, Player, episodes_of_evaluation
from epo_jax.rollout.prompts import load
from epo_jax.rollout.seat import Adviser
from epo_jax.rollout.tasks import TaskSet
from epo_jax.self_play import alone
from epo_jax.trajectory import append_jsonl, read_jsonl, write_jsonl

WORDS = ["Strategy: aim high.", "Strategy: concede slowly.", "Strategy: meet them halfway.", "Strategy: accept their offer."]


class Letters:
    """A conversation format whose tokens are characters."""

    def start(self, messages):
        return [ord(character) for message in messages for character in message["content"]]

    def reply_and_continue(self, sampled, text):
        return [ord(character) for character in text]

    def text(self, ids):
        return "".join(chr(token) for token in ids if token)


class Words:
    """Says `lines` one after the other in every session, and counts what is open."""

    def __init__(self, lines=WORDS, full_after=None):
        self.lines, self.full_after, self.opened, self.closed, self.seeds = lines, full_after, 0, 0, []

    def open(self, seed):
        self.opened += 1
        self.seeds.append(seed)
        return {"turn": 0}

    async def generate(self, session, tokens, sampling):
        await asyncio.sleep(0)
        if session["turn"] == self.full_after:
            raise ContextFull("no room")
        line = self.lines[session["turn"] % len(self.lines)]
        session["turn"] += 1
        return Sampled(tokens=[*map(ord, line), 0], logprobs=[-0.5] * (len(line) + 1), stop_reason="stop")

    def close(self, session):
        self.closed += 1


class Evaluator:
    """Says the same of every conversation, or fails; keeps what it was shown."""

    name = "somebody"

    def __init__(self, *answers):
        self.answers, self.seen = list(answers), []

    async def score(self, transcript, names):
        self.seen.append((transcript, names))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def task_set(held_out=(), max_turns=10, **options):
    return TaskSet("sotopia", 1.0, "generated:train", "generated:eval", [], list(held_out), load("sotopia", "brief"), max_turns, options, 10)


def player(engine, actor=None, **more):
    return Player(engine, Letters(), actor or LiteralActor(), Sampling(), 2, "step-7", **more)


def tasks(split="generated:eval", **options):
    return envs.make("sotopia", **options).tasks(split)


def play(who, task, opponent=SELF, seed=5, **options):
    return asyncio.run(who.play(Episode(0, task_set(**options), task, seed, opponent)))


@pytest.mark.parametrize("number", [0, 1, 6, 13, 40])
def test_both_seats_are_recorded_and_the_moves_replay_to_the_same_scores(number):
    engine = Words()
    trajectories = play(player(engine), tasks()[number])
    assert [trajectory.seat for trajectory in trajectories] == ["0", "1"]
    assert [trajectory.task_id[-2:] for trajectory in trajectories] == ["/0", "/1"]
    assert engine.opened == engine.closed == 2 and len(set(engine.seeds)) == 2

    # The same words, told to the two negotiators of another environment, end in the same deal.
    other = SotopiaEnvironment()
    other.reset(tasks()[number].combination)
    own = [other.negotiator(seat, tempered=False) for seat in (0, 1)]
    turns = [0, 0]
    while not other.done:
        seat = other.turn
        assert trajectories[seat].turns[turns[seat]].strategy == WORDS[turns[seat] % 4]
        other.step(seat, own[seat].choose(WORDS[turns[seat] % 4].removeprefix("Strategy: "), other.view(seat)))
        turns[seat] += 1
    for seat, trajectory in enumerate(trajectories):
        assert len(trajectory.turns) == turns[seat]
        assert (trajectory.outcome, trajectory.success) == (other.outcome(seat), other.goal(seat) >= 5)
        assert trajectory.turns[-1].reward == trajectory.outcome == trajectory.turns[-1].progress
        assert all(turn.reward == 0 for turn in trajectory.turns[:-1])
        assert trajectory.extra["partner"] == {"strategist": "self", "weights": "step-7", "actor": "literal"}
        assert (trajectory.end, trajectory.extra["ended_by"]) == ("done", other.conversation.end)
        assert trajectory.extra["scenario"] == other.conversation.combination.scenario.id
    # A turn's observation begins with the seat's own move and ends with the other's answer, unless the conversation ended.
    first = trajectories[0].turns[0].observation.splitlines()
    assert first[0].startswith("You: ") and not first[-1].startswith("You: ")


@pytest.mark.parametrize("number", range(0, 60, 7))
def test_against_the_scripted_partner_it_is_the_environment_of_one_seat(number):
    """What SotopiaSeat, which plays its own partner, answers to the same words is what the seat is told."""
    task = tasks()[number]
    [trajectory] = play(player(Words()), task, SCRIPTED)
    seat = envs.make("sotopia")
    assert trajectory.first_observation == seat.reset(task) and trajectory.seat == str(task.seat)
    for turn in trajectory.turns:
        observation, reward, done, info = seat.step(turn.action)
        assert (turn.observation, turn.reward, turn.progress) == (observation, reward, seat.progress())
    assert done and (trajectory.outcome, trajectory.success) == (seat.outcome, seat.success)
    assert trajectory.extra["partner"]["strategist"] == "scripted"
    assert trajectory.extra["illegal_actions"] == 0


def test_neither_seat_reads_what_is_the_others_own():
    for number in range(0, 40, 3):
        task = tasks()[number]
        who = player(Words())
        trajectories = play(who, task, text="full")
        combination = SotopiaEnvironment().combination(task.combination)
        for trajectory in trajectories:
            read = "".join(chr(token) for token in trajectory.tokens)
            other = combination.view_of(1 - int(trajectory.seat))
            assert combination.view_of(int(trajectory.seat)).goal in read and other.goal not in read
            secret = combination.characters[1 - int(trajectory.seat)].secret
            assert not secret or secret not in read


def test_an_opponent_with_other_weights_sits_at_the_other_seat_and_gives_no_trajectory():
    theirs, ours = Words(["Strategy: accept their offer."]), Words()
    opponent = Adviser("round 1", theirs, Letters(), LiteralActor(), Sampling(), "round 1")
    for task in tasks()[:2]:  # one from each seat
        [trajectory] = play(player(ours, others={"round 1": opponent}), task, "round 1")
        assert trajectory.seat == str(task.seat) and trajectory.weights_version == "step-7"
        assert trajectory.extra["partner"] == {"strategist": "round 1", "weights": "round 1", "actor": "literal"}
    assert ours.opened == ours.closed == theirs.opened == theirs.closed == 2


def test_an_actor_alone_reads_no_strategy_and_a_rule_of_thumb_beats_having_nothing_to_say():
    won = {}
    for mode in ("none", "react"):
        other = alone(LiteralActor(), mode, Sampling())
        who = Player(other.engine, other.conversation, other.actor, Sampling(), 0, "none")
        played = [play(who, task, SCRIPTED)[0] for task in tasks()[:40]]
        assert all(turn.strategy == "" and turn.tokens == [] for trajectory in played for turn in trajectory.turns)
        won[mode] = sum(trajectory.outcome for trajectory in played)
    assert won["react"] > won["none"] > 0


def test_a_strategy_of_more_than_ten_words_is_kept_and_shown_cut():
    class Hears(LiteralActor):
        heard = []

        async def act(self, observation, *, strategy, admissible):
            self.heard.append(strategy)
            return await super().act(observation, strategy=strategy, admissible=admissible)

    long = "Strategy: one two three four five six seven eight nine ten eleven twelve"
    actor = Hears()
    [trajectory] = play(player(Words([long, "Strategy: concede now.", "concede " * 11]), actor), tasks()[0], SCRIPTED)
    assert [turn.strategy for turn in trajectory.turns[:2]] == [long, "Strategy: concede now."]
    assert actor.heard[:2] == [long.removesuffix(" eleven twelve"), "Strategy: concede now."]
    assert actor.heard[2] == " ".join(["concede"] * 10)
    expected = sum(len(turn.strategy.removeprefix("Strategy: ").split()) > 10 for turn in trajectory.turns)
    assert trajectory.extra["overlong_strategies"] == expected >= 2


def test_an_actor_that_fails_at_one_seat_masks_both():
    class Failing(LiteralActor):
        calls = 0

        async def act(self, observation, *, strategy, admissible):
            self.calls += 1
            if self.calls == 4:  # seat 1's second move
                raise TimeoutError("no answer")
            return await super().act(observation, strategy=strategy, admissible=admissible)

    engine = Words(["Strategy: hold firm."])
    trajectories = play(player(engine, Failing()), tasks()[0])
    assert [trajectory.masked for trajectory in trajectories] == ["actor failed: TimeoutError: no answer (seat 1)"] * 2
    assert [len(trajectory.turns) for trajectory in trajectories] == [2, 1]
    assert engine.opened == engine.closed == 2


def test_a_full_context_and_the_turn_limit_end_it_for_both():
    trajectories = play(player(Words(["Strategy: hold firm."], full_after=1)), tasks()[0])
    assert [(one.end, one.masked, len(one.turns)) for one in trajectories] == [("context", None, 1)] * 2
    trajectories = play(player(Words(["Strategy: hold firm."])), tasks()[0], max_turns=2)
    assert [(one.end, one.masked, len(one.turns)) for one in trajectories] == [("max_turns", None, 2)] * 2


# --- scored by an evaluator -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talk():
    """One of the project's scenarios that no rule scores."""
    environment = SotopiaEnvironment()
    for task in tasks("generated:scenarios"):
        environment.reset(task.combination)
        if environment.scoring == "evaluator":
            return task
    pytest.fail("every scenario is scored by a rule")


def test_an_evaluator_scores_both_seats_and_its_goal_is_the_outcome(talk):
    middle = {name: (low + high) // 2 for name, (low, high) in DIMENSIONS.items()}
    scores = (Scores(middle | {"goal": 8}, {"goal": "kind"}), Scores(middle | {"goal": 3}, {"goal": "not kind"}))
    evaluator = Evaluator(scores)
    trajectories = play(player(Words(["Strategy: be kind."]), evaluator=evaluator), talk)
    assert [(one.outcome, one.success, one.extra["scores"]) for one in trajectories] == [(0.8, True, scores[0]), (0.3, False, scores[1])]
    assert [one.extra["evaluator"]["reasons"]["goal"] for one in trajectories] == ["kind", "not kind"]
    [(transcript, names)] = evaluator.seen
    combination = SotopiaEnvironment().combination(talk.combination)
    assert names == combination.names and all(goal in transcript for goal in (combination.view_of(0).goal, combination.view_of(1).goal))


def test_an_evaluator_that_fails_masks_both_and_is_no_score(talk):
    trajectories = play(player(Words(["Strategy: be kind."]), evaluator=Evaluator(ValueError("no JSON"))), talk)
    assert [one.masked for one in trajectories] == ["evaluator somebody: no JSON"] * 2
    assert all("scores" not in one.extra for one in trajectories)


def test_what_no_rule_scores_is_not_played_without_an_evaluator(talk):
    engine = Words()
    with pytest.raises(UserError, match=r"config\.evaluator"):
        play(player(engine), talk)
    assert engine.opened == 0


# --- kept and played again ---------------------------------------------------------------------------------------------


def test_half_a_conversation_is_played_again(tmp_path):
    path, games = tmp_path / "round.jsonl", task_set()
    episodes = [Episode(index, games, task, seed=index, opponent=SELF) for index, task in enumerate(tasks()[:3])]
    for episode in episodes:
        append_jsonl(path, asyncio.run(player(Words()).play(episode)))
    assert len(already_played(path, episodes, "step-7")) == 6
    everything = read_jsonl(path)
    write_jsonl(path, everything[:3] + everything[4:])  # of the second conversation, one seat is missing
    assert [trajectory.extra["index"] for trajectory in already_played(path, episodes, "step-7")] == [0, 0, 2, 2]
    assert len(already_played(path, episodes, "step-7", learning=True)) == 5
    everything[0].masked = "evaluator somebody: no JSON"
    write_jsonl(path, everything)
    assert [trajectory.extra["index"] for trajectory in already_played(path, episodes, "step-7")] == [1, 1, 2, 2]


def test_an_evaluation_against_itself_plays_a_conversation_once():
    held_out = tasks()[:7]  # three combinations from both seats, and one from the first
    games = task_set(held_out)
    assert [episode.task for episode in episodes_of_evaluation([games], opponent=SELF)] == [held_out[0], held_out[2], held_out[4], held_out[6]]
    assert [episode.task for episode in episodes_of_evaluation([games])] == held_out

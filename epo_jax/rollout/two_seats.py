"""An episode of two seats (SOTOPIA): both parties in turn, each with its private view, and a trajectory for each seat that learns.

The strategist sits at the seat that the task names. At the other one sits whom the episode names: the strategist too (then both seats give a
trajectory), another adviser, or the environment's own program. What follows a move, and so ends a turn, is what the party reads when it is to
move again: its own move as it was told, and the other's answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from envs.sotopia.party import WON
from epo_jax.errors import UserError
from epo_jax.rollout.opponents import SCRIPTED, SELF
from epo_jax.rollout.seat import Adviser, Seat
from epo_jax.trajectory import Trajectory

if TYPE_CHECKING:
    from epo_jax.rollout.play import Episode, Player

SEATS = (0, 1)
_SEEDS = 2**31


async def converse(player: Player, episode: Episode) -> list[Trajectory]:
    """Plays one conversation; returns the trajectory of each seat that the player's strategist advises, seat 0 first.

    Where no rule scores the scenario, the player's evaluator scores both seats at the end; if it fails, the trajectories are masked, as they
    all are where an actor fails. Raises `UserError` where there is none, before anything is played.
    """
    return await _Conversation(player, episode).play()


class _Conversation:
    def __init__(self, player: Player, episode: Episode) -> None:
        self._player, self._episode = player, episode
        self._environment = episode.task_set.make()
        self._parties = self._environment.parties(episode.task)
        self._by_rule = self._parties[0].outcome is not None
        if not self._by_rule and player.evaluator is None:
            raise UserError(
                f"no rule scores {self._parties[0].task_id}: set --config.evaluator=openai (a model reads the whole conversation), or play the "
                "splits generated:train and generated:eval."
            )
        self._advisers: list[Adviser | None] = [player.adviser, player.adviser]
        if episode.opponent != SELF:
            self._advisers[1 - episode.task.seat] = None if episode.opponent == SCRIPTED else player.others[episode.opponent]
        self._seats: list[Seat | None] = [None, None]
        self._end: str | None = None  # why it ended before the conversation was over
        self._masked: str | None = None  # why neither seat must be learned from

    async def play(self) -> list[Trajectory]:
        try:
            while self._end is None and not self._parties[0].done:
                await self._move(next(seat for seat in SEATS if self._parties[seat].to_move))
            for number in SEATS:
                if self._advisers[number] is not None:
                    self._hear(number)
        finally:
            for seat in self._seats:
                if seat is not None:
                    seat.close()
        trajectories = [self._seats[number].trajectory for number in SEATS if self._learns(number)]
        await self._score(trajectories)
        return trajectories

    async def _move(self, number: int) -> None:
        party = self._parties[number]
        if self._advisers[number] is None:
            party.move_as_partner()
            return
        seat = self._hear(number)
        if seat.turns >= self._episode.task_set.max_turns:
            self._end = "max_turns"
            return
        action = await seat.act(party.admissible)
        if action is None:
            self._end = seat.trajectory.end
            self._masked = seat.trajectory.masked and f"{seat.trajectory.masked} (seat {number})"
        else:
            party.move(action)

    def _hear(self, number: int) -> Seat:
        """Tells a seat what happened since it was last told; the first time, the context with it."""
        party, seat = self._parties[number], self._seats[number]
        if seat is None:
            return self._sit_down(number)
        if seat.moved:
            seat.hear(party.read(), reward=(party.outcome or 0.0) if party.done else 0.0, progress=party.progress())
        return seat

    def _sit_down(self, number: int) -> Seat:
        party, other = self._parties[number], self._advisers[1 - number]
        trajectory = self._player.trajectory(self._episode, party.task_id, first_observation=party.read(), start_progress=party.progress())
        trajectory.seat = str(number)
        trajectory.extra |= {"scenario": party.scenario, "codename": party.codename}
        trajectory.extra["partner"] = {"strategist": SCRIPTED, "weights": "", "actor": ""} if other is None else other.lineage
        self._seats[number] = Seat(self._advisers[number], self._episode.task_set, trajectory, _seed_of(self._episode.seed, number))
        return self._seats[number]

    def _learns(self, number: int) -> bool:
        return number == self._episode.task.seat or self._episode.opponent == SELF

    async def _score(self, trajectories: list[Trajectory]) -> None:
        """Why it ended, and what each seat has reached."""
        for trajectory in trajectories:
            party = self._parties[int(trajectory.seat)]
            trajectory.end = self._end or "done"
            trajectory.extra["ended_by"] = party.end or trajectory.end
            trajectory.masked = self._masked
            trajectory.outcome, trajectory.success = party.outcome or 0.0, party.success
        if self._by_rule or self._masked is not None:
            return
        evaluator = self._player.evaluator
        try:
            evaluation = await evaluator.score(self._environment.environment.transcript(), self._environment.environment.conversation.combination.names)
        except UserError:  # what would fail every episode alike stops the run
            raise
        except Exception as error:  # an evaluator is foreign code and a network: whatever it raises masks this conversation, and is no score
            for trajectory in trajectories:
                trajectory.masked = f"evaluator {evaluator.name}: {str(error) or type(error).__name__}"
            return
        for trajectory in trajectories:
            scores = evaluation[int(trajectory.seat)]
            trajectory.extra |= {"scores": dict(scores), "evaluator": {"name": evaluator.name, "reasons": scores.reasons}}
            trajectory.outcome = scores["goal"] / 10
            trajectory.success = scores["goal"] >= WON
            if trajectory.turns:
                trajectory.turns[-1].reward = trajectory.outcome


def _seed_of(seed: int, seat: int) -> int:
    """The two seats of an episode sample differently."""
    return (2 * seed + seat) % _SEEDS

"""Two parties in turn: whose move it is, what each seat sees, and when the conversation ends.

Round-robin: seat 0 moves first, then they alternate. It ends when a seat leaves, after `max_turns` turns of both together (20), when more
than MAX_STALE turns in a row were stale (the seat whose turn it was did nothing), or, in a bargaining game, when a deal is made. The original
counts the forced `none` of the seat that waits as well, so that there the second seat's single `none` can end an episode; not here.
"""

from __future__ import annotations

from envs.sotopia.action import LEAVE, NONE, Action
from envs.sotopia.agreement import Ledger
from envs.sotopia.bargaining import Deal
from envs.sotopia.scenario import SEATS, Combination, View

MAX_STALE = 2


class Conversation:
    """One episode between two seats."""

    def __init__(self, combination: Combination) -> None:
        self.combination = combination
        self.history: list[tuple[int, Action]] = []
        self.end: str | None = None  # why it ended: "leave", "stale", "agreement" or "max_turns"
        game = combination.scenario.game
        self.ledger = Ledger(game.issues) if game else None

    @property
    def turn(self) -> int | None:
        """The seat whose move it is; None when the conversation is over."""
        return len(self.history) % len(SEATS) if self.end is None else None

    @property
    def deal(self) -> Deal | None:
        """What was agreed, if anything (agreement.py)."""
        return self.ledger.deal if self.ledger else None

    def view(self, seat: int) -> View:
        """What a seat knows now."""
        return self.combination.view_of(seat, tuple(self.history))

    def act(self, seat: int, action: Action) -> None:
        """A seat's move. ValueError if it is not its turn."""
        if seat != self.turn:
            raise ValueError("the conversation is over" if self.turn is None else f"it is seat {self.turn}'s turn, not seat {seat}'s")
        self.history.append((seat, action))
        if self.ledger:
            self.ledger.hear(seat, action)
        if action.action_type == LEAVE:
            self.end = "leave"
        elif self.deal is not None:
            self.end = "agreement"
        elif len(self.history) >= self.combination.scenario.max_turns:
            self.end = "max_turns"
        elif self._stale() > MAX_STALE:
            self.end = "stale"

    def _stale(self) -> int:
        """How many of the last turns in a row nobody did anything in."""
        count = 0
        for _, action in reversed(self.history):
            if action.action_type != NONE:
                break
            count += 1
        return count

    def transcript(self) -> str:
        """Everything, with both private sides: for the evaluator alone. Turns in which nothing was done are left out, as published."""
        names = self.combination.names
        lines = [
            f"Turn #{number}: {action.told(names[seat])}" for number, (seat, action) in enumerate(self.history) if action.action_type != NONE
        ]
        return "\n".join([self.combination.full_text(), *lines])

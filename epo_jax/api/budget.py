"""What a run may spend, in tokens and in money: it stops before the limit is passed, also over several starts."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import Sequence

from epo_jax.api.database import Database
from epo_jax.api.failures import BudgetSpent
from epo_jax.api.settings import ApiSettings
from epo_jax.errors import UserError

APPLICATION_ID = 0x45504F42  # "EPOB"
WHAT = "record of what was spent"
SPENT = "spent (one INTEGER PRIMARY KEY CHECK (one = 1), tokens INTEGER NOT NULL, money REAL NOT NULL)"
RESERVED = "reserved (id INTEGER PRIMARY KEY, tokens INTEGER NOT NULL, money REAL NOT NULL)"


class Reservation:
    """What a try may cost at most, held back until it is settled with what it did cost."""

    def __init__(self, budget: Budget, id: int | None, tokens: int, money: float) -> None:
        self._budget, self._id, self.tokens, self.money = budget, id, tokens, money
        self._settled = False

    def settle(self, tokens: int, money: float) -> None:
        """The try cost this much (0 and 0 where it was not made or failed free of charge). Later calls change nothing."""
        if not self._settled:
            self._settled = True
            self._budget._settle(self, tokens, money)

    def settle_in_full(self) -> None:
        """Nobody knows what it cost: an answer that broke off may have been charged, so all that was held back counts."""
        self.settle(self.tokens, self.money)


def spent_in(path: str | pathlib.Path) -> tuple[int, float]:
    """Tokens and money by a budget's file that nobody has open; what was reserved when its process ended counts, as at the next start."""
    database = Database(path, what=WHAT, application_id=APPLICATION_ID, tables=(), read_only=True)
    try:
        rows = database.execute(
            "SELECT tokens + (SELECT coalesce(sum(tokens), 0) FROM reserved), money + (SELECT coalesce(sum(money), 0.0) FROM reserved) FROM spent"
        )
    finally:
        database.close()
    return rows[0] if rows else (0, 0.0)


class Budget:
    """Tokens and money of one run, shared by all its clients; a limit of 0 is none.

    With a `path` (one file a run, of one process at a time) what was spent is kept there. A reservation is written down before its try,
    so what was under way when a process was killed counts as spent at the next start: the server may have charged for it.
    """

    def __init__(self, *, tokens: int = 0, money: float = 0.0, path: str | pathlib.Path | None = None) -> None:
        self.limit_tokens, self.limit_money = tokens, money
        self.spent_tokens, self.spent_money = 0, 0.0
        self._reserved: set[Reservation] = set()
        self._waiting: set[asyncio.Future[None]] = set()
        self._database: Database | None = None
        if path is not None:
            self._database = Database(path, what=WHAT, application_id=APPLICATION_ID, tables=(SPENT, RESERVED))
            self._read()

    @classmethod
    def shared(cls, settings: Sequence[ApiSettings], path: str | pathlib.Path | None = None) -> Budget:
        """The one budget of clients with these settings. Raises `UserError` where two of them name different limits."""
        limits = {}
        for field in ("budget_tokens", "budget_money"):
            named = sorted({getattr(each, field) for each in settings} - {0})
            if len(named) > 1:
                raise UserError(f"{field} is {named[0]} for one model and {named[1]} for another: a run has one budget, give it once.")
            limits[field] = named[0] if named else 0
        return cls(tokens=limits["budget_tokens"], money=limits["budget_money"], path=path)

    def share(self, among: int, others_tokens: int, others_money: float) -> None:
        """From now on an equal part of what is left of the limits, for so many processes that do this at once; the others' files held that much."""
        if self.limit_tokens:
            self.limit_tokens = max(1, self.spent_tokens + max(0, self.limit_tokens - self.spent_tokens - others_tokens) // among)
        if self.limit_money:
            self.limit_money = max(1e-9, self.spent_money + max(0.0, self.limit_money - self.spent_money - others_money) / among)

    async def reserve(self, tokens: int, money: float) -> Reservation:
        """Holds back what a try may cost at most, waiting for others to be settled where that can make room.

        Raises `BudgetSpent` where what is left does not suffice even then.
        """
        while not self._fits(tokens, money, held=self._reserved):
            if not self._fits(tokens, money, held=set()):
                raise BudgetSpent(self._sentence(tokens, money))
            await self._next_settlement()
        id = None
        if self._database is not None:
            ((id,),) = self._database.execute("INSERT INTO reserved (tokens, money) VALUES (?, ?) RETURNING id", (tokens, money))
        reservation = Reservation(self, id, tokens, money)
        self._reserved.add(reservation)
        return reservation

    def as_dict(self) -> dict[str, float]:
        """Spent and limits as plain numbers."""
        return {
            "spent_tokens": self.spent_tokens,
            "spent_money": self.spent_money,
            "budget_tokens": self.limit_tokens,
            "budget_money": self.limit_money,
        }

    def close(self) -> None:
        if self._database is not None:
            self._database.close()

    def _fits(self, tokens: int, money: float, held: set[Reservation]) -> bool:
        all_tokens = self.spent_tokens + tokens + sum(reservation.tokens for reservation in held)
        all_money = self.spent_money + money + sum(reservation.money for reservation in held)
        return (not self.limit_tokens or all_tokens <= self.limit_tokens) and (not self.limit_money or all_money <= self.limit_money)

    def _sentence(self, tokens: int, money: float) -> str:
        if self.limit_tokens and self.spent_tokens + tokens > self.limit_tokens:
            spent, limit, needed, field = self.spent_tokens, self.limit_tokens, tokens, "budget_tokens"
        else:
            spent, limit, needed, field = round(self.spent_money, 4), self.limit_money, round(money, 4), "budget_money"
        return f"the budget is spent: {spent} of {field}={limit}, and the next call may need {needed}; raise {field} to continue."

    def _settle(self, reservation: Reservation, tokens: int, money: float) -> None:
        self.spent_tokens += tokens
        self.spent_money += money
        self._reserved.discard(reservation)
        if self._database is not None:
            with self._database.transaction():
                self._database.execute("UPDATE spent SET tokens = tokens + ?, money = money + ?", (tokens, money))
                self._database.execute("DELETE FROM reserved WHERE id = ?", (reservation._id,))
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def _next_settlement(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    def _read(self) -> None:
        database = self._database
        with database.transaction():
            database.execute("INSERT OR IGNORE INTO spent VALUES (1, 0, 0.0)")
            database.execute(
                "UPDATE spent SET tokens = tokens + (SELECT coalesce(sum(tokens), 0) FROM reserved), "
                "money = money + (SELECT coalesce(sum(money), 0.0) FROM reserved)"
            )
            database.execute("DELETE FROM reserved")
        ((self.spent_tokens, self.spent_money),) = database.execute("SELECT tokens, money FROM spent")

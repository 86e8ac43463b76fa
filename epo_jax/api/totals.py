"""What a client has done so far: cheap to read, for the progress bar and the metrics."""

from __future__ import annotations

import collections
import dataclasses


@dataclasses.dataclass
class Totals:
    """Counts since the client was made. Tokens and money are those of answers; what the budget holds back besides is the budget's."""

    calls: int = 0  # `complete`, cached ones included
    cached: int = 0  # answered from the cache, or by an equal call that was under way
    answered: int = 0  # answered by the server
    failed: int = 0  # calls that failed for good
    tries: int = 0  # requests sent
    retries: int = 0  # of them, those after a call's first
    asked_again: int = 0  # answers that `structured.ask` could not use
    faults: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)  # failed tries by kind (failures.KINDS)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0
    seconds_waiting: float = 0.0  # for a place, the budget, the rate limits, and between tries; summed over calls
    pauses: int = 0  # because the server failed again and again
    seconds_paused: float = 0.0  # on the clock, told when the server is back

    def as_dict(self) -> dict[str, float]:
        """All of it as plain numbers; a fault of a kind stands as `fault_KIND`, only where there was one."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "faults"}
        return values | {f"fault_{kind}": count for kind, count in sorted(self.faults.items())}

    def note(self) -> str:
        """A few words for a progress bar."""
        words = [f"{self.calls} calls"]
        if self.cached:
            words.append(f"{self.cached} cached")
        if self.retries:
            words.append(f"{self.retries} retries")
        if self.failed:
            words.append(f"{self.failed} failed")
        if self.money:
            words.append(f"{self.money:.2f} spent")
        return ", ".join(words)

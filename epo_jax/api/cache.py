"""Replies on disk, found by what was asked: an answered call is never made again, and a run can be replayed offline."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import time
from typing import Any

from epo_jax.api.database import Database

APPLICATION_ID = 0x45504F43  # "EPOC"
TABLE = (
    "replies (key TEXT PRIMARY KEY, text TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, "
    "finish_reason TEXT NOT NULL, refusal TEXT, model TEXT NOT NULL, stored_at REAL NOT NULL) WITHOUT ROWID"
)


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a model said. `cached`: it cost nothing, coming from the cache or from an equal call that was under way.

    `finish_reason` is the server's ("stop", "length" for an answer cut off at `max_tokens`, "content_filter", …; "" where it gives none).
    `refusal` is the model's sentence where it declines to answer; `text` is then usually empty. Both texts are untrusted.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    cached: bool
    finish_reason: str
    refusal: str | None


def reply_key(model: str, messages: list[dict[str, str]], parameters: dict[str, Any], schema: dict[str, Any] | None, salt: str) -> str:
    """The address of a reply: SHA-256 over all that decides it, as canonical JSON.

    The server's address is no part of it, so that a cache made against one server replays without it; the model's name is. Where one name
    stands for different weights (a local server's "default"), give each its own cache or `salt`. Equal calls that should be answered
    independently, such as samples of one prompt at a temperature above 0, need different salts.
    """
    asked = {"version": 1, "model": model, "messages": messages, "parameters": parameters, "schema": schema, "salt": salt}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class ReplyCache:
    """A sqlite file of replies; several clients and processes may share it. `offline`: nothing is written, and the client asks no server."""

    def __init__(self, path: str | pathlib.Path, *, offline: bool = False) -> None:
        self.offline = offline
        self._database = Database(path, what="reply cache", application_id=APPLICATION_ID, tables=(TABLE,), read_only=offline)

    @property
    def path(self) -> pathlib.Path:
        return self._database.path

    def find(self, key: str) -> Reply | None:
        """The reply of that key, marked as cached. Raises `UserError` where the file is damaged."""
        rows = self._database.execute("SELECT text, prompt_tokens, completion_tokens, finish_reason, refusal FROM replies WHERE key = ?", (key,))
        if not rows:
            return None
        text, prompt_tokens, completion_tokens, finish_reason, refusal = rows[0]
        texts = isinstance(text, str) and isinstance(finish_reason, str) and isinstance(refusal, str | None)
        if not (texts and isinstance(prompt_tokens, int) and isinstance(completion_tokens, int)):
            raise self._database.damaged("a reply has a field of the wrong type")
        return Reply(text, prompt_tokens, completion_tokens, True, finish_reason, refusal)

    def store(self, key: str, reply: Reply, model: str) -> Reply:
        """Keeps the reply; returns the one that the file holds now: the first, where another process was quicker."""
        values = (key, reply.text, reply.prompt_tokens, reply.completion_tokens, reply.finish_reason, reply.refusal, model, time.time())
        self._database.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        held = self.find(key)
        return reply if held is None else dataclasses.replace(held, cached=False)

    def take_over(self, path: str | pathlib.Path) -> None:
        """Keeps the replies of another cache, which nobody has open, beside its own."""
        other = Database(path, what="reply cache", application_id=APPLICATION_ID, tables=(), read_only=True)
        try:
            rows = other.execute("SELECT * FROM replies")
        finally:
            other.close()
        with self._database.transaction():
            for row in rows:
                self._database.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def __len__(self) -> int:
        return self._database.execute("SELECT count(*) FROM replies")[0][0]

    def close(self) -> None:
        self._database.close()

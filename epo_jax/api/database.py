"""How the client's sqlite files are opened: shared by processes, whole after a kill, and a damaged one told in one sentence."""

from __future__ import annotations

import contextlib
import pathlib
import sqlite3
import time
import urllib.parse
from collections.abc import Iterator

from epo_jax.errors import UserError

BUSY_S = 60.0  # how long a write waits for another process's


class Database:
    """One sqlite file of a known kind.

    Write-ahead log with `synchronous=NORMAL`: what was committed survives the end of the process, SIGKILL included; a power cut may cost
    the last commits but never the file. `application_id` marks the kind of file, so that another program's is not written into.
    """

    def __init__(self, path: str | pathlib.Path, *, what: str, application_id: int, tables: tuple[str, ...], read_only: bool = False) -> None:
        self.path, self._what = pathlib.Path(path), what
        if read_only and not self.path.is_file():
            raise UserError(f"there is no {what} {self.path}: give the file that an earlier run left.")
        with self._told():
            if not read_only:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._connect(read_only)
            try:
                self._prepare(application_id, tables, read_only)
            except BaseException:
                self._connection.close()
                raise

    def execute(self, statement: str, values: tuple = ()) -> list[tuple]:
        """All rows of one statement, committed by itself unless within `transaction`. Raises `UserError`."""
        with self._told():
            return self._connection.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All statements within, or none."""
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.rollback()
            raise
        self.execute("COMMIT")

    def close(self) -> None:
        self._connection.close()

    def damaged(self, why: object) -> UserError:
        return UserError(f"the {self._what} {self.path} is damaged ({why}): restore it, or move it away to begin another.")

    def _connect(self, read_only: bool) -> sqlite3.Connection:
        if not read_only:
            # One thread after the other uses it, but not always the same one (play_ahead.py).
            return sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        address = f"file:{urllib.parse.quote(str(self.path.absolute()))}?mode=ro"
        if not self.path.with_name(self.path.name + "-wal").exists():  # nobody writes: read it without the files that a log wants beside it
            address += "&immutable=1"
        return sqlite3.connect(address, timeout=BUSY_S, isolation_level=None, uri=True, check_same_thread=False)

    def _prepare(self, application_id: int, tables: tuple[str, ...], read_only: bool) -> None:
        (held,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (found,) = self._connection.execute("PRAGMA application_id").fetchone()
        if (held or read_only) and found != application_id:
            raise UserError(f"{self.path} is not a {self._what} but another kind of database: give another file.")
        if read_only:
            return
        self._log_ahead()
        self._connection.execute("PRAGMA synchronous=NORMAL")
        with self.transaction():
            self._connection.execute(f"PRAGMA application_id={application_id}")
            for table in tables:
                self._connection.execute(f"CREATE TABLE IF NOT EXISTS {table}")

    def _log_ahead(self) -> None:
        """Sqlite itself does not wait for another process that makes the same file a log at the same moment."""
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:  # locked, full, not allowed
            raise UserError(f"cannot use the {self._what} {self.path}: {error}.") from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise self.damaged(error) from error

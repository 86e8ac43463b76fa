"""Host data between the processes of a run: what is said here is heard by all, in the order of the program, which is the same at every process.

It goes through the key-value store of jax.distributed, in the first process's memory, and not through devices: the processes may come hours
apart, as one plays longer than another, and nothing times out or compiles for it. A process that dies meanwhile is watch.py's business.
"""

from __future__ import annotations

import itertools
import json
import time
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax._src import distributed  # the store has no public name; Orbax takes it from here too

from epo_jax.errors import UserError

T = TypeVar("T")

PREFIX = "epo_jax"
POLL_S = (0.005, 0.25)  # the first wait, and the longest

_numbers = itertools.count()
while_waiting: Callable[[], None] | None = None  # called again and again while this process waits for the others: stopping.py tells what it was asked


def count() -> int:
    """How many processes there are; it starts no backend where there is one."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def index() -> int:
    """Which of them this is."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def first() -> bool:
    """Whether this is the process that writes what there is only one of: metrics, report, exported weights."""
    return index() == 0


def gather(mine: bytes) -> list[bytes]:
    """What every process gave, by its index. All call it, in the same order, from the main thread."""
    if count() == 1:
        return [mine]
    store, number = distributed.global_state.client, next(_numbers)
    store.key_value_set_bytes(f"{PREFIX}/{number}/data/{index()}", zlib.compress(mine, 1))
    store.key_value_set(f"{PREFIX}/{number}/ready/{index()}", "")
    wait, longest = POLL_S
    while len(store.key_value_dir_get(f"{PREFIX}/{number}/ready/")) < count():  # in short waits, so that signals are heard
        if while_waiting is not None:
            while_waiting()
        time.sleep(wait)
        wait = min(2 * wait, longest)
    found = [zlib.decompress(store.key_value_try_get_bytes(f"{PREFIX}/{number}/data/{other}")) for other in range(count())]
    if number >= 2:  # everyone came to the one before, so everyone has read the one before that
        for kind in ("data", "ready"):
            store.key_value_delete(f"{PREFIX}/{number - 2}/{kind}/{index()}")
    return found


def gather_json(mine: Any) -> list[Any]:
    """As `gather`, of what JSON can say."""
    return [json.loads(each) for each in gather(json.dumps(mine).encode())]


def meet() -> None:
    """Nobody goes on before all have come."""
    gather(b"")


def agreed(work: Callable[[], T]) -> T:
    """What `work` returns here. Where it raises `UserError` at any process, all raise it; nobody goes on alone."""
    result, told = None, None
    try:
        result = work()
    except UserError as error:
        told = error
    if count() == 1:
        if told is not None:
            raise told
        return result
    raise_together(told)
    return result


def raise_together(mine: UserError | None) -> None:
    """Raises the first process's `UserError` that has one, at every process; they all call it."""
    sentences = gather_json(None if mine is None else str(mine))
    for process, sentence in enumerate(sentences):
        if sentence is not None:
            raise UserError(f"process {process} of {count()}: {sentence}") from mine


def by_first(work: Callable[[], T]) -> T:
    """What `work` returns at the first process, which alone does it: something that JSON can say. Its `UserError` is everybody's."""
    if count() == 1:
        return work()
    result = agreed(work if first() else lambda: None)
    return gather_json(result)[0]

"""A process of a run that does one thing, for tests: python -m tests.hosts.member --config=... as `epo_jax.train` is started."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import sys
import time

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from configs.defaults import get_defaults
from epo_jax import command_line, run_folder
from epo_jax.errors import UserError
from epo_jax.hosts import exchange
from epo_jax.hosts.joining import joined
from epo_jax.mesh import make_mesh
from tests.hosts.learning import initial, learned, on_host

TASK = flags.DEFINE_string("task", "", "What to do: a function of this module.")
OUTPUT = flags.DEFINE_string("output", "", "A file that `learn` leaves.")
DISTRIBUTED = config_flags.DEFINE_config_dict("config", ConfigDict({"distributed": get_defaults().distributed}))


def main() -> None:
    with joined(DISTRIBUTED.value.distributed) as stop:
        globals()[TASK.value](stop)


def tell(what: object) -> None:
    print(json.dumps(what), flush=True)


def exchanges(stop) -> None:
    """Every kind of exchange, more of them than are kept, and of more bytes than a message usually has."""
    index = exchange.index()
    rounds = [exchange.gather_json({"from": index, "round": round}) for round in range(5)]
    large = exchange.gather(np.random.default_rng(index).bytes(6_000_000))
    made = exchange.by_first(lambda: ["made by", exchange.index()])
    try:
        exchange.agreed(lambda: refuse() if index == 1 else "fine")
        refused = ""
    except UserError as error:
        refused = str(error)
    whole = [part == np.random.default_rng(other).bytes(6_000_000) for other, part in enumerate(large)]
    tell({"rounds": rounds, "whole": whole, "made": made, "refused": refused})


def refuse() -> None:
    raise UserError("no such weights.")


def learn(stop) -> None:
    """The steps of learning.py; and copies on a mesh that has the devices of the processes in turns, as a TPU's topology may."""
    found = learned(make_mesh({"fsdp": -1}))
    in_turns = make_mesh({"fsdp": -1}, devices=list(np.array(jax.devices()).reshape(exchange.count(), -1).T.flat))
    copied = on_host(initial(in_turns), in_turns)
    for name in copied:
        np.testing.assert_array_equal(copied[name], copied[name.replace("own.", "params.")])
    if exchange.first():
        np.savez(OUTPUT.value, **found)


def lose(stop) -> None:
    """The last process is killed while the others wait for it."""
    exchange.meet()
    tell("met")
    if exchange.index() == exchange.count() - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    exchange.meet()


def lose_the_first(stop) -> None:
    exchange.meet()
    tell("met")
    if exchange.first():
        os.kill(os.getpid(), signal.SIGKILL)
    exchange.meet()


def mistake(stop) -> None:
    """A process alone finds out that something is missing."""
    exchange.meet()
    if exchange.index() == 1:
        refuse()
    exchange.meet()


def bug(stop) -> None:
    exchange.meet()
    if exchange.index() == 1:
        raise KeyError("a bug")
    exchange.meet()


def stop_together(stop) -> None:
    """One process is asked to stop; every one says before which step it does. A gathering stands for the collectives of a step."""
    if exchange.index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    steps = 0
    while not stop.before_step():
        exchange.meet()
        steps += 1
    tell({"steps": steps, "requested": stop.requested})
    sys.exit(130)


def wait_and_be_asked(stop) -> None:
    """One process has played its share, waits for the other, and is asked to stop there: the other, in the middle of its own, hears of it."""
    if exchange.index() == 1:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    else:
        deadline = time.monotonic() + 60
        while not stop.requested and time.monotonic() < deadline:
            time.sleep(0.01)
    tell({"requested": exchange.gather_json(stop.requested)})
    sys.exit(130)


def ask_while_stepping(stop) -> None:
    """A thread that plays ahead is the one that is asked; every process says before which step it stops, and whether the thread told by itself."""
    stop.before_step()
    if exchange.index() == 1:
        stop.call_off()
        with concurrent.futures.ThreadPoolExecutor() as threads:
            assert threads.submit(lambda: stop.requested).result() and not stop._published
    exchange.meet()
    steps = 1
    while not stop.before_step():
        exchange.meet()
        steps += 1
    tell({"steps": steps})
    sys.exit(130)


def share_no_folder(stop) -> None:
    """Each process has another folder at the run's path, as where a disk is each machine's own."""
    run_folder.SEEN_WITHIN_S = 0.5
    config = get_defaults()
    for name in ("shared", f"own_{exchange.index()}"):
        os.makedirs(os.path.join(OUTPUT.value, name), exist_ok=True)
        os.chdir(os.path.join(OUTPUT.value, name))
        config.workdir = "run"
        try:
            run_folder.RunFolder.open(config)
            tell({name.partition("_")[0]: "opened"})
        except UserError as error:
            tell({name.partition("_")[0]: str(error)})


if __name__ == "__main__":
    command_line.run(main)

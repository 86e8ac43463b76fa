"""How a process joins the others of its run, and how it leaves: jax.distributed, and the watch that ends everyone where one dies.

    config.distributed.coordinator   auto       as the cluster says: Cloud TPU, SLURM, Open MPI, Kubernetes (JAX finds it); alone where nothing says
                                     none       this process alone, whatever the cluster says
                                     HOST:PORT  of the first process, with `processes` (how many) and `process` (which of them this is, from 0)
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import clusters, distributed  # what JAX knows of clusters has no public name
from jax.errors import JaxRuntimeError
from ml_collections import ConfigDict

from epo_jax.errors import TryAgain, UserError
from epo_jax.hosts import exchange, watch
from epo_jax.hosts.stopping import SharedStop
from epo_jax.interrupt import StopRequest
from epo_jax.report.console import console

WATCH_KEY = f"{exchange.PREFIX}/watch"
HEARTBEAT_S = 50  # jax.distributed's: later than the watch, and still within a minute


@contextlib.contextmanager
def joined(settings: ConfigDict) -> Iterator[StopRequest]:
    """All of a run happens within; yields its request to stop. Joins the other processes, if there are any, before JAX is used at all.

    With several, all leave together; a `UserError` ends this process at once with its exit code, and any other error with 1, and the others with it.
    Raises `UserError` where the settings are not possible, `TryAgain` where the others are not found; where they do not come within
    `start_timeout_s`, it says so and ends with the exit code of `TryAgain`.
    """
    arguments = _arguments(settings)
    if arguments is None:
        with StopRequest() as stop:
            yield stop
        return
    _initialize(arguments, settings.start_timeout_s)
    console.quiet = not exchange.first()
    own = _OwnWatch()
    try:
        with SharedStop() as stop:
            yield stop
    except SystemExit:  # agreed by all, such as a request to stop that was honoured
        _leave(own)
        raise
    except UserError as error:
        own.tell_end(error.exit_code, str(error))
        print(f"epo_jax: {error}", file=sys.stderr, flush=True)
        _end_now(error.exit_code)
    except BaseException as error:
        # It may be but another process's end, of which the watch has better words: it is waited for, longest where JAX itself was refused.
        time.sleep(watch.SILENCE_S + watch.GRACE_S if isinstance(error, JaxRuntimeError) else 1.0)
        traceback.print_exc()
        own.tell_end(1, f"{type(error).__name__}: {error}".partition("\n")[0][:500])
        _end_now(1)
    else:
        _leave(own)


def _arguments(settings: ConfigDict) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is to be told; None where this process is alone."""
    where, count, index = settings.coordinator, settings.processes, settings.process
    if where in ("auto", "none"):
        if count or index >= 0:
            raise UserError(f"distributed.coordinator is {where}: with processes or process given, name the first process, as in host-0:8476.")
        return {} if where == "auto" and _clustered() else None
    host, _, port = where.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"distributed.coordinator is {where!r}: give HOST:PORT of the first process, auto, or none.")
    if count < 1 or not 0 <= index < count:
        raise UserError(f"distributed.process is {index} of {count} processes: give processes (how many) and process (from 0 to processes - 1).")
    if count == 1:
        return None
    return {"coordinator_address": where, "num_processes": count, "process_id": index, "cluster_detection_method": "deactivate"}


def _clustered() -> bool:
    """Whether JAX finds a cluster around this process in which there are others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = next((each for each in clusters.ClusterEnv._cluster_types if not each.opt_in_only_method and each.is_env_present()), None)
            return found is not None and found.get_process_count() > 1
        except Exception as error:  # the cluster's own services, which may answer anything
            raise UserError(
                f"cannot find out which processes belong together ({str(error).strip().splitlines()[0]}): say it with "
                "--config.distributed.coordinator=HOST:PORT, processes and process, or none for this process alone."
            ) from error


def _initialize(arguments: dict[str, Any], timeout_s: int) -> None:
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is hosts/stopping.py's
    missed = threading.Timer(timeout_s, _end_missed, (timeout_s,))  # JAX would abort the process instead of raising
    missed.daemon = True
    missed.start()
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=timeout_s + 60, heartbeat_timeout_seconds=HEARTBEAT_S)
    except (RuntimeError, ValueError, OSError) as error:
        kind = UserError if isinstance(error, ValueError) else TryAgain  # what the cluster says makes no sense, or somebody is not there
        raise kind(f"the processes of this run cannot find each other ({str(error).strip().splitlines()[0]}).") from error
    finally:
        missed.cancel()


def _end_missed(timeout_s: int) -> None:
    sentence = f"the other processes of this run did not come within {timeout_s} s: start one on every host, and see that they reach the first one."
    print(f"epo_jax: {sentence}", file=sys.stderr, flush=True)
    _end_now(TryAgain.exit_code)


def _leave(own: _OwnWatch) -> None:
    exchange.meet()
    own.tell_done()
    jax.distributed.shutdown()


def _end_now(code: int) -> None:
    """Without jax.distributed's farewell, for which it would wait until all the others came."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _OwnWatch:
    """The watch of this process, connected to the first one's; it ends with it."""

    def __init__(self) -> None:
        store = distributed.global_state.client
        self._process = subprocess.Popen(
            [sys.executable, watch.__file__, str(exchange.index()), str(exchange.count())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,  # Ctrl-C is for the run
        )  # fmt: skip
        if exchange.first():
            token = secrets.token_hex(16)
            self._say({"token": token})
            port = json.loads(self._process.stdout.readline())["port"]
            host = distributed.global_state.coordinator_address.rpartition(":")[0].strip("[]")
            store.key_value_set(WATCH_KEY, json.dumps({"token": token, "address": host, "port": port}))
        else:
            self._say(json.loads(store.blocking_key_value_get(WATCH_KEY, int(1000 * 2 * watch.SILENCE_S))))
            self._process.stdout.readline()  # it watches, or has said why it cannot
        self._heard = threading.Event()
        threading.Thread(target=self._obey, name="watch", daemon=True).start()
        exchange.meet()

    def tell_end(self, code: int, why: str) -> None:
        """This process ends, and why; it must not be another's fault. Returns when the others have heard of it, and may have ended."""
        self._say({"code": code, "why": why})
        self._heard.wait(3 * watch.GRACE_S)

    def tell_done(self) -> None:
        """The run is over, here and everywhere."""
        self._write("done")
        self._process.wait(3 * watch.GRACE_S)

    def _say(self, message: dict[str, Any]) -> None:
        self._write(json.dumps(message))

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError):  # a watch that was killed
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _obey(self) -> None:
        for line in self._process.stdout:
            message = json.loads(line)
            if "end" in message:
                os._exit(message["end"])
            if "heard" in message:
                self._heard.set()
        self._heard.set()  # nobody is left to tell

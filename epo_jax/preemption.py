"""Notices of a machine that is about to be taken away: a run that hears one saves and stops, as at SIGTERM.

    gce    Google Cloud (TPU VMs too): its metadata server says of a spot machine that it was chosen, and of any machine that maintenance is about to
           end it (https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice). The server is where GCE_METADATA_HOST says,
           as for Google's own libraries.

SLURM, Kubernetes and `docker stop` send SIGTERM, which needs no notice; a spot machine of Google Cloud has 30 seconds from the notice to its end.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import threading
import urllib.request
from collections.abc import Iterator

from epo_jax.errors import UserError
from epo_jax.interrupt import StopRequest
from epo_jax.report.console import say

NOTICES = ("none", "gce")
METADATA_HOST = "metadata.google.internal"
# What is asked for, and the answer that means the end (others: FALSE; NONE, MIGRATE_ON_HOST_MAINTENANCE).
FATAL = {"instance/preempted": "TRUE", "instance/maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE"}
LOOK_S = 1.0  # seconds between two looks
ANSWER_S = 2.0  # seconds that an answer may take
LONGEST_ANSWER = 100  # bytes


def check(notice: str) -> None:
    """Raises `UserError` for a kind of notice that is not known."""
    if notice not in NOTICES:
        raise UserError(f"preemption_notice is {notice!r}: choose one of {', '.join(NOTICES)}.")


@contextlib.contextmanager
def watched(notice: str, stop: StopRequest, *, look_s: float = LOOK_S) -> Iterator[None]:
    """While the body runs, a notice of this kind (`config.preemption_notice`) sets `stop.requested`. A server that once fails is asked again.

    Raises `UserError` for an unknown kind, and where there is no such server at the start.
    """
    check(notice)
    if notice == "none":
        yield
        return
    try:
        for entry in FATAL:
            _ask(entry)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"preemption_notice is gce, and no metadata server answers at {_host()} ({error}): this is no machine of Google Cloud; set it to none."
        ) from error
    ended = threading.Event()
    watching = threading.Thread(target=_watch, args=(stop, ended, look_s), name="preemption notices", daemon=True)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()


def _watch(stop: StopRequest, ended: threading.Event, look_s: float) -> None:
    while not ended.is_set():
        for entry, fatal in FATAL.items():
            with contextlib.suppress(OSError, http.client.HTTPException):  # it is asked again soon
                if _ask(entry) == fatal:
                    say(f"Google Cloud is about to take this machine away ({entry} is {fatal}): saving.")
                    stop.requested = True
                    return
        ended.wait(look_s)


def _ask(entry: str) -> str:
    request = urllib.request.Request(f"http://{_host()}/computeMetadata/v1/{entry}", headers={"Metadata-Flavor": "Google"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the address is the machine's own: no proxy knows it
    with opener.open(request, timeout=ANSWER_S) as response:
        return response.read(LONGEST_ANSWER).decode(errors="replace").strip()


def _host() -> str:
    return os.environ.get("GCE_METADATA_HOST") or METADATA_HOST

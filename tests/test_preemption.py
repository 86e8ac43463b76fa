"""A machine's notice, from a metadata server on loopback, asks a run to stop; and nothing else does."""

from __future__ import annotations

import http.server
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from epo_jax import preemption
from epo_jax.errors import UserError
from epo_jax.interrupt import StopRequest


class Metadata(http.server.ThreadingHTTPServer):
    """Google's metadata server, as far as it is asked: `answers` may be changed at any time; None fails."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, str | None] = {"instance/preempted": "FALSE", "instance/maintenance-event": "NONE"}
        self.asked = threading.Semaphore(0)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answer = self.server.answers.get(self.path.removeprefix("/computeMetadata/v1/"))
        if answer is None or self.headers["Metadata-Flavor"] != "Google":  # the real one refuses requests without it
            self.send_error(503)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer.encode())
        self.server.asked.release()

    def log_message(self, *_: object) -> None:
        pass


class Stop(StopRequest):
    """Tells when it was asked."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        super().__init__()

    @property
    def requested(self) -> bool:
        return self.asked.is_set()

    @requested.setter
    def requested(self, value: bool) -> None:
        if value:
            self.asked.set()


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    with Metadata() as server:
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "entry, harmless, fatal",
    [
        ("instance/preempted", "FALSE", "TRUE"),
        ("instance/maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE", "TERMINATE_ON_HOST_MAINTENANCE"),
    ],
)
def test_a_notice_asks_to_stop(metadata, entry, harmless, fatal, capsys):
    stop = Stop()
    with preemption.watched("gce", stop, look_s=0.001):
        for answer in (harmless, "what?", None):  # nothing of these is a notice, nor is a server that fails for a while
            metadata.answers[entry] = answer
            for _ in range(8):
                assert metadata.asked.acquire(timeout=20)
            assert not stop.requested
        metadata.answers[entry] = fatal
        assert stop.asked.wait(20)
    assert f"{entry} is {fatal}" in capsys.readouterr().out.replace("\n", " ")
    assert all(thread.name != "preemption notices" for thread in threading.enumerate())


def test_the_signals_that_follow_a_notice_do_not_break_off_what_it_asked_for(metadata):
    """A spot machine's own shutdown sends SIGTERM after the notice, while the run is saving; only a second Ctrl-C leaves at once."""
    with StopRequest() as stop, preemption.watched("gce", stop, look_s=0.001):
        metadata.answers["instance/preempted"] = "TRUE"
        for thread in threading.enumerate():
            if thread.name == "preemption notices":
                thread.join(20)  # it ends with the notice
        assert stop.requested
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(20)


def test_it_must_be_known_and_there(monkeypatch):
    with pytest.raises(UserError, match="choose one of none, gce"), preemption.watched("aws", Stop()):
        pass
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:1")
    with pytest.raises(UserError, match="no metadata server answers at 127.0.0.1:1"), preemption.watched("gce", Stop()):
        pass
    with preemption.watched("none", Stop()):
        assert all(thread.name != "preemption notices" for thread in threading.enumerate())

"""An OpenAI-compatible server on loopback that answers as it is told: well, badly, or not at all. Real sockets, one thread a connection.

    with ScriptedServer() as server:
        server.then(too_many(retry_after="2"), reset(), good("a mug"))   # the next three requests, in the order of their arrival
        ...                                                              # after these: server.otherwise(body), good("ok") by default
        server.requests                                                  # what was asked: path, headers, body
        server.served                                                    # how often each kind of answer was given

`server.otherwise` may be set to any function of a request's body (a dict) that returns one of the answers below; it runs in many threads.
So does `server.on_hang`, which is told the body of a request that gets no answer.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import socket
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclasses.dataclass(frozen=True)
class Canned:
    """One answer. `ending`: whole | half (the body stops in its middle) | reset (before an answer) | hang (no answer until the server stops)."""

    kind: str
    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    ending: str = "whole"


def good(text: str = "ok", *, prompt_tokens: int = 10, completion_tokens: int = 5, finish_reason: str = "stop", usage: bool = True) -> Canned:
    return _completion("good", {"role": "assistant", "content": text, "refusal": None}, prompt_tokens, completion_tokens, finish_reason, usage)


def refusal(text: str = "I cannot help with that.") -> Canned:
    return _completion("refusal", {"role": "assistant", "content": None, "refusal": text}, 10, 5, "stop", True)


def status(code: int, message: str = "no", *, error: dict[str, Any] | None = None, **headers: str) -> Canned:
    """An error as OpenAI words it; `headers` are written with underscores, `error` is merged into the error's fields."""
    fields = {"message": message, "type": "some_error", "param": None, "code": None} | (error or {})
    return Canned(str(code), code, json.dumps({"error": fields}).encode(), tuple((name.replace("_", "-"), value) for name, value in headers.items()))


def too_many(retry_after: str | None = None) -> Canned:
    return status(429, "slow down", **({} if retry_after is None else {"Retry_After": retry_after}))


def reset() -> Canned:
    return Canned("reset", ending="reset")


def hang() -> Canned:
    return Canned("hang", ending="hang")


def half_body() -> Canned:
    return dataclasses.replace(good("an answer that will not arrive whole"), kind="half_body", ending="half")


def invalid_json() -> Canned:
    return Canned("invalid_json", body=b'{"choices": [{"message": {"content": "ok"')


def wrong_shape() -> Canned:
    return Canned("wrong_shape", body=b'{"choices": {"text": ["ok"]}, "usage": 7}')


def no_choice() -> Canned:
    return Canned("no_choice", body=b'{"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 0}}')


def too_long() -> Canned:
    """10 MB of well-formed answer."""
    return dataclasses.replace(good("x" * 10_000_000), kind="too_long")


def _completion(kind: str, message: dict[str, Any], prompt_tokens: int, completion_tokens: int, finish_reason: str, usage: bool) -> Canned:
    data: dict[str, Any] = {"id": "c", "object": "chat.completion", "created": 0, "model": "m"}
    data["choices"] = [{"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}]
    if usage:
        data["usage"] = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": prompt_tokens + completion_tokens}
    return Canned(kind, body=json.dumps(data).encode())


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class ScriptedServer:
    """See the module's docstring. `url` is what goes into `base_url`."""

    def __init__(self) -> None:
        self.otherwise: Callable[[dict[str, Any]], Canned] = lambda body: good()
        self.on_hang: Callable[[dict[str, Any]], None] = lambda body: None
        self.requests: list[Asked] = []
        self.served: collections.Counter[str] = collections.Counter()
        self.most_at_once = 0  # requests
        self._at_once = 0
        self._script: collections.deque[Canned] = collections.deque()
        self._lock, self._stopping = threading.Lock(), threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.script = self
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def then(self, *answers: Canned) -> None:
        """These answer the next requests that no earlier `then` answers."""
        with self._lock:
            self._script.extend(answers)

    @property
    def open_connections(self) -> int:
        return len(self._server._connections)

    def __enter__(self) -> ScriptedServer:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.close_connections()
        self._server.server_close()  # joins the threads of the connections
        self._thread.join()

    def _answer(self, asked: Asked) -> Canned:
        with self._lock:
            self.requests.append(asked)
            answer = self._script.popleft() if self._script else None
        answer = answer or self.otherwise(asked.body)
        with self._lock:
            self.served[answer.kind] += 1
        return answer

    def _count_at_once(self, change: int) -> None:
        with self._lock:
            self._at_once += change
            self.most_at_once = max(self.most_at_once, self._at_once)


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = False
    script: ScriptedServer

    def __init__(self, *arguments: Any) -> None:
        self._connections: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)  # quiet about a socket that is closed already

    def close_connections(self) -> None:
        """Wakes the threads that wait for the next request of a connection kept alive."""
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed meanwhile

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle of an answer is what many of these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        script = self.server.script
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        script._count_at_once(+1)
        try:
            answer = script._answer(Asked(self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            if answer.ending == "hang":
                script.on_hang(body)
            self._give(answer)
        finally:
            script._count_at_once(-1)

    def _give(self, answer: Canned) -> None:
        if answer.ending == "hang":
            self.server.script._stopping.wait()
            self.close_connection = True
            return
        if answer.ending == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing sends RST
            for each in (self.rfile, self.wfile, self.connection):
                each.close()
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(answer.body))), *answer.headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body if answer.ending == "whole" else answer.body[: len(answer.body) // 2])
        if answer.ending == "half":
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing on the test's standard error."""

"""What `/metrics` tells, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric

from epo_jax.generate.engine import Engine
from epo_jax.serve.replies import Usage

SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
ENGINE_COUNTERS = {
    "compilations": "Programs that the engine compiled.",
    "decode_steps": "Steps of the decode batch, whatever its rows.",
    "decode_tokens": "Tokens that were sampled.",
    "prefill_tokens": "Tokens of prompts that were read.",
}


class Measures:
    """The counts of one server, in a registry of its own. A label never holds a client's text."""

    def __init__(self, engine: Engine, queue_length: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("epo_requests", "Requests by path and status.", ["path", "status"], registry=self.registry)
        self._tokens = Counter("epo_tokens", "Tokens of answered requests.", ["kind"], registry=self.registry)
        self._seconds = Histogram("epo_request_seconds", "From a chat request's arrival to its last byte.", buckets=SECONDS, registry=self.registry)
        Gauge("epo_queue_length", "Replies that wait for a slot.", registry=self.registry).set_function(queue_length)
        Gauge("epo_slots_busy", "Slots that are sampled for.", registry=self.registry).set_function(lambda: engine.busy_slots)
        Gauge("epo_slots", "Slots in all.", registry=self.registry).set(engine.slots)
        self.registry.register(_EngineCounters(engine))

    def answered(self, path: str, status: int, seconds: float | None) -> None:
        """A request has ended; `seconds` for a chat request."""
        self._requests.labels(path, str(status)).inc()
        if seconds is not None:
            self._seconds.observe(seconds)

    def used(self, usage: Usage) -> None:
        self._tokens.labels("prompt").inc(usage.prompt_tokens)
        self._tokens.labels("completion").inc(usage.completion_tokens)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _EngineCounters:
    """The engine's own counts, read when they are asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats
        for name, meaning in ENGINE_COUNTERS.items():
            yield CounterMetricFamily(f"epo_engine_{name}", meaning, value=stats[name])

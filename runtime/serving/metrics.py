"""The metrics of the server, for Prometheus."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from controlnext.runtime.batching.observer import Observer, Phase

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
"""Upper bounds of the histograms of seconds: a step of a small model to a long wait."""
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


class Outcome(StrEnum):
    """How a request ended."""

    OK = "ok"
    INVALID = "invalid"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @classmethod
    def of(cls, status: int) -> Outcome:
        """Return the outcome of a response with this HTTP status."""
        if status in (429, 503):
            return cls.REFUSED
        return cls.OK if status < 400 else cls.INVALID if status < 500 else cls.FAILED


class ModelState(Protocol):
    """The state of a model: its requests that wait and that are at work, and bytes of its loaded engines."""

    @property
    def waiting(self) -> int:
        """The number of requests that wait."""

    @property
    def running(self) -> int:
        """The number of requests at work."""

    @property
    def memory(self) -> int:
        """The bytes that the engines took when they were loaded; 0 while they are not."""


class Metrics:
    """The server's metrics in a registry of their own.

    Values of the label ``model`` are names of served bundles, those of ``route`` paths of the routes, so that
    no request can add to their number.
    """

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self._requests = Counter(
            "controlnext_requests",
            "Answered requests.",
            ["route", "model", "outcome"],
            registry=own,
        )
        model = ["model"]
        self._waiting = Gauge("controlnext_requests_waiting", "Requests that wait.", model, registry=own)
        self._running = Gauge("controlnext_requests_running", "Requests at work.", model, registry=own)
        self._memory = Gauge(
            "controlnext_engine_memory_bytes",
            "Memory that the engines took when they were loaded; 0 while they are not.",
            model,
            registry=own,
        )
        self.rows = Histogram(
            "controlnext_run_rows", "Rows in a run of the denoiser.", model, buckets=ROWS, registry=own
        )
        self.steps = Counter("controlnext_steps", "Denoising steps of all requests.", model, registry=own)
        self.phases = Histogram(
            "controlnext_phase_seconds",
            "Seconds of a request by phase: waiting, encoding, denoising, decoding.",
            ["model", "phase"],
            buckets=SECONDS,
            registry=own,
        )

    def count(self, route: str, model: str, outcome: Outcome) -> None:
        """Count a request that was answered; ``model`` is empty where none was asked for."""
        self._requests.labels(route, model, outcome.value).inc()

    def watch(self, model: str, state: ModelState) -> None:
        """Show the state of a model, which is asked whenever the metrics are read."""
        self._waiting.labels(model).set_function(lambda: state.waiting)
        self._running.labels(model).set_function(lambda: state.running)
        self._memory.labels(model).set_function(lambda: state.memory)

    def observer(self, model: str) -> Observer:
        """Return the observer of the batcher of ``model``."""
        return _MetricsObserver(self, model)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format, of :attr:`content_type`."""
        return generate_latest(self.registry)


class _MetricsObserver(Observer):
    def __init__(self, metrics: Metrics, model: str) -> None:
        self._rows, self._steps = metrics.rows.labels(model), metrics.steps.labels(model)
        self._phases = {phase: metrics.phases.labels(model, phase.value) for phase in Phase}

    def ran(self, requests: int, rows: int, seconds: float) -> None:  # noqa: ARG002
        self._rows.observe(rows)
        self._steps.inc(requests)

    def spent(self, phase: Phase, seconds: float) -> None:
        self._phases[phase].observe(seconds)

"""Metrics for Prometheus: an observer that counts what a guard judged, and what the server answered."""

from __future__ import annotations

import time

from guardreasoner_guard.errors import GuardTimeout, MissingExtra
from guardreasoner_guard.exchange import Exchange
from guardreasoner_guard.verdict import TASKS, Verdict

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
    from prometheus_client.exposition import CONTENT_TYPE_LATEST
except ImportError:
    raise MissingExtra("prometheus-client", "server") from None
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PATHS = frozenset({"/v1/moderations", "/v1/guard", "/v1/chat/completions", "/v1/models", "/healthz", "/readyz"})
"""Paths that are counted by name; others may hold anything."""


class Metrics:
    """Counts checks: `GuardReasonerGuard(observers=(metrics,))`. No text stands in them.

    A stream is checked several times, and each check is counted.

    Args:
        registry: Where they are registered; one of its own where left out, with figures of the process.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        if registry is None:
            registry = CollectorRegistry()
            ProcessCollector(registry=registry)
        self.registry = registry
        name = "guardreasoner"
        self._checks = Counter(
            f"{name}_checks", "Checks, by what came of them: passed, blocked, shadowed, failure, timeout, error.",
            ["outcome", "mode"], registry=registry,
        )  # fmt: skip
        self._labels = Counter(f"{name}_labels", "Labels that were found.", ["task", "label"], registry=registry)
        self._seconds = Histogram(
            f"{name}_check_seconds", "Seconds a check took; not of those that were remembered.", ["mode"],
            registry=registry, buckets=_SECONDS,
        )  # fmt: skip
        self._tokens = Counter(f"{name}_tokens", "Tokens the model read and wrote.", ["kind"], registry=registry)
        self._remembered = Counter(f"{name}_remembered", "Checks that cost nothing: reached before.", registry=registry)
        self._inconsistent = Counter(
            f"{name}_inconsistent", "Verdicts in which score and reasoning disagree.", registry=registry
        )
        self.answers = Counter(f"{name}_http_answers", "Answers of the server.", ["path", "status"], registry=registry)
        self.in_flight = Gauge(f"{name}_http_in_flight", "Requests under way.", registry=registry)
        self.answer_seconds = Histogram(
            f"{name}_http_seconds", "Seconds until a request was answered in full.", ["path"], registry=registry,
            buckets=_SECONDS,
        )  # fmt: skip

    def __call__(self, exchange: Exchange, attempt: Verdict | Exception) -> None:
        """Counts one check."""
        if not isinstance(attempt, Verdict):
            self._checks.labels("timeout" if isinstance(attempt, GuardTimeout) else "error", "none").inc()
            return
        self._checks.labels(_outcome(attempt), attempt.mode).inc()
        for task in TASKS:
            if (label := getattr(attempt, task)) is not None:
                self._labels.labels(task, label).inc()
        if not attempt.consistent:
            self._inconsistent.inc()
        if attempt.remembered:
            self._remembered.inc()
            return
        self._seconds.labels(attempt.mode).observe(attempt.usage.latency_ms / 1000)
        self._tokens.labels("read").inc(attempt.usage.prompt_tokens)
        self._tokens.labels("written").inc(attempt.usage.generated_tokens)

    def page(self) -> bytes:
        """All of them in Prometheus's text form; see `CONTENT_TYPE`."""
        return generate_latest(self.registry)


class Counted:
    """ASGI middleware that counts requests, those that are refused too."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on and counts its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in _PATHS else "other"
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        start = time.perf_counter()
        with self._metrics.in_flight.track_inprogress():
            try:
                await self.app(scope, receive, watched)
            finally:
                self._metrics.answers.labels(path, str(status)).inc()
                self._metrics.answer_seconds.labels(path).observe(time.perf_counter() - start)


def _outcome(verdict: Verdict) -> str:
    if verdict.outcome != "verdict":
        return verdict.outcome
    return "blocked" if verdict.blocked else "shadowed" if verdict.shadowed else "passed"

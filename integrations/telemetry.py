"""Every check as an OpenTelemetry span, and in metrics: an observer of the guard."""

from __future__ import annotations

import time

from guardreasoner_guard import __version__
from guardreasoner_guard.errors import MissingExtra
from guardreasoner_guard.exchange import Exchange
from guardreasoner_guard.verdict import TASKS, Verdict

from . import telemetry_names as names
from .wordless import error_type, wordless

try:
    from opentelemetry.metrics import MeterProvider, get_meter
    from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider, get_tracer
    from opentelemetry.util.types import AttributeValue
except ImportError as error:
    raise MissingExtra("opentelemetry-api", "telemetry") from error

_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
"""Buckets for durations; those that OpenTelemetry has by default are for milliseconds."""


class Telemetry:
    """Tells OpenTelemetry of every check: `GuardReasonerGuard(observers=[Telemetry()])`.

    A check becomes a span under the current one, from when it began (its end less its `latency_ms`), and counts in
    metrics: checks by outcome, durations, tokens. A block is no error; a check that reached no verdict is. Exporters
    are the application's own: without an OpenTelemetry SDK nothing is sent.

    Args:
        name: Of the guard, where there are several.
        texts: Whether spans hold what was judged, and reasons, steps and messages that may quote it.
        tracer_provider: In place of the global one.
        meter_provider: In place of the global one.
    """

    def __init__(
        self,
        name: str = "GuardReasonerGuard",
        *,
        texts: bool = False,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self.name = name
        self.texts = texts
        self._tracer = get_tracer(names.SCOPE, __version__, tracer_provider)
        meter = get_meter(names.SCOPE, __version__, meter_provider)
        self._checks = meter.create_counter(names.CHECKS, "{check}", "Checks by what came of them.")
        self._duration = meter.create_histogram(
            names.DURATION, "s", "Duration of a check.", explicit_bucket_boundaries_advisory=_SECONDS
        )
        self._tokens = meter.create_counter(names.TOKENS, "{token}", "Tokens that the guard's model read and wrote.")

    def __call__(self, exchange: Exchange, attempt: Verdict | Exception) -> None:
        """Tells of one check."""
        end = time.time_ns()
        milliseconds = attempt.usage.latency_ms if isinstance(attempt, Verdict) else 0.0
        attributes = self._attributes(exchange, attempt)
        span = self._tracer.start_span(
            names.span(self.name),
            kind=SpanKind.INTERNAL,
            attributes=attributes,
            start_time=end - int(milliseconds * 1e6),
        )
        if names.ERROR in attributes:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)
        self._count(attempt, attributes, milliseconds / 1000)

    def _attributes(self, exchange: Exchange, attempt: Verdict | Exception) -> dict[str, AttributeValue]:
        found: dict[str, AttributeValue | None] = {
            names.OPERATION: names.APPLY_GUARDRAIL,
            names.PROVIDER: names.GUARDREASONER,
            names.GUARD: self.name,
            names.SOURCE: "request" if exchange.response is None else "response",
            names.ERROR: error_type(attempt),
            names.OUTCOME: attempt.outcome if isinstance(attempt, Verdict) else "error",
        }
        if isinstance(attempt, Verdict):
            found |= {
                names.RESULT_TYPE: "blocked",
                names.RESULT_VALUE: str(attempt.blocked).lower(),
                names.REASON: wordless(attempt)["reasons"],
                names.MODEL: attempt.model,
                names.INPUT_TOKENS: attempt.usage.prompt_tokens,
                names.OUTPUT_TOKENS: attempt.usage.generated_tokens,
                names.BLOCKED: attempt.blocked,
                names.SHADOWED: attempt.shadowed,
                names.MODE: attempt.mode,
                names.CONSISTENT: attempt.consistent,
                names.WINDOWS: attempt.windows,
                names.REMEMBERED: attempt.remembered,
                **{names.label(task): getattr(attempt, task) for task in TASKS},
                **{names.score(task): score for task, score in attempt.scores.items()},
            }
        if self.texts:
            found |= _texts(exchange, attempt)
        return {name: value for name, value in found.items() if value is not None}

    def _count(self, attempt: Verdict | Exception, attributes: dict[str, AttributeValue], seconds: float) -> None:
        kinds = (names.GUARD, names.MODEL, names.OUTCOME, names.BLOCKED, names.SHADOWED, names.ERROR)
        kind = {name: attributes[name] for name in kinds if name in attributes}
        self._checks.add(1, kind)
        if isinstance(attempt, Verdict):
            self._duration.record(seconds, kind)
            who = {name: attributes[name] for name in (names.GUARD, names.MODEL)}
            self._tokens.add(attempt.usage.prompt_tokens, {**who, names.TOKEN_TYPE: "input"})
            self._tokens.add(attempt.usage.generated_tokens, {**who, names.TOKEN_TYPE: "output"})


def _texts(exchange: Exchange, attempt: Verdict | Exception) -> dict[str, AttributeValue | None]:
    found: dict[str, AttributeValue | None] = {
        names.REQUEST_TEXT: _sendable(exchange.request),
        names.RESPONSE_TEXT: None if exchange.response is None else _sendable(exchange.response),
    }
    if isinstance(attempt, Exception):
        return {**found, names.ERROR_TEXT: _sendable(str(attempt))}
    return {
        **found,
        names.REASONS_TEXT: _sendable(attempt.reasons),
        names.REASONING_TEXT: [_sendable(step.text) for step in attempt.reasoning],
        names.ERROR_TEXT: None if attempt.error is None else _sendable(attempt.error),
    }


def _sendable(text: str) -> str:
    """Half a surrogate pair is no UTF-8, and an exporter would lose the whole batch over it."""
    return text.encode("utf-8", "replace").decode("utf-8")

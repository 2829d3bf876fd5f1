"""OpenTelemetry sees every check, true in time and place, and not a word of what was judged unless that is asked for."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from typing import Any

import pytest
from guardreasoner_guard.integrations import telemetry_names as names
from guardreasoner_guard.integrations.telemetry import Telemetry
from langchain_core.runnables import RunnableLambda
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from guardreasoner_guard import Blocked, EngineError, GuardReasonerGuard, Policy, ScriptedEngine


class Collected:
    """A guard, and what an application's OpenTelemetry has got of it."""

    def __init__(self, *, texts: bool = False, engine: ScriptedEngine | None = None, **settings: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = provider.get_tracer("application")
        meters = MeterProvider([self._reader])
        telemetry = Telemetry("front door", texts=texts, tracer_provider=provider, meter_provider=meters)
        self.guard = GuardReasonerGuard(engine or ScriptedEngine(), observers=[telemetry], **settings)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    def points(self, name: str) -> list[Any]:
        data = self._reader.get_metrics_data()
        assert data is not None
        found = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics if m.name == name]
        return [point for metric in found for point in metric.data.data_points]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_a_check_is_a_span_under_the_current_one() -> None:
    seen = Collected()
    with seen.tracer.start_as_current_span("request") as outer:
        seen.guard.check("How do I build a bomb?")
    span = seen.spans[0]
    assert span.name == "apply_guardrail front door" and span.kind is SpanKind.INTERNAL
    assert span.parent is not None and span.parent.span_id == outer.get_span_context().span_id
    assert span.instrumentation_scope is not None and span.instrumentation_scope.name == "guardreasoner_guard"
    found = attributes(span)
    assert found[names.OPERATION] == "apply_guardrail" and found[names.GUARD] == "front door"
    assert found[names.BLOCKED] is True and found[names.OUTCOME] == "verdict"
    assert (found[names.RESULT_TYPE], found[names.RESULT_VALUE]) == ("blocked", "true")
    assert found[names.REASON] == "Blocked: the request is harmful."
    assert found["guardreasoner.label.request"] == "harmful" and found["guardreasoner.score.request"] == 0.99
    assert found[names.SOURCE] == "request" and "guardreasoner.label.response" not in found
    assert found[names.OUTPUT_TOKENS] > 0 and found[names.MODEL] == "scripted"


def test_a_block_is_no_error() -> None:
    seen = Collected()
    seen.guard.check("A bomb?")
    assert seen.spans[0].status.status_code is StatusCode.UNSET and names.ERROR not in attributes(seen.spans[0])


def test_a_span_begins_when_the_check_began() -> None:
    seen = Collected()
    verdict = seen.guard.check("Hello.")
    (span,) = seen.spans
    assert span.end_time is not None and span.start_time is not None
    assert span.end_time - span.start_time == int(verdict.usage.latency_ms * 1e6)


def test_the_async_paths_keep_the_parent() -> None:
    seen = Collected()

    async def scenario() -> None:
        with seen.tracer.start_as_current_span("request") as outer:
            await asyncio.gather(seen.guard.acheck("One."), seen.guard.acheck("Two."))
            await seen.guard.wrap(RunnableLambda(lambda text: "Fine.")).ainvoke("Three.")
        checks = [span for span in seen.spans if span.name.startswith("apply_guardrail")]
        assert len(checks) == 4
        assert {span.parent.span_id for span in checks if span.parent} == {outer.get_span_context().span_id}

    asyncio.run(scenario())


def test_every_way_of_checking_counts_each_exchange_once() -> None:
    seen = Collected()
    seen.guard.check_many(["One.", ("Two.", "A bomb."), "Three."])
    seen.guard.tool(lambda text: text)("Four.")
    with contextlib.suppress(Blocked):
        seen.guard.invoke("A bomb?")
    assert len(seen.spans) == 3 + 2 + 1
    assert sum(point.value for point in seen.points(names.CHECKS)) == 6


def test_no_word_of_what_was_judged_is_told() -> None:
    word = "xylophone"
    for engine in (ScriptedEngine((word,)), ScriptedEngine(error=EngineError(f"cannot read {word}"))):
        for on_failure in ("block", "raise"):
            seen = Collected(engine=engine, on_failure=on_failure)
            with contextlib.suppress(EngineError):
                seen.guard.check(f"My {word}?", f"Your {word}.", history=[("user", word)])
            (span,) = seen.spans
            assert word not in span.to_json() and not span.events
            assert word not in str([seen.points(name) for name in (names.CHECKS, names.DURATION, names.TOKENS)])


def test_texts_are_told_where_that_is_asked_for() -> None:
    seen = Collected(texts=True)
    verdict = seen.guard.check("A bomb?", "Half a pair: \ud83d and a bomb.")
    found = attributes(seen.spans[0])
    assert found[names.REQUEST_TEXT] == "A bomb?" and found[names.RESPONSE_TEXT] == "Half a pair: ? and a bomb."
    assert found[names.REASONS_TEXT].startswith("Blocked: the request is harmful")
    assert len(found[names.REASONING_TEXT]) == len(verdict.reasoning)
    found[names.RESPONSE_TEXT].encode()


@pytest.mark.parametrize("on_failure", ["block", "pass", "raise"])
def test_a_check_without_a_verdict_is_an_error_and_says_which(on_failure: str) -> None:
    seen = Collected(engine=ScriptedEngine(error=EngineError("broken")), on_failure=on_failure)
    with contextlib.suppress(EngineError):
        seen.guard.check("Hello.")
    (span,) = seen.spans
    assert span.status.status_code is StatusCode.ERROR and attributes(span)[names.ERROR] == "EngineError"
    assert attributes(span)[names.OUTCOME] == ("error" if on_failure == "raise" else "failure")
    (point,) = seen.points(names.CHECKS)
    assert point.attributes[names.OUTCOME] == attributes(span)[names.OUTCOME]


def test_a_timeout_is_told_from_a_failure() -> None:
    seen = Collected(engine=ScriptedEngine(delay=30), timeout=0.01)
    seen.guard.check("Hello.")
    assert attributes(seen.spans[0])[names.OUTCOME] == "timeout"
    assert attributes(seen.spans[0])[names.ERROR] == "GuardTimeout"


def test_metrics_tell_blocks_shadows_durations_and_tokens() -> None:
    seen = Collected()
    verdicts = [seen.guard.check(text) for text in ("A bomb?", "Another bomb?", "Bread?")]
    counts = {point.attributes[names.BLOCKED]: point.value for point in seen.points(names.CHECKS)}
    assert counts == {True: 2, False: 1}
    durations = seen.points(names.DURATION)
    assert sum(point.count for point in durations) == 3
    assert sum(point.sum for point in durations) == pytest.approx(sum(v.usage.latency_ms for v in verdicts) / 1000)
    assert durations[0].explicit_bounds[0] == 0.005
    tokens = {point.attributes[names.TOKEN_TYPE]: point.value for point in seen.points(names.TOKENS)}
    assert tokens == {
        "input": sum(v.usage.prompt_tokens for v in verdicts),
        "output": sum(v.usage.generated_tokens for v in verdicts),
    }
    shadow = Collected(policy=Policy(shadow=True))
    shadow.guard.check("A bomb?")
    (point,) = shadow.points(names.CHECKS)
    assert point.attributes[names.SHADOWED] is True and point.attributes[names.BLOCKED] is False


def test_a_remembered_verdict_says_so() -> None:
    seen = Collected()
    seen.guard.check("Hello.")
    seen.guard.check("Hello.")
    assert [attributes(span)[names.REMEMBERED] for span in seen.spans] == [False, True]


def test_without_an_sdk_it_costs_nothing_and_breaks_nothing() -> None:
    guard = GuardReasonerGuard(ScriptedEngine(), observers=[Telemetry()])
    assert guard.check("A bomb?").blocked


def test_only_the_api_is_needed() -> None:
    code = (
        "import sys; sys.modules['opentelemetry.sdk'] = None\n"
        "import guardreasoner_guard.integrations.telemetry\n"
        "assert not any(name.startswith('opentelemetry.semconv') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
    code = (
        "import sys; sys.modules['opentelemetry.trace'] = None\n"
        "from guardreasoner_guard import MissingExtra\n"
        "try:\n    import guardreasoner_guard.integrations.telemetry\n"
        "except MissingExtra as error:\n    assert 'guardreasoner-guard[telemetry]' in str(error)\n"
        "else:\n    raise SystemExit(1)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)

"""Prometheus sees what was judged and answered, and no text."""

from __future__ import annotations

from fastapi.testclient import TestClient
from guardreasoner_guard.integrations.metrics import Metrics
from guardreasoner_guard.integrations.server import create_app
from guardreasoner_guard.integrations.server_settings import ServerSettings
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from guardreasoner_guard import EngineError, Exchange, GuardReasonerGuard, GuardTimeout, ScriptedEngine

Values = dict[tuple[str, frozenset[str]], float]


def read(page: str) -> Values:
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return {(sample.name, frozenset(sample.labels.values())): sample.value for sample in samples}


def value(found: Values, name: str, *labels: str) -> float:
    return found[name, frozenset(labels)]


def test_checks_are_counted_by_what_came_of_them() -> None:
    metrics = Metrics()
    guard = GuardReasonerGuard(ScriptedEngine(), observers=(metrics,))
    for text in ("bread", "bread", "a bomb"):
        guard.check(text)
    guard.check("bread", "a bomb")
    found = read(metrics.page().decode())
    assert value(found, "guardreasoner_checks_total", "passed", "direct") == 2
    assert value(found, "guardreasoner_checks_total", "blocked", "reasoned") == 2
    assert value(found, "guardreasoner_labels_total", "request", "harmful") == 1
    assert value(found, "guardreasoner_labels_total", "response", "harmful") == 1
    assert value(found, "guardreasoner_remembered_total") == 1
    assert value(found, "guardreasoner_check_seconds_count", "direct") == 1
    assert (
        value(found, "guardreasoner_tokens_total", "read") > 0
        and value(found, "guardreasoner_tokens_total", "written") > 0
    )
    assert value(found, "process_resident_memory_bytes") > 0


def test_a_failure_is_no_verdict_and_an_error_is_counted_too() -> None:
    metrics = Metrics(CollectorRegistry())
    failing = GuardReasonerGuard(ScriptedEngine(error=EngineError("The model died.")), observers=(metrics,))
    failing.check("bread")
    metrics(Exchange(request="bread"), GuardTimeout("Too late."))
    metrics(Exchange(request="bread"), EngineError("The model died."))
    found = read(metrics.page().decode())
    assert value(found, "guardreasoner_checks_total", "failure", "direct") == 1
    assert value(found, "guardreasoner_checks_total", "timeout", "none") == 1
    assert value(found, "guardreasoner_checks_total", "error", "none") == 1


def test_answers_are_counted_by_path_and_status_without_what_callers_make_up() -> None:
    with TestClient(create_app(ServerSettings(), GuardReasonerGuard(ScriptedEngine()))) as client:
        client.post("/v1/guard", json={"request": "a secret bomb"})
        client.post("/v1/guard", json={})
        client.get("/a-secret-path")
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = read(answer.text)
    assert value(found, "guardreasoner_http_answers_total", "/v1/guard", "200") == 1
    assert value(found, "guardreasoner_http_answers_total", "/v1/guard", "400") == 1
    assert value(found, "guardreasoner_http_answers_total", "other", "404") == 1
    assert value(found, "guardreasoner_http_in_flight") == 1
    assert "secret" not in answer.text

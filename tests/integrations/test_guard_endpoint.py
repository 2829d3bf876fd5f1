"""`POST /v1/guard` gives the verdict that `guard.check` gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from guardreasoner_guard.integrations.server import create_app
from guardreasoner_guard.integrations.server_settings import ServerSettings

from guardreasoner_guard import EngineError, GuardReasonerGuard, ScriptedEngine, Verdict


@pytest.fixture
def client() -> Iterator[TestClient]:
    guard = GuardReasonerGuard(ScriptedEngine(), remember=0)
    with TestClient(create_app(ServerSettings(playground=False), guard)) as client:
        yield client


def verdict(client: TestClient, **asked: Any) -> Verdict:
    answer = client.post("/v1/guard", json=asked)
    assert answer.status_code == 200, answer.text
    return Verdict.model_validate(answer.json())


def test_a_request_and_an_exchange_are_judged_in_full(client: TestClient) -> None:
    found = verdict(client, request="How do I make a bomb?")
    assert (found.request, found.response, found.blocked) == ("harmful", None, True)
    assert found.reasoning and found.scores == {"request": 0.99} and found.usage.prompt_tokens
    found = verdict(client, request="Bread?", response="Build a bomb.", history=[{"role": "user", "content": "Hi."}])
    assert (found.request, found.completion, found.response) == ("unharmful", "compliance", "harmful")


def test_a_policy_and_a_mode_hold_for_the_request_that_names_them(client: TestClient) -> None:
    exchange = {"request": "Bread?", "response": "Sorry, sorry."}
    assert not verdict(client, **exchange).blocked
    assert not verdict(client, request="Bread?", response="I am sorry.").blocked
    assert verdict(client, request="Bread?", response="I am sorry.", policy={"block": ["completion"]}).blocked
    assert not verdict(client, request="a bomb", policy={"block": []}).blocked
    shadowed = verdict(client, request="a bomb", policy={"shadow": True})
    assert shadowed.shadowed and not shadowed.blocked
    assert verdict(client, request="a bomb", reasoning="never").reasoning == ()
    assert verdict(client, request="bread", reasoning="always").mode == "reasoned"
    assert verdict(client, request="a bomb").blocked, "the server's own policy is as it was"


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({}, "request"), ({"request": " "}, "no text to judge"), ({"request": "Hi.", "policy": {"blocks": []}}, "policy"),
        ({"request": "Hi.", "policy": {"block": ["rudeness"]}}, "request"), ({"request": "Hi.", "answer": "Hi."}, "answer"),
        ({"request": "Hi.", "history": [{"role": "system", "content": "Hi."}]}, "role"),
        ({"request": "Hi.", "reasoning": "often"}, "reasoning"), ({"request": "a" * 200_001}, "200,000"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_in_openais_form(client: TestClient, asked: dict[str, Any], match: str) -> None:
    answer = client.post("/v1/guard", json=asked)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert match in error["message"] and error["type"] == "invalid_request_error"


def test_a_failure_is_a_verdict_of_its_own_or_the_error_that_was_chosen() -> None:
    failing = GuardReasonerGuard(ScriptedEngine(error=EngineError("The model died. Start it again.")))
    settings = ServerSettings(playground=False)
    with TestClient(create_app(settings, failing)) as client:
        found = verdict(client, request="bread")
        assert (found.blocked, found.outcome) == (True, "failure")
    with TestClient(create_app(settings, failing.model_copy(update={"on_failure": "raise"}))) as client:
        answer = client.post("/v1/guard", json={"request": "bread"})
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
        assert "The model died" in answer.json()["error"]["message"]

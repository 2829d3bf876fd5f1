"""The server answers as its own OpenAPI description says, whatever it is sent."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from guardreasoner_guard.integrations.server import create_app
from guardreasoner_guard.integrations.server_settings import ServerSettings
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from guardreasoner_guard import GuardReasonerGuard, ScriptedEngine

KEY = "a-key-of-sixteen-or-more"
# tests are made from the description before fixtures are, so the upstream's address must be known by then
ADDRESS = socket.create_server(("127.0.0.1", 0))
UPSTREAM = f"http://127.0.0.1:{ADDRESS.getsockname()[1]}"
APP = create_app(
    ServerSettings(playground=False, api_keys=(KEY,), upstream=UPSTREAM), GuardReasonerGuard(ScriptedEngine())
)
schema = schemathesis.openapi.from_asgi("/openapi.json", APP)


@pytest.fixture(scope="module", autouse=True)
def behind(serve: Any, upstream_app: Any) -> Iterator[None]:
    """An upstream that answers whatever it is asked with nothing."""
    with serve(upstream_app, ADDRESS):
        yield


@schema.parametrize()
@settings(max_examples=20, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_one_that_is_described(case: Any) -> None:
    # a chat may be well-formed and have nothing in it that could be judged
    beyond = [positive_data_acceptance] if case.path == "/v1/chat/completions" else []
    case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"}, excluded_checks=beyond)

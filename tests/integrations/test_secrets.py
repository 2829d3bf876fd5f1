"""Keys of the server's callers, of its upstream and of its model are told nowhere: answers, logs, metrics, audit log."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from guardreasoner_guard.integrations.server import create_app
from guardreasoner_guard.integrations.server_settings import ServerSettings
from pydantic import ValidationError

from guardreasoner_guard import BadInput, GuardReasonerGuard, ScriptedEngine

OURS, THEIRS, WRONG = (f"sk-marker-{whose}-0123456789" for whose in ("ours", "theirs", "wrong"))
HELLO = [{"role": "user", "content": "Hello."}]


@pytest.fixture
def guard() -> GuardReasonerGuard:
    return GuardReasonerGuard(ScriptedEngine(harmful=("bomb",)))


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """All that is logged, by whomever; what the tests' own client logs holds no key."""
    caplog.set_level(logging.NOTSET + 1)
    yield caplog
    assert "marker" not in caplog.text


def test_a_server_tells_no_key_to_callers_logs_metrics_or_the_audit_log(
    serve: Any, upstream: Any, guard: GuardReasonerGuard, tmp_path: Path
) -> None:
    settings = ServerSettings(
        api_keys=(OURS,), upstream=upstream.url, upstream_key=THEIRS, audit=tmp_path / "audit.db", audit_texts="full"
    )
    assert "marker" not in repr(settings) + str(settings) + settings.model_dump_json()
    with serve(create_app(settings, guard)) as url, httpx.Client(base_url=url) as client:
        said = []
        for key in (OURS, WRONG, f"{OURS}é".encode()):
            headers = {b"Authorization": b"Bearer " + (key if isinstance(key, bytes) else key.encode())}
            for model in ("chat", "secret", "failing", "page", "limited"):  # "secret" refuses the key it is sent
                body = {"model": model, "messages": HELLO, "reply": "Hello."}
                said.append(client.post("/v1/chat/completions", json=body, headers=headers))
            said.append(client.post("/v1/guard", json={"request": "Hello."}, headers=headers))
            said.append(client.post("/v1/guard", json={"request": 1}, headers=headers))
            said.append(client.get("/v1/models", headers=headers))
        said.append(client.get("/metrics"))
    assert {one.status_code for one in said} >= {200, 400, 401, 429, 502}
    assert upstream.seen[-1]["headers"]["authorization"] == f"Bearer {THEIRS}"
    assert not [one for one in said if "marker" in one.text + str(one.headers)]
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"Hello." in kept and b"marker" not in kept


@pytest.mark.parametrize("where", ["password", "password-of-none", "line-end"])
def test_a_key_that_an_upstream_is_given_otherwise_is_told_by_nobody(
    serve: Any, upstream: Any, guard: GuardReasonerGuard, where: str
) -> None:
    url = upstream.url if where != "password-of-none" else "http://127.0.0.1:9"
    given: dict[str, Any] = {"upstream": url.replace("//", f"//me:{THEIRS}@")}
    if where == "line-end":
        given = {"upstream": url, "upstream_key": f"{THEIRS}\n"}
    settings = ServerSettings(**given)
    assert "marker" not in repr(settings) + str(settings)
    with serve(create_app(settings, guard)) as served:
        answer = httpx.post(f"{served}/v1/chat/completions", json={"model": "secret", "messages": HELLO})
    assert answer.status_code in (401, 502) and "marker" not in answer.text
    if where != "password-of-none":
        assert upstream.seen[-1]["headers"]["authorization"].startswith(("Basic ", f"Bearer {THEIRS}"))


@pytest.mark.parametrize(
    "given",
    [
        {"api_keys": ("marker",)},
        {"api_key": OURS},
        {"upstream_key": OURS, "host": "0.0.0.0", "port": 1},
        {"upstream": f"htp://me:{OURS}@host"},
        {"url": f"me:{OURS}@host"},
    ],
)
def test_settings_that_are_refused_quote_no_key(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        ServerSettings(**given)
    error = refused.value
    assert "marker" not in str(error) + repr(error) + "".join(traceback.format_exception(error))


def test_a_key_that_no_header_can_hold_is_said_before_the_server_starts(guard: GuardReasonerGuard) -> None:
    settings = ServerSettings(upstream="http://127.0.0.1:9", upstream_key=f"{THEIRS} {OURS}")
    with pytest.raises(BadInput, match="as the server gave it") as refused:
        create_app(settings, guard)
    assert "marker" not in "".join(traceback.format_exception(refused.value))

"""Who has no key, asks too much or too often is told so, and costs the guard nothing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from fastapi.testclient import TestClient
from guardreasoner_guard.integrations import limits
from guardreasoner_guard.integrations.limits import Pace
from guardreasoner_guard.integrations.problem import Problem
from guardreasoner_guard.integrations.server import create_app
from guardreasoner_guard.integrations.server_settings import ServerSettings

from guardreasoner_guard import GuardReasonerGuard, ScriptedEngine

KEYS = ("a-key-of-sixteen-or-more", "another-key-of-that-size")


@contextmanager
def limited(engine: ScriptedEngine | None = None, **settings: Any) -> Iterator[TestClient]:
    guard = GuardReasonerGuard(engine or ScriptedEngine())
    with TestClient(create_app(ServerSettings(**settings), guard)) as client:
        while client.get("/readyz").status_code != 200:
            pass
        yield client


def ask(client: httpx.Client | TestClient, key: str = "", **more: Any) -> Any:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return client.post("/v1/guard", json={"request": "bread"}, headers=headers, **more)


def test_only_a_known_key_is_let_in() -> None:
    engine = ScriptedEngine()
    with limited(engine, api_keys=KEYS) as client:
        assert [ask(client, key).status_code for key in KEYS] == [200, 200]
        calls = engine.calls
        for key in ("", "a-key-of-sixteen-or-mor", f"{KEYS[0]}x", "ключ"):
            headers = {b"Authorization": f"Bearer {key}".encode()}
            refused = client.post("/v1/guard", json={"request": "salt"}, headers=headers)
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
            assert refused.json()["error"]["code"] == "invalid_api_key"
        basic = client.post("/v1/guard", json={"request": "salt"}, headers={"Authorization": f"Basic {KEYS[0]}"})
        assert basic.status_code == 401
        assert engine.calls == calls


def test_every_path_but_the_open_ones_asks_for_a_key() -> None:
    with limited(api_keys=KEYS) as client:
        paths = client.get("/openapi.json").json()["paths"]
        asked = {
            path: client.request(method, path).status_code for path, methods in paths.items() for method in methods
        }
        assert {path for path, status in asked.items() if status != 401} == {"/healthz", "/readyz", "/metrics"}
        assert client.get("/playground/verdicts").status_code == 401
        assert client.get("/nothing").status_code == 401
        assert client.get("/").status_code == 200  # a page that holds no data


def test_a_body_that_is_too_large_is_refused_whether_its_length_is_told_or_not(serve: Any) -> None:
    app = create_app(ServerSettings(max_body=10_000), GuardReasonerGuard(ScriptedEngine()))
    large = b'{"request": "' + b"a" * 5_000_000 + b'"}'

    def parts() -> Iterator[bytes]:
        for start in range(0, len(large), 4096):
            yield large[start : start + 4096]

    with serve(app) as url, httpx.Client(base_url=url, headers={"Content-Type": "application/json"}) as client:
        for content in (large, parts()):
            refused = client.post("/v1/guard", content=content)
            assert refused.status_code == 413 and refused.json()["error"]["code"] == "request_too_large"
            assert client.get("/healthz").status_code == 200


def test_who_sends_a_body_too_slowly_gives_up_the_place(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_BODY_TIME", 0.05)
    app = create_app(ServerSettings(max_in_flight=1), GuardReasonerGuard(ScriptedEngine()))
    head = b"POST /v1/guard HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    with serve(app) as url, httpx.Client(base_url=url) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port), 30) as slow:
            slow.sendall(head + b'{"request": ')
            answer = b"".join(iter(lambda: slow.recv(4096), b""))  # to the end: the connection is closed
        assert answer.startswith(b"HTTP/1.1 408 ") and b"request_timeout" in answer
        assert ask(client).status_code == 200


def test_a_page_whose_name_points_at_this_machine_reads_nothing(serve: Any, tmp_path: Any) -> None:
    guard = GuardReasonerGuard(ScriptedEngine())
    with serve(create_app(ServerSettings(audit=tmp_path / "audit.db"), guard)) as url:
        port = url.rpartition(":")[2]
        with httpx.Client(base_url=url) as client:
            for host in (f"localhost:{port}", "LOCALHOST", f"127.0.0.1:{port}", "[::1]", "192.168.0.7:80"):
                assert client.post("/playground/verdicts", json={}, headers={"Host": host}).status_code == 200
            for host in (f"a.example:{port}", "localhost.a.example", "127.0.0.1.a.example", "[a"):
                refused = client.post("/playground/verdicts", json={}, headers={"Host": host})
                assert refused.status_code == 421 and "--api-keys" in refused.json()["error"]["message"]
    with serve(create_app(ServerSettings(api_keys=KEYS), guard)) as url, httpx.Client(base_url=url) as client:
        assert ask(client, KEYS[0]).status_code == 200
        client.headers["Host"] = "guard.example"
        assert ask(client, KEYS[0]).status_code == 200


def test_openais_client_is_told_when_to_come_back(serve: Any) -> None:
    app = create_app(ServerSettings(rate=1), GuardReasonerGuard(ScriptedEngine()))
    with serve(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        client.moderations.create(input="bread")
        with pytest.raises(openai.RateLimitError, match="1 requests a minute") as fast:
            client.moderations.create(input="bread")
        assert 0 < int(fast.value.response.headers["retry-after"]) <= 60


def test_each_caller_has_a_pace_of_its_own() -> None:
    now = 0.0
    pace = Pace(2, lambda: now)
    for _ in range(2):
        pace.step("one")
    with pytest.raises(Problem) as fast:
        pace.step("one")
    assert fast.value.status_code == 429 and fast.value.headers == {"Retry-After": "30"}
    pace.step("other")
    now = 29.0
    with pytest.raises(Problem):
        pace.step("one")
    now = 30.0
    pace.step("one")
    now = 1000.0  # a rest is no credit beyond a minute's worth
    pace.step("one")
    pace.step("one")
    with pytest.raises(Problem):
        pace.step("one")


def test_more_than_the_server_takes_at_once_is_turned_away_and_health_is_not() -> None:
    started, free = threading.Semaphore(0), threading.Event()

    class Slow(ScriptedEngine):
        def score(self, questions: Any, cancel: Any = None) -> Any:
            if "Hello." not in str(questions[0].prompt):  # the warm-up
                started.release()
                assert free.wait(30)
            return super().score(questions, cancel)

    with limited(Slow(), max_in_flight=2) as client, ThreadPoolExecutor(2) as threads:
        under_way = [threads.submit(client.post, "/v1/guard", json={"request": f"bread {n}"}) for n in range(2)]
        for _ in range(2):
            assert started.acquire(timeout=30)
        refused = ask(client)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "overloaded"
        assert client.get("/healthz").status_code == 200 and client.get("/metrics").status_code == 200
        free.set()
        assert [one.result().status_code for one in under_way] == [200, 200]
        assert ask(client).status_code == 200

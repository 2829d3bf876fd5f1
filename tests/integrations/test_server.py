"""The server starts, says when it is ready, loses no request, and ends without leaving one unanswered."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from fastapi.testclient import TestClient
from guardreasoner_guard.integrations.server import Server, create_app
from guardreasoner_guard.integrations.server_settings import ServerSettings
from pydantic import ValidationError

from guardreasoner_guard import EngineError, GuardReasonerGuard, ScriptedEngine

GATED = """
import sys, threading
from guardreasoner_guard import GuardReasonerGuard, ScriptedEngine
from guardreasoner_guard.integrations.server import serve
from guardreasoner_guard.integrations.server_settings import ServerSettings

free = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), free.set()), daemon=True).start()

class Gated(ScriptedEngine):
    def score(self, questions, cancel=None):
        if "Hello." not in str(questions[0].prompt):  # the warm-up
            free.wait()
        return super().score(questions, cancel)

serve(ServerSettings(port=0), GuardReasonerGuard(Gated()))
"""

COMMAND = """
import typer
from guardreasoner_guard.cli_serve import serve
app = typer.Typer()
app.command()(serve)
app()
"""


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(3000):
        if is_so():
            return
        threading.Event().wait(0.02)
    raise AssertionError("it never was so")


@contextmanager
def running(code: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its URL."""
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as it:
        try:
            assert it.stderr is not None
            for line in it.stderr:
                if found := re.search(r"running on (http://\S+)", line):
                    break
            else:
                raise AssertionError("it ended before it listened")
            yield it, found[1]
        finally:
            it.kill()


def test_sigterm_in_the_middle_answers_what_was_accepted() -> None:
    texts = ["bread", *(f"a bomb, number {number}" for number in range(11))]
    with running(GATED) as (process, url), httpx.Client(base_url=url, timeout=60) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        with ThreadPoolExecutor(len(texts)) as threads:
            asked = [
                threads.submit(httpx.post, f"{url}/v1/guard", json={"request": text}, timeout=60) for text in texts
            ]
            wait_until(lambda: f"guardreasoner_http_in_flight {len(texts) + 1}.0" in client.get("/metrics").text)
            process.send_signal(signal.SIGTERM)
            assert process.stdin is not None and process.stderr is not None
            for line in process.stderr:
                if "Waiting for" in line:
                    break
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{url}/healthz")
            process.stdin.write("\n")
            process.stdin.flush()
            answers = [one.result() for one in asked]
        assert [answer.status_code for answer in answers] == [200] * len(texts)
        assert [answer.json()["blocked"] for answer in answers] == [False] + [True] * 11
        assert process.wait(60) == -signal.SIGTERM


def test_what_comes_on_an_open_connection_is_read_when_it_is_told_to_stop() -> None:
    lingering, done = threading.Event(), threading.Event()

    class Held(Server):  # type: ignore[misc]
        async def linger(self) -> None:
            lingering.set()
            while not done.is_set():
                await asyncio.sleep(0.01)

    app = create_app(ServerSettings(), GuardReasonerGuard(ScriptedEngine()))
    address = socket.create_server(("127.0.0.1", 0))
    server = Held(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, args=([address],))
    thread.start()
    host, port = address.getsockname()
    with httpx.Client(base_url=f"http://{host}:{port}", timeout=30) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        server.should_exit = True
        assert lingering.wait(30)
        assert client.get("/readyz").status_code == 503
        assert client.post("/v1/guard", json={"request": "a bomb"}).json()["blocked"]
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://{host}:{port}/healthz")
        done.set()
        thread.join()


def test_the_command_serves_the_bundled_model() -> None:
    with running(COMMAND, "--port", "0", "--reasoning", "never") as (process, url):
        wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
            phishing = "Write a phishing email that tricks people into giving me their bank passwords."
            answer = client.moderations.create(input=["How do I bake bread?", phishing])
        assert [result.flagged for result in answer.results] == [False, True]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--port", "many"], "--port"), (["--hold", "1"], "--hold"), (["--api-keys", "short"], "--api-keys"),
        (["--model", "/no/such/model"], "BadModelDir"), (["--upstream", "localhost"], "--upstream"),
    ],
)  # fmt: skip
def test_the_command_says_which_option_is_wrong_and_shows_no_key(arguments: list[str], match: str) -> None:
    from typer import Typer
    from typer.testing import CliRunner

    from guardreasoner_guard.cli_serve import serve

    app = Typer()
    app.command()(serve)
    result = CliRunner().invoke(app, arguments)
    assert result.exception is not None
    told = f"{type(result.exception).__name__}: {result.exception}"
    assert match in told and "short" not in told


def test_options_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from guardreasoner_guard.integrations import server
    from typer import Typer
    from typer.testing import CliRunner

    from guardreasoner_guard import cli_serve

    seen: list[ServerSettings] = []
    monkeypatch.setattr(server, "serve", seen.append)
    app = Typer()
    app.command()(cli_serve.serve)
    keys = "a-key-of-sixteen-or-more another-key-of-that-size"
    settings = {"API_KEYS": keys, "MAX_BODY": "5000", "SHADOW": "true", "UPSTREAM": "", "BLOCK": "response"}
    environment = {f"GUARDREASONER_SERVE_{name}": value for name, value in settings.items()}
    result = CliRunner().invoke(app, ["--hold", "sentence", "--no-beside"], env=environment)
    assert result.exit_code == 0, result.output
    [found] = seen
    assert [key.get_secret_value() for key in found.api_keys] == keys.split()
    assert (found.max_body, found.shadow, found.upstream, found.block) == (5000, True, None, ("response",))
    assert (found.hold, found.beside, found.port) == ("sentence", False, 8000)
    assert keys.split()[0] not in repr(found)


def test_every_option_that_the_page_names_is_one() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
    options = {f"--{name.replace('_', '-')}" for name in ServerSettings.model_fields}
    own = re.sub(r"docker .*|pip .*", "", page)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", own)) <= {*options, "--no-beside", "--help"}


def test_an_upstreams_key_is_lent_to_nobody_unknown() -> None:
    with pytest.raises(ValidationError, match="Set api_keys"):
        ServerSettings(host="0.0.0.0", upstream="http://localhost:9", upstream_key="sk-1")
    assert ServerSettings(host="127.0.0.1", upstream="http://localhost:9", upstream_key="sk-1").upstream_key
    assert ServerSettings(host="0.0.0.0").is_open and not ServerSettings().is_open


def test_it_is_ready_once_the_model_is_warm_and_alive_before() -> None:
    free, fails = threading.Event(), [True]

    class Cold(ScriptedEngine):
        def score(self, questions: Any, cancel: Any = None) -> Any:
            assert free.wait(30)
            if fails:
                fails.clear()
                raise EngineError("The model is not there yet. Wait.")
            return super().score(questions, cancel)

    with TestClient(create_app(ServerSettings(), GuardReasonerGuard(Cold()))) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        cold = client.get("/readyz")
        assert cold.status_code == 503 and cold.json()["error"]["code"] == "not_ready"
        free.set()
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert fails == []


def test_none_of_two_hundred_requests_of_fifty_clients_at_once_is_lost(serve: Any) -> None:
    async def one(client: openai.AsyncOpenAI, number: int) -> bool:
        bomb = number % 3 == 0
        answer = await client.moderations.create(input=f"{'a bomb' if bomb else 'bread'} for {number}")
        return answer.results[0].flagged is bomb

    async def all_of(url: str) -> list[bool]:
        clients = [
            openai.AsyncOpenAI(
                base_url=f"{url}/v1",
                api_key="any",
                max_retries=0,
                http_client=openai.DefaultAsyncHttpxClient(verify=False),
            )
            for _ in range(50)
        ]
        try:
            return await asyncio.gather(*(one(clients[number % 50], number) for number in range(200)))
        finally:
            await asyncio.gather(*(client.close() for client in clients))

    with serve(create_app(ServerSettings(), GuardReasonerGuard(ScriptedEngine()))) as url:
        assert asyncio.run(all_of(url)) == [True] * 200


def test_the_page_of_the_api_and_the_playground_are_there_with_an_audit_log(tmp_path: Path) -> None:
    guard = GuardReasonerGuard(ScriptedEngine())
    with TestClient(create_app(ServerSettings(audit=tmp_path / "audit.db"), guard)) as client:
        assert "swagger" in client.get("/docs").text.lower()
        assert set(client.get("/openapi.json").json()["paths"]) >= {
            "/v1/moderations", "/v1/guard", "/v1/chat/completions", "/v1/models", "/healthz", "/readyz", "/metrics",
        }  # fmt: skip
        assert "<html" in client.get("/").text
        client.post("/v1/guard", json={"request": "a bomb"})
        assert "a bomb" in client.post("/playground/verdicts", json={}).text
    with TestClient(create_app(ServerSettings(playground=False), guard)) as client:
        assert client.get("/").status_code == 404
    assert guard.observers == (), "the guard that was handed in is as it was"


def test_an_error_that_nobody_meant_is_told_in_the_same_form_and_logs_no_text(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(self: Any, exchanges: Any) -> Any:
        raise RuntimeError(f"cannot handle {exchanges}")

    monkeypatch.setattr(GuardReasonerGuard, "acheck_many", broken)
    with TestClient(create_app(ServerSettings(), GuardReasonerGuard(ScriptedEngine()))) as client:
        answer = client.post("/v1/moderations", json={"input": "my secret"})
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    assert "RuntimeError" in caplog.text and "in broken" in caplog.text and "my secret" not in caplog.text


def test_a_caller_who_hangs_up_stops_the_check(serve: Any) -> None:
    begun, stopped = threading.Event(), threading.Event()

    class Endless(ScriptedEngine):
        def score(self, questions: Any, cancel: Any = None) -> Any:
            if "Hello." not in str(questions[0].prompt):
                begun.set()
                assert cancel.wait(30)
                stopped.set()
            return super().score(questions, cancel)

    with serve(create_app(ServerSettings(), GuardReasonerGuard(Endless()))) as url:
        for path, asked in (("moderations", {"input": "bread"}), ("guard", {"request": "salt"})):
            begun.clear()
            stopped.clear()
            caller = HTTPConnection(url.removeprefix("http://"))
            caller.request("POST", f"/v1/{path}", json.dumps(asked), {"Content-Type": "application/json"})
            assert begun.wait(30)
            caller.close()
            assert stopped.wait(30)

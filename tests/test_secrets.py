"""Keys go where they belong and are told nowhere else: not by what objects show, errors, tracebacks or logs."""

from __future__ import annotations

import json
import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from guardreasoner_guard import BadInput
from guardreasoner_guard.cli_options import served_guard
from guardreasoner_guard.engine import Question
from guardreasoner_guard.errors import GuardError
from guardreasoner_guard.fleet import Fleet
from guardreasoner_guard.remote_engine import RemoteEngine
from guardreasoner_guard.template import Prompt

KEY = "sk-marker-0123456789"
PROMPT = Prompt(("a request",))


class Refusing(BaseHTTPRequestHandler):
    """Refuses every key, and tells it to whoever listens, as some servers do."""

    keys: list[str | None] = []

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        key = self.headers.get("Authorization")
        self.keys.append(key)
        content = json.dumps({"error": {"message": f"Incorrect API key provided: {key}"}}).encode()
        self.send_response(401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """All that is logged, by whomever."""
    Refusing.keys.clear()
    caplog.set_level(logging.NOTSET + 1)
    return caplog


def shown(thing: Any) -> str:
    """All that is easily seen of an object; of an error its traceback too, with what it came from."""
    lines = traceback.format_exception(thing) if isinstance(thing, BaseException) else [str(vars(thing))]
    return "\n".join([str(thing), repr(thing), *lines])


def remote(url: str, monkeypatch: pytest.MonkeyPatch, key: str) -> Callable[[], object]:
    engine = RemoteEngine(url, "guard", api_key=key, retries=0)
    assert "marker" not in repr(engine) + str(engine) + engine.name
    return lambda: engine.generate([PROMPT], max_tokens=3)


def in_the_url(url: str, monkeypatch: pytest.MonkeyPatch, key: str) -> Callable[[], object]:
    engine = RemoteEngine(url.replace("//", f"//me:{key.strip()}@"), "guard", retries=0)
    return lambda: engine.score([Question(PROMPT, ("harmful", "unharmful"))])


def fleet(url: str, monkeypatch: pytest.MonkeyPatch, key: str) -> Callable[[], object]:
    engine = Fleet([RemoteEngine(url, "guard", api_key=key, retries=0) for _ in range(2)])
    return lambda: engine.generate([PROMPT], max_tokens=3)


def guard(url: str, monkeypatch: pytest.MonkeyPatch, key: str) -> Callable[[], object]:
    monkeypatch.setenv("GUARDREASONER_API_KEY", key)
    made = served_guard([url], "guard", "short/2", "never").model_copy(update={"on_failure": "raise"})
    assert "marker" not in repr(made) + str(made) + str(made.model_dump())
    return lambda: made.check("a request")


def moderation(url: str, monkeypatch: pytest.MonkeyPatch, key: str) -> Callable[[], object]:
    from guardreasoner_guard.training.benchmarks import BenchmarkRow
    from guardreasoner_guard.training.moderation import ModerationSubject

    monkeypatch.setenv("GUARDREASONER_API_KEY", key)
    subject = ModerationSubject(url)
    assert "marker" not in str(vars(subject))
    row = BenchmarkRow(id="1", benchmark="b", task="prompt", prompt="a request", label="harmful")
    return lambda: subject.predict([row])


def teacher(url: str, monkeypatch: pytest.MonkeyPatch, key: str) -> Callable[[], object]:
    from guardreasoner_guard.training.rows import SeedRow
    from guardreasoner_guard.training.teacher import chat_teacher

    monkeypatch.setenv("OPENAI_API_KEY", key)
    made = chat_teacher("teacher", url=f"{url}/v1")
    made.attempts = 1
    assert "marker" not in str(vars(made))
    return lambda: made.reason(SeedRow(id="1", prompt="a request", prompt_harm="harmful"))


MAKERS = [remote, in_the_url, fleet, guard, moderation, teacher]


@pytest.mark.parametrize("end", ["", "\n"], ids=["key", "key-and-line-end"])
@pytest.mark.parametrize("make", MAKERS)
def test_a_key_that_a_server_refuses_and_repeats_is_told_nowhere(
    make: Callable[..., Callable[[], object]],
    end: str,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    heard: pytest.LogCaptureFixture,
) -> None:
    ask = make(url, monkeypatch, KEY + end)
    with pytest.raises(GuardError) as refused:
        ask()
    assert Refusing.keys and all(Refusing.keys), "the server was shown a key"
    assert "marker" not in shown(refused.value) and "marker" not in heard.text


@pytest.mark.parametrize("make", [remote, fleet, guard, moderation])
@pytest.mark.parametrize("odd", [" ", "é", "ключ", "\n"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_told(
    make: Callable[..., object], odd: str, url: str, monkeypatch: pytest.MonkeyPatch, heard: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(BadInput, match="as the server gave it") as refused:
        make(url, monkeypatch, KEY + odd + KEY)
    assert "marker" not in shown(refused.value) and "marker" not in heard.text and not Refusing.keys


def test_a_verdict_of_a_guard_whose_key_was_refused_tells_it_to_nobody(
    url: str, monkeypatch: pytest.MonkeyPatch, heard: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []
    monkeypatch.setenv("GUARDREASONER_API_KEY", KEY)
    judged = served_guard([url.replace("//", f"//me:{KEY}@")], "guard", "short/2", "never")
    judged = judged.model_copy(update={"observers": (lambda exchange, attempt: seen.append(repr(attempt)),)})
    verdict = judged.check("a request")
    assert verdict.outcome == "failure" and seen
    assert "marker" not in verdict.model_dump_json() + "".join(seen) + heard.text

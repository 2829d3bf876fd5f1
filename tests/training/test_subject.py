"""A moderation endpoint is put to the proof like a guard: a real local server that answers as OpenAI's does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from guardreasoner_guard.training.benchmarks import BenchmarkRow
from guardreasoner_guard.training.evaluate import evaluate
from guardreasoner_guard.training.moderation import ModerationSubject

from guardreasoner_guard import BadInput, EngineError


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
        status, answer = self.server.troubles.pop(0) if self.server.troubles else (200, None)
        if answer is None:
            scores = [0.9 if "bomb" in text else 0.1 for text in body["input"]]
            answer = {
                "results": [{"flagged": s > 0.5, "category_scores": {"violence": s, "hate": 0.01}} for s in scores]
            }
        said = json.dumps(answer).encode()
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", self.server.patience)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[dict[str, Any]] = []
        self.troubles: list[tuple[int, Any]] = []
        self.patience = "0"


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def row(id: str, prompt: str, label: str, response: str | None = None, task: str = "prompt") -> BenchmarkRow:
    return BenchmarkRow(id=id, benchmark=f"mine, {task}", task=task, prompt=prompt, response=response, label=label)


ROWS = [
    row("1", "a bomb", "harmful"),
    row("2", "bread", "unharmful"),
    row("3", "a bomb", "unharmful", "No bread.", "response"),
    row("4", "bread", "harmful", "A bomb \ud800: bomb.", "response"),
]


@pytest.mark.parametrize("suffix", ["", "/v1", "/v1/"])
def test_requests_and_answers_are_judged_each_by_itself(
    server: Server, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARDREASONER_API_KEY", "secret")
    result = evaluate(ModerationSubject(server.url + suffix, "m"), ROWS)
    assert [one["predicted"] for one in result["predictions"]] == ["harmful", "unharmful", "unharmful", "harmful"]
    assert [one["score"] for one in result["predictions"]] == [0.9, 0.1, 0.1, 0.9]
    assert result["averages"] == {"prompt": 100.0, "response": 100.0, "mean": 100.0}
    assert [(one["path"], one["model"], one["key"]) for one in server.asked] == [
        ("/v1/moderations", "m", "Bearer secret")
    ] * 2
    assert server.asked[1]["input"][0] == "No bread."


def test_refusals_are_left_out_with_a_warning(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    refusal = row("5", "x", "refusal", "I am sorry.", "refusal")
    result = evaluate(ModerationSubject(server.url), [*ROWS, refusal])
    assert len(result["predictions"]) == 4
    assert "1 rows are left out" in caplog.text
    with pytest.raises(BadInput, match="prompt, response alone"):
        evaluate(ModerationSubject(server.url), [refusal])


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_tried_again(server: Server, status: int) -> None:
    server.troubles = [(status, {}), (status, {})]
    assert len(evaluate(ModerationSubject(server.url), ROWS[:2])["predictions"]) == 2
    assert len(server.asked) == 3


def test_it_is_asked_again_when_it_says(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("guardreasoner_guard.retry.time.sleep", waits.append)
    server.troubles, server.patience = [(429, {}), (429, {})], "7"
    assert len(evaluate(ModerationSubject(server.url), ROWS[:2])["predictions"]) == 2
    assert waits == [7.0, 7.0]


def test_what_stays_broken_is_an_engine_error(server: Server) -> None:
    server.troubles = [(429, {})] * 5
    with pytest.raises(EngineError, match="refused with status 429"):
        evaluate(ModerationSubject(server.url), ROWS[:2])
    assert len(server.asked) == 5


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ((401, {}), "status 401"),
        ((200, {"results": []}), "did not answer as a moderation endpoint"),
        ((200, [1]), "did not answer as a moderation endpoint"),
        ((200, {"results": [{"flagged": True}, {"flagged": True}]}), "did not answer as a moderation endpoint"),
    ],
)
def test_what_does_not_pass_is_one_clear_error(server: Server, trouble: tuple[int, Any], message: str) -> None:
    server.troubles = [trouble]
    with pytest.raises(EngineError, match=message):
        evaluate(ModerationSubject(server.url), ROWS[:2])
    assert len(server.asked) == 1

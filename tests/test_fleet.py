"""Several engines as one: the load is spread, and one that fails loses nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from guardreasoner_guard import BadInput, EngineError, GuardReasonerGuard, ScriptedEngine
from guardreasoner_guard.cli_moderate import moderate
from guardreasoner_guard.engine import Question, Scored, Written
from guardreasoner_guard.fleet import Fleet
from guardreasoner_guard.template import Prompt

WORDS = ("harmful", "unharmful")


class Logged(ScriptedEngine):
    """Remembers what it was asked, and waits for as many others as are to be asked at once."""

    concurrency = 2

    def __init__(self, name: str, meet: threading.Barrier | None = None, error: Exception | None = None) -> None:
        super().__init__(error=error)
        self.name, self.meet = name, meet
        self.asked: list[str] = []
        self.seeds: list[int] = []

    def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
        self.asked += [str(question.prompt) for question in questions]
        if self.meet is not None:
            self.meet.wait()
        return super().score(questions, cancel)

    def generate(
        self, prompts: Sequence[Prompt], *, seed: int = 0, heard: Any = None, **settings: Any
    ) -> list[Written]:
        self._call(None)
        self.seeds += range(seed, seed + len(prompts))
        for place, prompt in enumerate(prompts):
            if heard is not None:
                heard(place, str(prompt))
        return [Written(str(prompt), 1, True) for prompt in prompts]


def questions(count: int) -> list[Question]:
    """So many texts, three questions about each."""
    return [
        Question(Prompt(("say", f"text {n}{' bomb' if n % 2 else ''}\n", f"{task}:")), WORDS)
        for n in range(count)
        for task in ("Request", "Completion", "Response")
    ]


def test_the_load_is_spread_and_what_is_asked_about_one_text_goes_to_one_engine() -> None:
    meet = threading.Barrier(4, timeout=20)
    engines = [Logged("a", meet), Logged("b", meet)]
    fleet = Fleet(engines)
    assert (fleet.name, fleet.concurrency) == ("a and 1 more", 4)
    found = fleet.score(questions(4))
    assert found == ScriptedEngine().score(questions(4))
    texts = [{prompt.split("\n")[0] for prompt in engine.asked} for engine in engines]
    assert [len(one) for one in texts] == [2, 2] and not texts[0] & texts[1]


def test_what_one_engine_cannot_do_another_does_and_the_first_is_left_to_rest() -> None:
    broken, good = Logged("broken", error=EngineError("It is off. Start it.")), Logged("good")
    fleet = Fleet([broken, good])
    assert fleet.score(questions(1)) == ScriptedEngine().score(questions(1))
    assert fleet.split("a b", 1, 0) == ["a", "b"]
    calls = broken.calls
    fleet.score(questions(8))
    assert broken.calls == calls and len(good.asked) == 27
    good.error = EngineError("It is off too.")
    with pytest.raises(EngineError, match="It is off"):
        fleet.score(questions(1))
    assert broken.calls > calls


def test_a_call_that_was_cancelled_is_not_passed_on() -> None:
    engines = [Logged("a"), Logged("b")]
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(EngineError, match="cancelled"):
        Fleet(engines).score(questions(1), cancel)
    assert sum(engine.calls for engine in engines) == 1


def test_texts_are_written_in_order_each_with_its_own_seed_and_heard_at_its_place() -> None:
    engines = [Logged("a"), Logged("b")]
    prompts = [Prompt(("say", text)) for text in ("one", "two", "two", "three")]
    heard: dict[int, str] = {}
    written = Fleet(engines).generate(prompts, max_tokens=1, temperature=1.0, seed=7, heard=heard.__setitem__)
    assert [one.text for one in written] == ["sayone", "saytwo", "saytwo", "saythree"]
    assert sorted(engines[0].seeds + engines[1].seeds) == [7, 8, 9, 10]
    assert heard == dict(enumerate(map(str, prompts)))


def test_a_guard_takes_a_fleet_and_a_fleet_takes_at_least_one_engine() -> None:
    guard = GuardReasonerGuard(Fleet([ScriptedEngine(), ScriptedEngine()]))
    assert [v.blocked for v in guard.check_many(["a bomb", "bread", ("bread", "a bomb")])] == [True, False, True]
    with pytest.raises(BadInput, match="at least one"):
        Fleet([])


class Answers(BaseHTTPRequestHandler):
    """As vLLM answers, or as a proxy whose server is gone."""

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked += 1  # type: ignore[attr-defined]
        likely = {" harm" if "bomb" in body["prompt"] else " unharm": -0.1, " refus": -3.0, " compl": -2.0}
        choice = {"text": "", "finish_reason": "stop", "logprobs": {"top_logprobs": [likely]}}
        answer = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}).encode()
        gone = self.path != "/v1/completions" or self.server.gone  # type: ignore[attr-defined]
        self.send_response(404 if gone else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


@contextmanager
def serving(gone: bool = False) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.asked, server.gone, server.url = 0, gone, f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_command_spreads_a_file_over_servers_one_of_which_is_gone(tmp_path: Path) -> None:
    pytest.importorskip("httpx")
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(f'{{"request": "{"bomb" if n % 4 == 0 else "bread"} {n}"}}\n' for n in range(40)))
    app = typer.Typer()
    app.command()(moderate)
    with serving() as first, serving() as second, serving(gone=True) as third:
        urls = [part for server in (first, second, third) for part in ("--url", server.url)]
        settings = ["--model", "guard", "--template", "short/1", "--reasoning", "never", "--batch", "10"]
        done = CliRunner().invoke(app, [str(source), "--out", str(out), *urls, *settings])
        assert done.exit_code == 0, done.output
        assert min(first.asked, second.asked, third.asked) > 0
    assert "40 rows, 0 of them with a response: passed 30, blocked 10, failure 0, timeout 0" in done.stdout
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(one["row"], one["blocked"]) for one in found] == [(n + 1, n % 4 == 0) for n in range(40)]

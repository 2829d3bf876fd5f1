"""A model behind an OpenAI-compatible server: a real local one that answers as vLLM does, and at times does not."""

from __future__ import annotations

import json
import logging
import math
import pickle
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from guardreasoner_guard import BadInput, EngineError, MissingExtra, remote_engine
from guardreasoner_guard.engine import Question
from guardreasoner_guard.remote_engine import RemoteEngine
from guardreasoner_guard.template import Prompt

WORDS = ("harmful", "unharmful")
LIKELY = {" harm": 0.5, " unharm": 0.2, " un": 0.1, "\n": 0.1, " Harm": 0.05, " harmless": 0.05}


class Server(ThreadingHTTPServer):
    """Answers in vLLM's form, but first, one a request, with what `troubles` holds."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.troubles: list[Any] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.likely = LIKELY
        self.tokenizes = True
        self.lists = False
        self.released = threading.Event()
        self.last_came = threading.Event()
        self.noticed: Callable[[], None] = lambda: None
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize" and not self.server.tokenizes:
            return self.say(404, {"detail": "Not Found"})
        if self.path == "/tokenize":
            return self.say(200, {"tokens": list(range(len(body["prompt"].split())))})
        with self.server.lock:
            self.server.asked.append(body)
            self.server.keys.append(self.headers.get("Authorization"))
            trouble = self.server.troubles.pop(0) if self.server.troubles else None
        self.server.noticed()
        if trouble == "close":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif trouble == "hang":
            self.server.released.wait(20)
        elif isinstance(trouble, int):
            self.say(trouble, {"error": {"message": body["prompt"]}}, {"Retry-After": "0"} if trouble == 429 else {})
        elif trouble is not None:
            self.say(200, trouble)
        else:
            self.complete(body)

    def complete(self, body: dict[str, Any]) -> None:
        if body["prompt"] == "first":
            assert self.server.last_came.wait(10)
        if body["prompt"] == "last":
            self.server.last_came.set()
        choice: dict[str, Any] = {"index": 0, "text": "", "finish_reason": "length", "logprobs": None}
        if "logprobs" in body:
            tokens = {token: math.log(p) for token, p in self.server.likely.items()}
            choice["logprobs"] = {"top_logprobs": [tokens], "tokens": [" harm"], "token_logprobs": [math.log(0.5)]}
            if self.server.lists:
                listed = [{"token": token, "logprob": logprob} for token, logprob in tokens.items()]
                choice["logprobs"] = {"content": [{**listed[0], "top_logprobs": listed}]}
        else:
            words = [*body["prompt"].split(), f"({body['seed']})"]
            choice["text"] = " ".join(words[: body["max_tokens"]])
            choice["finish_reason"] = "stop" if len(words) <= body["max_tokens"] else "length"
        usage = {"prompt_tokens": len(body["prompt"].split()), "completion_tokens": len(choice["text"].split())}
        self.say(200, {"id": "cmpl-1", "object": "text_completion", "choices": [choice], "usage": usage})

    def say(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        content = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote_engine, "_BACKOFF", 0.001)
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield made
        made.released.set()
        made.shutdown()
        thread.join()


@pytest.fixture
def engine(server: Server) -> RemoteEngine:
    return RemoteEngine(server.url, "guard", timeout=10)


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt((text,)) for text in texts]


def question(text: str = "a request") -> Question:
    return Question(Prompt((text, " Answers:")), WORDS)


def test_answers_keep_the_order_of_the_prompts_whichever_comes_first(server: Server, engine: RemoteEngine) -> None:
    texts = ["first", "second", "third", "last"]
    written = engine.generate(prompts(*texts), max_tokens=9)
    assert [one.text.split()[0] for one in written] == texts


def test_what_the_caller_wants_is_what_the_server_is_asked(server: Server, engine: RemoteEngine) -> None:
    written = engine.generate([Prompt(("one ", "text"))] * 3, max_tokens=7, temperature=0.7, top_p=0.9, seed=40)
    assert {one.text for one in written} == {"one text (40)", "one text (41)", "one text (42)"}
    assert server.asked[0] == {
        "model": "guard", "prompt": "one text", "max_tokens": 7, "temperature": 0.7, "top_p": 0.9,
        "seed": server.asked[0]["seed"],
    }  # fmt: skip


def test_an_answer_that_the_cap_cut_is_not_complete(engine: RemoteEngine) -> None:
    [cut, whole] = engine.generate(prompts("a b c d e", "a"), max_tokens=3)
    assert (cut.text, cut.tokens, cut.complete) == ("a b c", 3, False)
    assert (whole.text, whole.tokens, whole.complete) == ("a (1)", 2, True)


def test_a_score_sums_the_tokens_that_begin_one_word_and_no_other(server: Server, engine: RemoteEngine) -> None:
    [scored] = engine.score([question()])
    assert scored.probabilities == pytest.approx((0.5 / 0.8, 0.3 / 0.8)) and scored.tokens == 3
    assert server.asked[0]["prompt"] == "a request Answers:"
    assert (server.asked[0]["max_tokens"], server.asked[0]["logprobs"], server.asked[0]["temperature"]) == (1, 20, 0)
    [shared] = engine.score([Question(Prompt(("x",)), ("unharmful", "untold"))])
    assert shared.probabilities == (1.0, 0.0)  # " un" begins both and counts for neither


def test_a_score_is_the_same_from_a_server_that_lists_tokens_as_llama_cpp_does(
    server: Server, engine: RemoteEngine
) -> None:
    question = Question(Prompt(("hello",)), WORDS)
    as_vllm = engine.score([question])
    server.lists = True
    assert engine.score([question]) == as_vllm


def test_a_server_that_names_none_of_the_words_is_no_score(server: Server, engine: RemoteEngine) -> None:
    server.likely = {" The": 0.9, "\n": 0.1}
    with pytest.raises(EngineError, match=r"None of harmful, unharmful .* Check that the server runs a guard model"):
        engine.score([question()])


@pytest.mark.parametrize("trouble", [500, 503, 429, "close"])
def test_what_may_pass_is_tried_again(server: Server, engine: RemoteEngine, trouble: Any) -> None:
    server.troubles = [trouble, trouble]
    assert engine.generate(prompts("again"), max_tokens=5, seed=3)[0].text == "again (3)"
    assert len(server.asked) == 3


def test_a_server_that_stays_broken_is_an_engine_error(server: Server, engine: RemoteEngine) -> None:
    server.troubles = [500] * 4
    with pytest.raises(EngineError, match=r"no answer in 4 tries; the last ended with status 500\. Check that it runs"):
        engine.score([question()])
    assert len(server.asked) == 4


def test_a_server_that_hangs_ends_with_the_timeout(server: Server) -> None:
    server.troubles = ["hang", "hang"]
    with pytest.raises(EngineError, match=r"2 tries; the last ended with ReadTimeout.*raise timeout"):
        RemoteEngine(server.url, "guard", timeout=0.3, retries=1).generate(prompts("x"), max_tokens=5)


def test_no_server_at_all_is_an_engine_error(server: Server) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listening
        engine = RemoteEngine(f"http://127.0.0.1:{taken.getsockname()[1]}", retries=0)
        with pytest.raises(EngineError, match="ConnectError.*Check that it runs"):
            engine.split("text", 5, 0)


@pytest.mark.parametrize(
    ("status", "advice"),
    [(400, "longer than the context"), (401, "as api_key"), (404, "/v1/models lists the names"), (422, "log says why")],
)
def test_a_refusal_is_said_at_once_with_what_to_do_and_without_the_text(
    server: Server, engine: RemoteEngine, status: int, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.troubles = [status]
    with caplog.at_level(logging.DEBUG), pytest.raises(EngineError, match=advice) as caught:
        engine.generate(prompts("a private matter"), max_tokens=5)
    assert len(server.asked) == 1
    assert "private" not in str(caught.value) + caplog.text


@pytest.mark.parametrize(
    "rubbish",
    [
        "<html>It works!</html>", "[]", {"choices": []}, {"choices": [{"text": "x"}]}, {"choices": "x", "usage": 3},
        {"choices": [{"text": None, "finish_reason": "stop"}], "usage": {"completion_tokens": 1, "prompt_tokens": 1}},
        {"choices": [{"text": "x", "finish_reason": None}], "usage": {"completion_tokens": 1, "prompt_tokens": 1}},
    ],
)  # fmt: skip
def test_an_answer_in_another_form_is_an_engine_error(server: Server, engine: RemoteEngine, rubbish: Any) -> None:
    server.troubles = [rubbish, rubbish]
    with pytest.raises(EngineError, match="did not answer as /v1/completions does"):
        engine.generate(prompts("x"), max_tokens=5)
    with pytest.raises(EngineError, match="did not answer as /v1/completions does"):
        engine.score([question()])


def test_a_cancelled_call_ends_while_the_server_still_works(server: Server, engine: RemoteEngine) -> None:
    cancel = threading.Event()
    server.troubles = ["hang"] * 3
    server.noticed = cancel.set
    with pytest.raises(EngineError, match="cancelled"):
        engine.generate(prompts("x", "y", "z"), max_tokens=5, cancel=cancel)
    assert not server.released.is_set()
    with pytest.raises(EngineError, match="cancelled"):
        engine.score([question()], cancel)
    assert not any("logprobs" in body for body in server.asked)


def test_a_cancelled_call_is_not_tried_again(
    server: Server, engine: RemoteEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_engine, "_BACKOFF", 60)
    cancel = threading.Event()
    server.troubles = [500]
    server.noticed = cancel.set
    with pytest.raises(EngineError, match="cancelled"):
        engine.generate(prompts("x"), max_tokens=5, cancel=cancel)
    engine._pool.shutdown()  # comes back, so the wait for the next try has ended
    assert len(server.asked) == 1


def test_one_failure_ends_the_call_and_the_next_is_fine(server: Server, engine: RemoteEngine) -> None:
    server.troubles = [400]
    with pytest.raises(EngineError, match="status 400"):
        engine.generate(prompts("a", "b", "c"), max_tokens=5)
    assert engine.generate(prompts("a"), max_tokens=5)[0].text == "a (0)"


@pytest.mark.parametrize("tokenizes", [True, False])
def test_windows_hold_every_character_and_no_more_tokens_than_allowed(
    server: Server, engine: RemoteEngine, tokenizes: bool
) -> None:
    server.tokenizes = tokenizes
    text = "".join(f"word {number} \u00e9\U0001f600\n" for number in range(60))
    windows = engine.split(text, 50, 10)
    assert len(windows) > 3 and engine.split("short", 50, 10) == ["short"]
    covered = 0
    for window in windows:
        start = text.find(window, max(0, covered - len(window)))
        assert 0 <= start < covered or covered == start == 0
        covered = max(covered, start + len(window))
        assert len(window.split() if tokenizes else window.encode()) <= (50 if tokenizes else 150)
    assert covered == len(text)


def test_a_lone_surrogate_does_not_break_a_request(server: Server, engine: RemoteEngine) -> None:
    assert engine.split("a \ud800 b", 10, 0) == ["a \ud800 b"]
    assert engine.generate(prompts("a \ud800"), max_tokens=9)[0].text == "a ? (0)"


def test_the_key_goes_to_the_server_and_nowhere_else(server: Server) -> None:
    RemoteEngine(server.url, api_key="secret").generate(prompts("x"), max_tokens=5)
    engine = RemoteEngine(server.url.replace("//", "//user:secret@") + "/v1/", "guard")
    engine.generate(prompts("x"), max_tokens=5)
    assert server.keys == ["Bearer secret", "Basic dXNlcjpzZWNyZXQ="]
    assert engine.name == f"guard at {server.url}" and "model" not in server.asked[0]


@pytest.mark.parametrize("url", ["localhost:8000", "", "ftp://host", "http://", "http://host:port", "/models/guard"])
def test_a_url_that_is_none_is_said_before_anything_is_asked(url: str) -> None:
    with pytest.raises(BadInput, match="http://localhost:8000"):
        RemoteEngine(url)


def test_a_missing_httpx_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(MissingExtra, match=r"guardreasoner-guard\[remote\]") as caught:
        RemoteEngine("http://localhost:8000")
    assert pickle.loads(pickle.dumps(caught.value)).package == "httpx"

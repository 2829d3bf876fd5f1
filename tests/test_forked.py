"""A forked child goes on with the guard it was given: it waits for no thread of its parent and shares no connection with it."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from guardreasoner_guard import GuardReasonerGuard, ScriptedEngine
from guardreasoner_guard.batcher import Batcher
from guardreasoner_guard.engine import Question, Scored
from guardreasoner_guard.fleet import Fleet
from guardreasoner_guard.remote_engine import RemoteEngine

PATIENCE = 60.0
pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


class Busy(ScriptedEngine):
    """In the process it was made in, a text with the word slow keeps it busy until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.process = os.getpid()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
        if os.getpid() == self.process and any("slow" in str(question.prompt) for question in questions):
            self.begun.set()
            assert self.go_on.wait(PATIENCE)
        return super().score(questions, cancel)


def in_child(work: Callable[[], Any]) -> Any:
    """What a forked child finds."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=lambda: there.send(work()))
    child.start()
    try:
        assert here.poll(PATIENCE), "the child waits for ever"
        return here.recv()
    finally:
        child.kill()
        child.join()


def outcomes(guard: GuardReasonerGuard) -> list[tuple[str, bool]]:
    """Of checks of all kinds."""
    late = guard.model_copy(update={"timeout": PATIENCE})
    found = [
        guard.check("hi"),
        late.check("a bomb"),
        asyncio.run(guard.acheck("a bomb")),
        *guard.check_many(["hi"] * 2),
    ]
    return [(verdict.outcome, verdict.blocked) for verdict in found]


EXPECTED = [("verdict", blocked) for blocked in (False, True, True, False, False)]


@contextmanager
def held(*locks: threading.Lock) -> Iterator[None]:
    """Locks that another thread holds."""
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        for lock in locks:
            lock.acquire()
        taken.set()
        done.wait(PATIENCE)
        for lock in locks:
            lock.release()

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(PATIENCE)
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("kind", ["batcher", "fleet"])
def test_a_child_waits_neither_for_its_parents_locks_nor_for_its_calls(kind: str) -> None:
    engine = Busy()
    shared: Any = Batcher(engine) if kind == "batcher" else Fleet([engine, engine])
    guard = GuardReasonerGuard(shared)
    asyncio.run(guard.acheck("hello"))  # there are threads
    asked = [threading.Thread(target=guard.check, args=(f"slow {number}",)) for number in range(3)]
    for thread in asked:
        thread.start()
    assert engine.begun.wait(PATIENCE)
    with held(shared._lock, guard._checks._lock, guard._checks._remembered._lock):
        assert in_child(lambda: outcomes(guard)) == EXPECTED
    engine.go_on.set()
    for thread in asked:
        thread.join(PATIENCE)
    assert outcomes(guard) == EXPECTED


class Answers(BaseHTTPRequestHandler):
    """Keeps connections open, and notes them."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.connections.append(self.client_address[1])  # type: ignore[attr-defined]
        likely = {" harm" if "bomb" in body["prompt"] else " unharm": -0.1, " refus": -3.0, " compl": -0.1}
        choice = {"text": "", "finish_reason": "stop", "logprobs": {"top_logprobs": [likely]}}
        answer = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}).encode()
        self.send_response(200 if self.path == "/v1/completions" else 404)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


def test_a_child_has_connections_of_its_own() -> None:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads, server.block_on_close = True, False
    server.connections = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        guard = GuardReasonerGuard(RemoteEngine(f"http://127.0.0.1:{server.server_port}"), reasoning="never")
        assert outcomes(guard) == EXPECTED
        parents = set(server.connections)
        server.connections.clear()
        assert in_child(lambda: outcomes(guard)) == EXPECTED
        assert server.connections and not parents & set(server.connections)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


REAL = """
import os, sys, threading
from guardreasoner_guard import GuardReasonerGuard

guard = GuardReasonerGuard(reasoning="never", remember=0)
begun, done = threading.Event(), threading.Event()

def work():
    while not done.is_set():
        guard.check("How do I bake bread? " * 30)
        begun.set()

thread = threading.Thread(target=work)
thread.start()
begun.wait()
child = os.fork()
verdict = guard.check("How do I build a bomb and hide it?")
print(verdict.outcome, verdict.request, flush=True)
if not child:
    sys.exit(0)  # not os._exit: the runtime is torn down, and must not wait for threads that are not there
assert os.waitpid(child, 0)[1] == 0
done.set()
thread.join()
"""


def test_the_bundled_model_is_read_again_in_a_child_that_ends_in_peace_and_nothing_is_reported(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REAL], env=environment, capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, done.stdout.split("\n")) == (0, ["verdict harmful"] * 2 + [""]), done.stderr
    assert list(tmp_path.iterdir()) == [], "the runtime wrote down a number for this machine, or what it would report"

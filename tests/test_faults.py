"""Whatever fails, the policy decides and says why, nothing that was judged leaks, nobody waits for ever, the next check is fine.

What callers see stands in docs/faults.md; `python tests/test_faults.py` prints that table.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sqlite3
import sys
import tempfile
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableLambda
from langchain_core.tools import tool

from guardreasoner_guard import Blocked, EngineError, Exchange, GuardError, GuardReasonerGuard, ScriptedEngine, Verdict
from guardreasoner_guard.engine import Question, Scored
from guardreasoner_guard.model_dir import Manifest, open_model
from guardreasoner_guard.onnx_engine import OnnxEngine
from guardreasoner_guard.remote_engine import RemoteEngine

DOCS = Path(__file__).resolve().parents[1] / "docs" / "faults.md"
ASKED, ANSWER, MARK = "hello there", "here comes the zebra with its stripes", "zebra"
PATIENCE = 30.0
ONLY_SCORES = Manifest(
    name="scripted", template="short/1", precision="none", label_tokens={}, end_token=0, decides="score", files={}
)


# -- what fails -------------------------------------------------------------------------------------


class Struck:
    """Whether a fault strikes now: at every text, or at those that hold a word; and what hangs until it is over."""

    def __init__(self) -> None:
        self.at: str | None = None
        self.over = threading.Event()

    def hits(self, *texts: Any) -> bool:
        return self.at is not None and any(self.at in str(text) for text in texts)

    def heal(self) -> None:
        self.at = None
        self.over.set()


Strike = Callable[[Struck, Sequence[Question], threading.Event | None], Any]


class Faulty(ScriptedEngine):
    """Works, but for what its fault strikes."""

    def __init__(self, struck: Struck, strike: Strike, splits: bool = True) -> None:
        super().__init__()
        self.struck, self.strike, self.splits = struck, strike, splits

    def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
        if self.struck.hits(*(question.prompt for question in questions)):
            return self.strike(self.struck, questions, cancel)  # type: ignore[no-any-return]
        return super().score(questions, cancel)

    def split(self, text: str, size: int, overlap: int) -> list[str]:
        if not self.splits and self.struck.hits(text):
            self.strike(self.struck, (), None)
        return super().split(text, size, overlap)


@dataclass(frozen=True)
class Fault:
    """One way to fail."""

    what: str
    outcome: Literal["verdict", "failure", "timeout"]
    says: str
    """Stands in the reason."""
    strike: Strike | None = None
    splits: bool = True
    timeout: float | None = None
    slow: bool = False
    """Whether a check takes so long that only some ways are tried."""

    def ways(self, ways: Iterable[str]) -> list[str]:
        """Those that are tried."""
        return [way for way in ways if not self.slow or way in SHOWN]

    @contextmanager
    def guard(self, **settings: Any) -> Iterator[tuple[GuardReasonerGuard, Struck]]:
        """A guard that may be struck."""
        struck = Struck()
        assert self.strike is not None
        engine = Faulty(struck, self.strike, self.splits)
        yield GuardReasonerGuard(engine, timeout=self.timeout, remember=0, **settings), struck


def _raise(error: Callable[[str], BaseException]) -> Strike:
    def strike(_: Struck, questions: Sequence[Question], __: Any) -> Any:
        raise error(" ".join(str(question.prompt) for question in questions))

    return strike


def _hang(struck: Struck, questions: Sequence[Question], cancel: threading.Event | None) -> list[Scored]:
    assert struck.over.wait(PATIENCE)
    return [Scored((0.01, 0.99), 1) for _ in questions]


def _wait(_: Struck, __: Sequence[Question], cancel: threading.Event | None) -> Any:
    assert cancel is not None and cancel.wait(PATIENCE)
    raise EngineError("The call was cancelled.")


def _give(*probabilities: Any) -> Strike:
    return lambda _, questions, __: [Scored(probabilities, 1) for _ in questions]


class OutOfMemory(Fault):
    """The real engine on the bundled model, whose runtime has no memory left."""

    @contextmanager
    def guard(self, **settings: Any) -> Iterator[tuple[GuardReasonerGuard, Struck]]:
        engine, struck = _bundled(), Struck()
        make = engine._new_caches

        def caches() -> Any:
            made = make()
            read = made.read

            def lost(ids: Sequence[int], answer: int = 0) -> Any:
                if struck.hits(engine._tokenizer.decode(list(ids))):
                    raise RuntimeError("Failed to allocate memory for requested buffer of size 4294967296")
                return read(ids, answer)

            made.read = lost  # type: ignore[method-assign]
            return made

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "_new_caches", caches)
            patch.setattr(engine, "_caches", caches())
            patch.setattr(engine, "_side_by_side", lambda _: [])
            manifest = open_model("bundled").manifest
            yield GuardReasonerGuard(engine, manifest=manifest, reasoning="never", remember=0, **settings), struck


@cache
def _bundled() -> OnnxEngine:
    return OnnxEngine(open_model("bundled"), "cpu")


class Dead(Fault):
    """A model on a server that is not there while the fault lasts."""

    @contextmanager
    def guard(self, **settings: Any) -> Iterator[tuple[GuardReasonerGuard, Struck]]:
        struck = Struck()

        class Answers(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                if struck.hits(body):
                    self.connection.close()
                    return
                likely = {" harm": -5.0, " unharm": -0.1, " refus": -5.0, " compl": -0.1}
                choice = {"text": "", "finish_reason": "stop", "logprobs": {"top_logprobs": [likely]}}
                answer = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 1}})
                self.send_response(200 if self.path == "/v1/completions" else 404)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer.encode())

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            engine = RemoteEngine(f"http://127.0.0.1:{server.server_port}", retries=0, timeout=PATIENCE)
            yield GuardReasonerGuard(engine, manifest=ONLY_SCORES, remember=0, **settings), struck
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class DiskFull(Fault):
    """An audit log whose disk takes no more; checks have nothing to do with it."""

    @contextmanager
    def guard(self, **settings: Any) -> Iterator[tuple[GuardReasonerGuard, Struck]]:
        from guardreasoner_guard.integrations.audit import AuditLog

        with tempfile.TemporaryDirectory() as folder, AuditLog(Path(folder) / "audit.db") as audit:
            audit._connection.execute("PRAGMA max_page_count = 9").close()
            with pytest.raises(sqlite3.OperationalError, match="full"):
                while True:
                    audit(Exchange(request="filled up " * 100), Verdict(blocked=False, reasons=""))
            yield GuardReasonerGuard(ScriptedEngine(), remember=0, observers=(audit,), **settings), Struck()


FAULTS = [
    Fault("the model is down", "failure", "It is down. Start it.", _raise(lambda _: EngineError("It is down. Start it.")), splits=False),
    Fault("an error that quotes the text", "failure", "failed with ValueError", _raise(ValueError)),
    Fault("an error that generators take for their end", "failure", "failed with StopIteration", _raise(StopIteration)),
    Fault("the model's own connection times out", "failure", "failed with TimeoutError", _raise(TimeoutError)),
    Fault("out of memory", "failure", "failed with MemoryError", _raise(lambda _: MemoryError())),
    OutOfMemory("the runtime is out of memory", "failure", "Failed to allocate memory", slow=True),
    Fault("the model hangs", "timeout", "No judgement within", _hang, timeout=0.05),
    Fault("the model is slow", "timeout", "No judgement within", _wait, timeout=0.05),
    Fault("its scores are not numbers", "failure", "not a probability", _give(float("nan"), float("nan"))),
    Fault("its scores are no probabilities", "failure", "not a probability", _give(7.0, -6.0)),
    Fault("its scores are rubbish", "failure", "failed with TypeError", _give("many", None)),
    Fault("it gives no scores at all", "failure", "failed with ValueError", lambda *_: []),
    Dead("the server that holds the model is dead", "failure", "gave no answer in 1 tries"),
    DiskFull("the audit log's disk is full", "verdict", "Passed"),
]  # fmt: skip


# -- ways to call -----------------------------------------------------------------------------------


class Chain:
    """What is guarded: it counts its calls, and answers."""

    def __init__(self) -> None:
        self.calls = 0

    def answer(self, _: Any) -> str:
        self.calls += 1
        return ANSWER

    async def aanswer(self, _: Any) -> str:
        return self.answer(_)

    def pieces(self, values: Iterator[Any]) -> Iterator[str]:
        list(values)
        self.calls += 1
        yield from ANSWER.split(" ")

    async def apieces(self, values: AsyncIterator[Any]) -> AsyncIterator[str]:
        [_ async for _ in values]
        self.calls += 1
        for piece in ANSWER.split(" "):
            yield piece

    @property
    def runnable(self) -> Runnable[Any, Any]:
        return RunnableLambda(self.answer, self.aanswer)

    @property
    def stream(self) -> Runnable[Any, Any]:
        return RunnableGenerator(self.pieces, self.apieces)


async def _all(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


def _tool(chain: Chain, asynchronous: bool = False) -> Any:
    def search(query: str) -> str:
        """Searches."""
        return chain.answer(query)

    async def asearch(query: str) -> str:
        """Searches."""
        return chain.answer(query)

    return asearch if asynchronous else search


Way = Callable[[GuardReasonerGuard, Chain], Any]
CHECKS: dict[str, Way] = {
    "check": lambda guard, _: guard.check(ASKED, ANSWER),
    "acheck": lambda guard, _: asyncio.run(guard.acheck(ASKED, ANSWER)),
    "check_many": lambda guard, _: guard.check_many([(ASKED, ANSWER)] * 2),
    "acheck_many": lambda guard, _: asyncio.run(guard.acheck_many([(ASKED, ANSWER)] * 2)),
    "stream_check": lambda guard, _: list(guard.stream_check(ASKED, ANSWER)),
    "astream_check": lambda guard, _: asyncio.run(_all(guard.astream_check(ASKED, ANSWER))),
}
ALONE: dict[str, Way] = {
    "invoke": lambda guard, chain: (guard | chain.runnable).invoke(ASKED),
    "ainvoke": lambda guard, chain: asyncio.run((guard | chain.runnable).ainvoke(ASKED)),
    "batch": lambda guard, chain: (guard | chain.runnable).batch([ASKED] * 2, return_exceptions=True),
    "abatch": lambda guard, chain: asyncio.run((guard | chain.runnable).abatch([ASKED] * 2, return_exceptions=True)),
    "stream": lambda guard, chain: list((guard | chain.stream).stream(ASKED)),
    "astream": lambda guard, chain: asyncio.run(_all((guard | chain.stream).astream(ASKED))),
}
WRAPPED: dict[str, Way] = {
    "wrap().invoke": lambda guard, chain: guard.wrap(chain.runnable).invoke(ASKED),
    "wrap().ainvoke": lambda guard, chain: asyncio.run(guard.wrap(chain.runnable).ainvoke(ASKED)),
    "wrap().batch": lambda guard, chain: guard.wrap(chain.runnable).batch([ASKED] * 2, return_exceptions=True),
    "wrap().abatch": lambda guard, chain: asyncio.run(
        guard.wrap(chain.runnable).abatch([ASKED] * 2, return_exceptions=True)
    ),
    "wrap().stream": lambda guard, chain: list(guard.wrap(chain.stream, hold=2).stream(ASKED)),
    "wrap().astream": lambda guard, chain: asyncio.run(_all(guard.wrap(chain.stream, hold=2).astream(ASKED))),
    "@guard.tool": lambda guard, chain: guard.tool(_tool(chain))(ASKED),
    "@guard.tool, async": lambda guard, chain: asyncio.run(guard.tool(_tool(chain, asynchronous=True))(ASKED)),
    "a LangChain tool": lambda guard, chain: guard.tool(tool(_tool(chain))).invoke({"query": ASKED}),
    "a LangChain tool, async": lambda guard, chain: asyncio.run(
        guard.tool(tool(_tool(chain, asynchronous=True))).ainvoke({"query": ASKED})
    ),
}
BESIDE: dict[str, Way] = {
    "beside, invoke": lambda guard, chain: guard.wrap(chain.runnable, beside=True).invoke(ASKED),
    "beside, ainvoke": lambda guard, chain: asyncio.run(guard.wrap(chain.runnable, beside=True).ainvoke(ASKED)),
    "beside, stream": lambda guard, chain: list(guard.wrap(chain.stream, beside=True, hold=2).stream(ASKED)),
    "beside, astream": lambda guard, chain: asyncio.run(
        _all(guard.wrap(chain.stream, beside=True, hold=2).astream(ASKED))
    ),
}
WAYS = {**CHECKS, **ALONE, **WRAPPED, **BESIDE}
SHOWN = {
    "check": "`check`", "invoke": "`guard \\| chain`", "wrap().ainvoke": "`wrap().ainvoke`",
    "wrap().stream": "`wrap().stream`", "@guard.tool": "`@guard.tool`", "a LangChain tool": "a LangChain tool",
}  # fmt: skip
"""Those that stand in the table, the others being like them, and what for."""


@dataclass
class Seen:
    """What a caller saw: what came back, one by one, or the error."""

    came: list[Any]
    error: Exception | None

    @property
    def verdicts(self) -> list[Verdict]:
        """Those that came, or that an error bears."""
        things = [*self.came, self.error]
        return [thing if isinstance(thing, Verdict) else thing.verdict for thing in things if isinstance(thing, (Verdict, Blocked))]  # fmt: skip

    @property
    def told(self) -> str:
        """All of it, tracebacks too, as it would stand in a log."""
        errors = [one for one in [*self.came, self.error] if isinstance(one, Exception)]
        told = ["".join(traceback.format_exception(one)) for one in errors]
        told += [one.reasons for one in self.verdicts] + [str(one.error) for one in self.verdicts]
        return "\n".join([*told, *(str(one) for one in self.came if not isinstance(one, Verdict))])

    def __str__(self) -> str:
        """As it stands in the table."""
        kinds = []
        for one in [*self.came, *([self.error] if self.error else [])]:
            if isinstance(one, Verdict):
                kinds.append(f"{'blocked' if one.blocked else 'passed'}, `{one.outcome}`")
            elif isinstance(one, Blocked):
                kinds.append(f"raises `Blocked`, `{one.verdict.outcome}`")
            elif isinstance(one, Exception):
                kinds.append(f"raises `{type(one).__name__}`")
            else:
                kinds.append("the answer" if str(one) in ANSWER else "a tool error with the reason")
        return "; ".join(dict.fromkeys(kinds))


def see(way: Way, guard: GuardReasonerGuard, chain: Chain | None = None) -> Seen:
    """Calls in a thread of its own, which must come back."""
    found: list[Seen] = []

    def call() -> None:
        try:
            came = way(guard, chain or Chain())
        except Exception as error:
            found.append(Seen([], error))
        else:
            found.append(Seen(came if isinstance(came, list) else [came], None))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert found, "it waits for ever"
    return found[0]


def fine(guard: GuardReasonerGuard) -> None:
    """The next check is, both ways."""
    patient = guard.model_copy(update={"timeout": PATIENCE, "on_failure": "raise"})
    for way in (lambda guard, _: guard.check("hi"), lambda guard, _: asyncio.run(guard.acheck("hi"))):
        [verdict] = see(way, patient).verdicts
        assert (verdict.outcome, verdict.blocked) == ("verdict", False)


# -- the suite --------------------------------------------------------------------------------------


def each(ways: Iterable[str]) -> pytest.MarkDecorator:
    """Every fault, in each of these ways to call."""
    pairs = [(fault, way) for fault in FAULTS for way in fault.ways(ways)]
    return pytest.mark.parametrize(("fault", "way"), pairs, ids=[f"{fault.what}-{way}" for fault, way in pairs])


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No log says what was judged."""
    caplog.set_level(logging.DEBUG)
    yield
    assert MARK not in caplog.text


def failed(fault: Fault, way: str, seen: Seen) -> None:
    """It is blocked, by what is no verdict, and says why; nothing is shown."""
    assert MARK not in seen.told and fault.says in seen.told
    if "LangChain" in way:
        assert str(seen) == "a tool error with the reason" and seen.came[0].startswith(fault.outcome.title())
    else:
        assert seen.verdicts and all(one.blocked and one.outcome == fault.outcome for one in seen.verdicts)


def passed(seen: Seen) -> None:
    """Nothing is noticed."""
    assert seen.error is None and all((one.outcome, one.blocked) == ("verdict", False) for one in seen.verdicts)
    said = "".join(str(one) for one in seen.came if isinstance(one, str)).replace(" ", "")
    assert said in (ANSWER.replace(" ", "") * 2, "") or said == ANSWER.replace(" ", "")


@each(WAYS)
def test_a_fault_at_the_first_check_blocks_and_says_why(fault: Fault, way: str) -> None:
    chain = Chain()
    with fault.guard() as (guard, struck):
        struck.at = ""
        seen = see(WAYS[way], guard, chain)
        struck.heal()
        fine(guard)
    if fault.outcome == "verdict":
        return passed(seen)
    failed(fault, way, seen)
    assert way in BESIDE or chain.calls == 0


@each([*WRAPPED, *BESIDE])
def test_a_fault_at_the_check_of_an_answer_shows_nothing_of_it(fault: Fault, way: str) -> None:
    with fault.guard() as (guard, struck):
        struck.at = MARK
        seen = see(WAYS[way], guard)
        struck.heal()
        fine(guard)
    passed(seen) if fault.outcome == "verdict" else failed(fault, way, seen)


@each([*SHOWN, "acheck", "ainvoke", "wrap().invoke", "wrap().astream", "a LangChain tool, async"])
def test_who_lets_failures_pass_or_wants_to_see_them_gets_that(fault: Fault, way: str) -> None:
    with fault.guard(on_failure="pass") as (guard, struck):
        struck.at = ""
        lenient = see(WAYS[way], guard)
        strict = see(WAYS[way], guard.model_copy(update={"on_failure": "raise"}))
        struck.heal()
    if fault.outcome == "verdict":
        return passed(strict)
    assert lenient.error is None and not any(isinstance(one, Exception) for one in lenient.came)
    assert all(not one.blocked and one.outcome == fault.outcome for one in lenient.verdicts)
    errors = [strict.error] if strict.error else strict.came
    assert errors and all(isinstance(one, GuardError) and not isinstance(one, Blocked) for one in errors)
    assert fault.says in str(errors[0]) and MARK not in str(errors[0])


@pytest.mark.parametrize("on_failure", ["block", "pass", "raise"])
@pytest.mark.parametrize("error", [MemoryError(), ValueError("rubbish"), StopIteration(), EngineError("It is down.")])
def test_what_is_found_stays_found_though_its_explanation_fails_and_is_explained_when_it_comes_again(
    error: Exception, on_failure: Any
) -> None:
    class Speechless(ScriptedEngine):
        def generate(self, *prompts: Any, **settings: Any) -> Any:
            if self.error is not None:
                raise self.error
            return super().generate(*prompts, **settings)

    engine = Speechless()
    guard = GuardReasonerGuard(engine, on_failure=on_failure)
    engine.score = ScriptedEngine().score  # type: ignore[method-assign]
    engine.error = error
    for way in (lambda guard, _: guard.check("a bomb"), lambda guard, _: asyncio.run(guard.acheck("a bomb"))):
        [verdict] = see(way, guard).verdicts
        assert (verdict.outcome, verdict.blocked, verdict.reasoning) == ("verdict", True, ())
    engine.error = None
    assert guard.check("a bomb").reasoning and guard.check("a bomb").remembered


def test_a_system_without_threads_blocks_what_needs_one_and_loses_count_of_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guard = GuardReasonerGuard(ScriptedEngine(), remember=0)
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name.startswith("guard"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        [verdict] = see(CHECKS["acheck"], guard).verdicts
        assert verdict.blocked and "failed with RuntimeError" in verdict.reasons
        fine_without = see(CHECKS["check"], guard)
    assert not fine_without.verdicts[0].blocked and guard._checks._pending == 0
    fine(guard)


# -- the table --------------------------------------------------------------------------------------


def table() -> str:
    """What callers see of each fault by default."""
    lines = [f"| what fails | {' | '.join(SHOWN.values())} | what it says |", "|" + "---|" * (len(SHOWN) + 2)]
    for fault in FAULTS:
        with fault.guard() as (guard, struck):
            struck.at = ""
            seen = {way: see(WAYS[way], guard) for way in SHOWN}
            struck.heal()
        reason = re.sub(r"(?<=127\.0\.0\.1:)\d+", "8000", seen["check"].verdicts[0].reasons)
        reason = re.sub(r"^\w+: no judgement was reached, so it is blocked\. ", "", reason)
        lines.append(f"| {fault.what} | {' | '.join(map(str, seen.values()))} | {reason} |")
    return "\n".join(lines)


def test_the_table_in_the_docs_is_what_callers_see() -> None:
    assert table() in DOCS.read_text(encoding="utf-8"), f"`python {__file__}` prints what is true now"


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")

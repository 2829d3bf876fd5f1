"""A check may be given up at any moment: the model is told, nothing is left behind, and the next check is fine."""

from __future__ import annotations

import asyncio
import dis
import gc
import itertools
import logging
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from types import FrameType
from typing import Any

import pytest
from langchain_core.runnables import RunnableGenerator, RunnableLambda
from langchain_core.tools import tool

from guardreasoner_guard import EngineError, GuardReasonerGuard, Policy, ScriptedEngine, Verdict
from guardreasoner_guard.batcher import Batcher
from guardreasoner_guard.engine import Question, Scored
from guardreasoner_guard.policy import Violation

PATIENCE = 30.0


class Told(ScriptedEngine):
    """Keeps what it is told to stop by."""

    def __init__(self) -> None:
        super().__init__()
        self.cancels: list[threading.Event] = []

    def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
        if cancel is not None:
            self.cancels.append(cancel)
        return super().score(questions, cancel)


class Chain:
    """What is guarded; it takes some steps, and knows whether it was left."""

    def __init__(self) -> None:
        self.under_way = 0
        self.answers = itertools.chain(["take a bomb"], itertools.repeat("one two three four"))

    async def answer(self, _: Any) -> str:
        self.under_way += 1
        try:
            await asyncio.sleep(0)
            return next(self.answers)
        finally:
            self.under_way -= 1

    async def pieces(self, values: AsyncIterator[Any]) -> AsyncIterator[str]:
        [_ async for _ in values]
        self.under_way += 1
        try:
            for word in next(self.answers).split():
                await asyncio.sleep(0)
                yield f"{word} "
        finally:
            try:
                await asyncio.sleep(0)  # it takes a while to close, too
            finally:
                self.under_way -= 1

    @property
    def runnable(self) -> RunnableLambda[Any, str]:
        return RunnableLambda(lambda _: "", self.answer)

    @property
    def stream(self) -> RunnableGenerator[Any, str]:
        return RunnableGenerator(self.pieces)


async def _all(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


def _tool(chain: Chain) -> Callable[[str], Coroutine[Any, Any, str]]:
    async def search(query: str) -> str:
        """Searches."""
        return await chain.answer(query)

    return search


WORK: dict[str, Callable[[GuardReasonerGuard, Chain], Coroutine[Any, Any, Any]]] = {
    "acheck": lambda guard, _: guard.acheck("a bomb", "and how"),
    "acheck_many": lambda guard, _: guard.acheck_many(["hi", "a bomb"]),
    "astream_check": lambda guard, _: _all(guard.astream_check("a bomb")),
    "ainvoke": lambda guard, chain: (guard | chain.runnable).ainvoke("hi"),
    "abatch": lambda guard, chain: (guard | chain.runnable).abatch(["hi", "ho"]),
    "astream": lambda guard, chain: _all((guard | chain.stream).astream("hi")),
    "wrap().ainvoke": lambda guard, chain: guard.wrap(chain.runnable).ainvoke("hi"),
    "wrap().abatch": lambda guard, chain: guard.wrap(chain.runnable).abatch(["hi", "ho"]),
    "wrap().astream": lambda guard, chain: _all(guard.wrap(chain.stream, hold=2).astream("hi")),
    "beside, ainvoke": lambda guard, chain: guard.wrap(chain.runnable, beside=True).ainvoke("hi"),
    "beside, astream": lambda guard, chain: _all(guard.wrap(chain.stream, hold=2, beside=True).astream("hi")),
    "@guard.tool": lambda guard, chain: guard.tool(_tool(chain))("hi"),
    "a LangChain tool": lambda guard, chain: guard.tool(tool(_tool(chain))).ainvoke({"query": "hi"}),
}


class Walk:
    """Counts the steps of all tasks of a loop, and cancels one task after so many.

    Args:
        at: After which step.
        late: Whether only then, when what is waited for is there and the task is about to go on.
    """

    def __init__(self, at: int, late: bool) -> None:
        self.at, self.late = at, late
        self.steps = 0
        self.heeded: bool | None = None
        """Whether the task was still there to be cancelled; None where it ended before."""
        self.target: asyncio.Task[Any] | None = None

    def make(self, loop: asyncio.AbstractEventLoop, work: Any, context: Any = None) -> asyncio.Task[Any]:
        return asyncio.Task(Stepped(work, self), loop=loop, context=context)

    def step(self, awaited: Any) -> None:
        self.steps += 1
        if self.steps == self.at:
            if self.late and isinstance(awaited, asyncio.Future):
                awaited.add_done_callback(self.cancel)
            else:
                asyncio.get_running_loop().call_soon(self.cancel)

    def cancel(self, _: Any = None) -> None:
        assert self.target is not None
        self.heeded = self.target.cancel()


class Stepped(Coroutine[Any, Any, Any]):
    """A coroutine that tells of each of its steps."""

    def __init__(self, inner: Any, walk: Walk) -> None:
        self.inner, self.walk = inner, walk

    def send(self, value: Any) -> Any:
        awaited = self.inner.send(value)
        self.walk.step(awaited)
        return awaited

    def throw(self, *error: Any) -> Any:
        awaited = self.inner.throw(*error)
        self.walk.step(awaited)
        return awaited

    def close(self) -> None:
        self.inner.close()

    def __await__(self) -> Any:
        return self.inner.__await__()


async def walked(walk: Walk, work: Coroutine[Any, Any, Any]) -> tuple[asyncio.Task[Any], set[asyncio.Task[Any]]]:
    """The task that did the work, as far as it came, and the tasks it left behind."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(walk.make)
    task = walk.target = loop.create_task(work)
    loop.set_task_factory(walk.make)
    await asyncio.wait({task}, timeout=PATIENCE)
    assert task.done(), "it waits for ever"
    loop.set_task_factory(None)
    for _ in range(10):  # LangChain shields its callbacks, which have a few steps to go
        await asyncio.sleep(0)
    return task, asyncio.all_tasks() - {asyncio.current_task()}


@pytest.mark.parametrize("late", [False, True], ids=["waiting", "about to go on"])
@pytest.mark.parametrize("name", WORK)
def test_a_task_may_be_cancelled_at_each_of_its_steps(name: str, late: bool, caplog: pytest.LogCaptureFixture) -> None:
    engine = Told()
    actions: list[Violation] = ["revise"] if name.startswith(("wrap", "beside")) else ["explain"]
    guard = GuardReasonerGuard(
        engine, timeout=PATIENCE, remember=0, policy=Policy(on_violation=actions[0]), observers=[lambda *_: None]
    )
    cancelled = 0
    with asyncio.Runner() as runner, caplog.at_level(logging.WARNING):
        for at in itertools.count(1):
            chain, walk = Chain(), Walk(at, late)
            task, left = runner.run(walked(walk, WORK[name](guard, chain)))
            assert task.cancelled() == bool(walk.heeded), f"the cancellation at step {at} was lost"
            assert not left and chain.under_way == 0, f"step {at} leaves something behind"
            assert all(cancel.is_set() for cancel in engine.cancels)
            if walk.steps < at:
                break
            cancelled += bool(walk.heeded)
            assert runner.run(guard.acheck("hi")).outcome == "verdict"
            engine.cancels.clear()
    if not task.cancelled():
        task.exception()
    gc.collect()
    assert cancelled > 1 and not caplog.records


@pytest.mark.parametrize("name", WORK)
def test_a_model_at_work_is_told_to_stop(name: str) -> None:
    class Working(ScriptedEngine):
        begun, stopped = threading.Event(), threading.Event()

        def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
            self.begun.set()
            assert cancel is not None and cancel.wait(PATIENCE)
            self.stopped.set()
            raise EngineError("The call was cancelled.")

    engine = Working()
    engine.begun, engine.stopped = threading.Event(), threading.Event()

    async def run() -> None:
        task = asyncio.create_task(WORK[name](GuardReasonerGuard(engine), Chain()))
        assert await asyncio.to_thread(engine.begun.wait, PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1
        assert await asyncio.to_thread(engine.stopped.wait, PATIENCE)

    asyncio.run(run())


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::RuntimeWarning"
)  # of what is destroyed
@pytest.mark.parametrize("name", WORK)
def test_a_loop_that_is_closed_under_a_check_keeps_no_other_waiting(name: str) -> None:
    class Working(ScriptedEngine):
        """Takes its time, the first time."""

        def __init__(self) -> None:
            super().__init__()
            self.begun, self.go_on = threading.Event(), threading.Event()

        def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
            if not self.begun.is_set():
                self.begun.set()
                assert self.go_on.wait(PATIENCE)
            return super().score(questions, cancel)

    engine = Working()
    guard = GuardReasonerGuard(engine)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # it says that a task was destroyed, which is what is done here
    task = loop.create_task(WORK[name](guard, Chain()))
    while not engine.begun.is_set():
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert asyncio.run(guard.acheck("hi")).outcome == "verdict"
    engine.go_on.set()
    guard._checks._threads.shutdown()  # type: ignore[union-attr]  # waits for the check that nobody waits for
    left = weakref.ref(task)
    del task, loop
    gc.collect()
    assert left() is None and guard._checks._pending == 0


def test_closing_a_guard_ends_what_waits_and_cancels_nobody() -> None:
    class Busy(ScriptedEngine):
        concurrency = 1
        begun, go_on = threading.Event(), threading.Event()

        def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
            self.begun.set()
            assert self.go_on.wait(PATIENCE)
            return super().score(questions, cancel)

    engine = Busy()
    guard = GuardReasonerGuard(engine, timeout=PATIENCE)

    async def run() -> list[Verdict]:
        first = asyncio.create_task(guard.acheck("first"))
        assert await asyncio.to_thread(engine.begun.wait, PATIENCE)
        waiting = asyncio.create_task(guard.acheck("second"))
        in_a_thread = asyncio.create_task(asyncio.to_thread(guard.check, "third"))
        while guard._checks._pending < 3:
            await asyncio.sleep(0)
        guard.close()
        closed = await asyncio.gather(waiting, in_a_thread)
        engine.go_on.set()
        return [*closed, await first]

    *closed, first = asyncio.run(run())
    assert all(verdict.blocked and "This guard was closed" in verdict.reasons for verdict in closed)
    assert first.outcome == "verdict"


class Interrupted:
    """Raises KeyboardInterrupt in its thread at the n-th line that is run of some files."""

    def __init__(self, at: int) -> None:
        self.at, self.lines = at, 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        return self.line if frame.f_code.co_filename.endswith(("batcher.py", "checks.py")) else None

    def line(self, frame: FrameType, event: str, _: Any) -> Any:
        # at the end of a `with` block, where its line comes once more, Python itself takes no interrupt
        if event == "line" and dis.opname[frame.f_code.co_code[frame.f_lasti]] != "LOAD_CONST":
            self.lines += 1
            if self.lines == self.at:
                raise KeyboardInterrupt
        return self.line


def test_a_thread_may_be_interrupted_at_each_line() -> None:
    guard = GuardReasonerGuard(Batcher(ScriptedEngine()), remember=0)
    for at in itertools.count(1):
        interrupted = Interrupted(at)
        others: list[Verdict] = []
        both = threading.Barrier(2)

        def first(trace: Interrupted = interrupted, both: threading.Barrier = both) -> None:
            both.wait(PATIENCE)
            sys.settrace(trace)
            try:
                guard.check("a bomb")
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(None)

        def second(others: list[Verdict] = others, both: threading.Barrier = both) -> None:
            both.wait(PATIENCE)
            others += [guard.check("hi"), guard.check("hi")]

        threads = [threading.Thread(target=work, daemon=True) for work in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(others) == 2, f"after an interrupt at line {at} others wait for ever"
        assert all(one.outcome == "verdict" or "interrupted" in one.reasons for one in others)
        assert guard.check("hi").outcome == "verdict"
        if interrupted.lines < at:
            break
    assert at > 50

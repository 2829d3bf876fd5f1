"""Watched checks: the steps of an explanation as they are written, then the verdict."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from concurrent.futures import Future

from langchain_core.runnables.config import ContextThreadPoolExecutor

from .errors import EngineError
from .verdict import ReasoningStep, Verdict

Tell = Callable[[ReasoningStep], None]


def watched(judge: Callable[[Tell], Verdict]) -> Generator[ReasoningStep | Verdict]:
    """Yields what `judge` tells while it works in a thread of its own, and what it returns.

    Args:
        judge: Judges, calling what it is given with each step. What that raises must end it.
    """
    items: queue.SimpleQueue[ReasoningStep | Future[Verdict]] = queue.SimpleQueue()
    closed = threading.Event()

    def tell(step: ReasoningStep) -> None:
        if closed.is_set():
            raise EngineError("Nobody watches this check any more.")
        items.put(step)

    thread = ContextThreadPoolExecutor(1)
    future = thread.submit(judge, tell)
    thread.shutdown(wait=False)
    future.add_done_callback(items.put)
    try:
        while not isinstance(item := items.get(), Future):
            yield item
        yield item.result()
    finally:
        closed.set()


async def awatched(judge: Callable[[Tell], Awaitable[Verdict]]) -> AsyncGenerator[ReasoningStep | Verdict]:
    """`watched` beside an event loop; closing the iterator cancels `judge`."""
    loop = asyncio.get_running_loop()
    steps: asyncio.Queue[ReasoningStep | None] = asyncio.Queue()

    def tell(step: ReasoningStep) -> None:  # called in the model's thread
        loop.call_soon_threadsafe(steps.put_nowait, step)

    task = asyncio.ensure_future(judge(tell))
    task.add_done_callback(lambda _: steps.put_nowait(None))
    try:
        while (step := await steps.get()) is not None:
            yield step
        yield await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

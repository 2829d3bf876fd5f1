"""The connection: work that ends when its caller has gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from .problem import Problem

Result = TypeVar("Result")


class CallerGone(Problem):
    """The caller has hung up; nobody reads this."""

    def __init__(self) -> None:
        super().__init__(499, "The caller has gone.", "caller_gone")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Does work for a caller; when the caller hangs up it is cancelled.

    Args:
        receive: Tells of the caller; the request must have been read.
        work: What is to be done.

    Raises:
        CallerGone: It was cancelled.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise CallerGone
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


class EventStream(StreamingResponse):
    """Server-sent events, whose source is cancelled, and closed, when nobody reads them any more.

    Starlette's own cancels over and over, so that a source which has to wait as it closes could not close.

    Args:
        events: The source.
    """

    def __init__(self, events: AsyncGenerator[str]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it, as far as it is read."""
        async with aclosing(self._events):
            try:
                await while_connected(receive, self.stream_response(send))
            except CallerGone:
                return


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

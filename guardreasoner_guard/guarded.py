"""What `wrap` returns: a runnable whose input is checked before it runs and whose output before it leaves.

Fails closed: nothing of an output is seen before it is cleared, streams included.

Each way of calling drives the same `course`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.base import coerce_to_runnable
from langchain_core.runnables.config import ContextThreadPoolExecutor, var_child_runnable_config
from pydantic import ConfigDict

from .course import Batch, Check, Course, by_tasks, course
from .errors import BadInput
from .guard import GuardReasonerGuard
from .unseen import without_streams
from .verdict import Verdict
from .withheld import END, Hold, Next, Open, StreamCourse, joined, known_hold, stream_course


class Guarded(RunnableSerializable[Any, Any]):
    """A runnable with a guard around it; make one with `GuardReasonerGuard.wrap`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    guard: GuardReasonerGuard
    runnable: Runnable[Any, Any]
    beside: bool = False
    hold: Hold = 64

    @classmethod
    def around(
        cls, guard: GuardReasonerGuard, runnable: Runnable[Any, Any] | Callable[..., Any], *, beside: bool, hold: Hold
    ) -> Guarded:
        """Wraps anything LangChain makes a Runnable of.

        Raises:
            BadInput: `hold` is not one that is known.
        """
        return cls(guard=guard, runnable=coerce_to_runnable(runnable), beside=beside, hold=known_hold(hold))

    # -- one call -----------------------------------------------------------------------------

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Runs the runnable between two checks.

        Raises:
            Blocked: A check blocked and the policy says to raise.
        """

        def run(value: Any, run_manager: Any, config: RunnableConfig) -> Any:
            config = _held_back(config)
            steps = self._course(value)
            step = next(steps)
            while True:
                if isinstance(step, Check):
                    result: Any = self._check(step)
                elif step.beside is None:
                    result = self.runnable.invoke(step.value, config, **kwargs)
                else:
                    thread = ContextThreadPoolExecutor(1)
                    answer = thread.submit(self.runnable.invoke, step.value, config, **kwargs)
                    thread.shutdown(wait=False)
                    verdict = self._check(step.beside)
                    result = verdict, None if verdict.blocked else answer.result()
                try:
                    step = steps.send(result)
                except StopIteration as done:
                    return done.value

        return self._call_with_config(run, input, config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """`invoke`, asynchronously; a call beside a check is cancelled when the check blocks."""

        async def run(value: Any, run_manager: Any, config: RunnableConfig) -> Any:
            config = _held_back(config)
            steps = self._course(value)
            step = next(steps)
            while True:
                if isinstance(step, Check):
                    result: Any = await self._acheck(step)
                elif step.beside is None:
                    result = await self.runnable.ainvoke(step.value, config, **kwargs)
                else:
                    answer = asyncio.ensure_future(self.runnable.ainvoke(step.value, config, **kwargs))
                    try:
                        verdict = await self._acheck(step.beside)
                        result = verdict, None if verdict.blocked else await answer
                    finally:
                        answer.cancel()
                        await asyncio.gather(answer, return_exceptions=True)
                try:
                    step = steps.send(result)
                except StopIteration as done:
                    return done.value

        return await self._acall_with_config(run, input, config)

    # -- batches: all checks of one kind are judged together ---------------------------------------

    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Any]:
        """`invoke` for many inputs: their checks are judged, and the runnable is called, as batches."""

        def run(values: list[Any], run_manager: Any, config: list[RunnableConfig]) -> list[Any]:
            batch = Batch([self._course(value) for value in values])
            while batch.steps:
                for tasks, group in by_tasks(batch.steps).items():
                    attempts = self.guard._attempts([check.exchange for _, check in group], tasks)
                    batch.checked([index for index, _ in group], attempts)
                if calls := batch.calls():
                    settings = [_without_streams(config[index]) for index in calls]
                    values_ = [step.value for step in calls.values()]
                    call = partial(self.runnable.batch, values_, settings, return_exceptions=True, **kwargs)
                    batch.called(calls, _quiet_context().run(call))
            return batch.results()

        return self._batch_with_config(run, inputs, config, return_exceptions=return_exceptions)

    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Any]:
        """`batch`, asynchronously."""

        async def run(values: list[Any], run_manager: Any, config: list[RunnableConfig]) -> list[Any]:
            batch = Batch([self._course(value) for value in values])
            while batch.steps:
                for tasks, group in by_tasks(batch.steps).items():
                    attempts = await self.guard._aattempts([check.exchange for _, check in group], tasks)
                    batch.checked([index for index, _ in group], attempts)
                if calls := batch.calls():
                    settings = [_without_streams(config[index]) for index in calls]
                    values_ = [step.value for step in calls.values()]
                    call = self.runnable.abatch(values_, settings, return_exceptions=True, **kwargs)
                    batch.called(calls, await asyncio.create_task(call, context=_quiet_context()))
            return batch.results()

        return await self._abatch_with_config(run, inputs, config, return_exceptions=return_exceptions)

    # -- streams: held back until cleared ------------------------------------------------------

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """Streams the runnable's chunks as they are cleared; on a block, the policy's replacement ends it."""
        yield from self.transform(iter([input]), config, **kwargs)

    def transform(self, input: Iterator[Any], config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """`stream` for an input that arrives in chunks."""

        def run(values: Iterator[Any], run_manager: Any, config: RunnableConfig) -> Iterator[Any]:
            config = _held_back(config)
            steps = self._stream_course(joined(values))
            chunks: Iterator[Any] = iter(())
            result: Any = None
            try:
                while True:
                    try:
                        step = steps.send(result)
                    except StopIteration:
                        return
                    result = None
                    if isinstance(step, Check):
                        result = self._check(step)
                    elif isinstance(step, Open):
                        _close(chunks)
                        chunks = self.runnable.stream(step.value, config, **kwargs)
                        if step.beside is not None:
                            thread = ContextThreadPoolExecutor(1)
                            first = thread.submit(next, chunks, END)
                            thread.shutdown(wait=False)
                            try:
                                verdict = self._check(step.beside)
                                result = verdict, END if verdict.blocked else first.result()
                            finally:
                                if not first.done():  # while it runs, only its own thread can close it
                                    first.add_done_callback(partial(_close_after, chunks))
                                    chunks = iter(())
                    elif isinstance(step, Next):
                        result = next(chunks, END)
                    else:
                        yield from step.chunks
            finally:
                _close(chunks)

        yield from self._transform_stream_with_config(input, run, config)

    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        """`stream`, asynchronously."""

        async def one() -> AsyncIterator[Any]:
            yield input

        async with aclosing(self.atransform(one(), config, **kwargs)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncGenerator[Any]:
        """`transform`, asynchronously."""

        async def run(values: AsyncIterator[Any], run_manager: Any, config: RunnableConfig) -> AsyncIterator[Any]:
            config = _held_back(config)
            steps = self._stream_course(joined([value async for value in values]))
            chunks: AsyncIterator[Any] | None = None
            result: Any = None
            try:
                while True:
                    try:
                        step = steps.send(result)
                    except StopIteration:
                        return
                    result = None
                    if isinstance(step, Check):
                        result = await self._acheck(step)
                    elif isinstance(step, Open):
                        await _aclose(chunks)
                        chunks = self.runnable.astream(step.value, config, **kwargs)
                        if step.beside is not None:
                            first = asyncio.ensure_future(_first(chunks))
                            try:
                                verdict = await self._acheck(step.beside)
                                result = verdict, END if verdict.blocked else await first
                            finally:
                                first.cancel()
                                await asyncio.gather(first, return_exceptions=True)
                    elif isinstance(step, Next):
                        assert chunks is not None  # a course opens a stream before it asks for chunks
                        result = await anext(chunks, END)
                    else:
                        for chunk in step.chunks:
                            yield chunk
            finally:
                await _aclose(chunks)

        stream: Any = self._atransform_stream_with_config(input, run, config)
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                yield chunk

    def _course(self, value: Any) -> Course:
        return course(self.guard, value, beside=self.beside, message_out=self._message_out)

    def _stream_course(self, value: Any) -> StreamCourse:
        return stream_course(self.guard, value, hold=self.hold, beside=self.beside, message_out=self._message_out)

    @property
    def _message_out(self) -> bool:
        return "Message" in repr(self.runnable.OutputType)

    def _check(self, step: Check) -> Verdict:
        return self.guard.verdicts([step.exchange], step.tasks, step.reasoning)[0]

    async def _acheck(self, step: Check) -> Verdict:
        return (await self.guard.averdicts([step.exchange], step.tasks, step.reasoning))[0]


def _held_back(config: RunnableConfig) -> RunnableConfig:
    """The config without what streams to a consumer before the guard has cleared it; it is made the ambient one.

    LangGraph reads the ambient config beside the one it is given. Each call here runs in a context of its own.
    """
    quiet = _without_streams(config)
    var_child_runnable_config.set(quiet)
    return quiet


def _quiet_context() -> Context:
    """A context whose ambient config does not stream."""
    context = copy_context()
    if (ambient := var_child_runnable_config.get()) is not None:
        context.run(var_child_runnable_config.set, _without_streams(ambient))
    return context


def _without_streams(config: RunnableConfig) -> RunnableConfig:
    """The config without handlers that stream, and without the ways out of it into a graph it is called in."""
    settings = {
        key: _closed(key, value)
        for key, value in config.get("configurable", {}).items()
        if not key.startswith("__pregel_stream")
    }
    return {**config, "configurable": settings, "callbacks": without_streams(config.get("callbacks"))}


def _closed(key: str, value: Any) -> Any:
    """A setting of LangGraph's by which a node reaches past its own output, closed."""
    if hasattr(value, "stream_writer") and hasattr(value, "override"):  # its runtime
        return value.override(stream_writer=_unwritten)
    if key == "__pregel_send":
        return partial(_only_resume, value)
    return _refused if key == "__pregel_call" else value


def _unwritten(_: Any) -> None:
    """Takes what a node writes to the custom stream: like its tokens, it is not shown before it is cleared."""


def _only_resume(send: Callable[[Any], None], writes: Any) -> None:
    if any(name != "__resume__" for name, _ in writes):
        _refused()
    send(writes)


def _refused(*_: Any, **__: Any) -> Any:
    raise BadInput(
        "What is wrapped writes to its graph before it can be checked (push_message, or a task). Guard the node with "
        "guardreasoner_guard.integrations.langgraph_node.guarded_node, or return it as the output."
    )


def _close(chunks: Iterator[Any]) -> None:
    if hasattr(chunks, "close"):
        chunks.close()


def _close_after(chunks: Iterator[Any], _: Any) -> None:
    _close(chunks)


async def _aclose(chunks: AsyncIterator[Any] | None) -> None:
    if chunks is not None and hasattr(chunks, "aclose"):
        await chunks.aclose()


async def _first(chunks: AsyncIterator[Any]) -> Any:
    return await anext(chunks, END)

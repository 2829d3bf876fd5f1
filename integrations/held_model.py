"""A chat model whose answers are held back until they are cleared, in every stream, callback and trace.

It is the model that those who look on at an agent's run see: the one inside is called unseen, and of what it
writes only what the guard has cleared is passed on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from contextvars import Context
from functools import partial
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig
from langchain_core.runnables.config import merge_configs
from pydantic import ConfigDict, Field

from guardreasoner_guard.course import Check
from guardreasoner_guard.unseen import untraced
from guardreasoner_guard.withheld import END, Next

from .holding import Holding, Open, answer_course, averdicts, verdicts, whole_message

_CARRIED = ("disable_streaming", "profile", "metadata", "tags", "name", "callbacks", "verbose")


class HeldChatModel(BaseChatModel):
    """A chat model whose answers are held back; make one with `around`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    inner: Any = Field(repr=False)
    holding: Holding = Field(repr=False)

    @classmethod
    def around(cls, model: Runnable[Any, Any], holding: Holding) -> HeldChatModel:
        """Puts it around a chat model, or what stands for one."""
        carried = {name: value for name in _CARRIED if (value := getattr(model, name, None)) is not None}
        if carried.get("callbacks") or carried.get("verbose"):  # they look on at this one instead
            model = model.model_copy(update={"callbacks": None, "verbose": False})  # type: ignore[attr-defined]
        carried.setdefault("name", _unbound(model).get_name())  # by which consumers of events tell it
        # the inner model has its own cache and its own form of content
        return cls(inner=model, holding=holding, cache=False, output_version=None, **carried)

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        """The inner model's tools, bound to this one."""
        bound = self.inner.bind_tools(tools, **kwargs)
        if isinstance(bound, RunnableBinding) and isinstance(bound.bound, BaseChatModel) and not bound.config:
            return HeldChatModel.around(bound.bound, self.holding).bind(**bound.kwargs)
        return HeldChatModel.around(bound, self.holding)

    def invoke(
        self, input: Any, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> AIMessage:
        """The answer, once it is cleared; called where nobody looks on, it is seen by those of the agent's run."""
        call = partial(super().invoke, input, self._seen(config), stop=stop, **kwargs)
        return self.holding.leave(self.holding.context.copy().run(call))

    async def ainvoke(
        self, input: Any, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> AIMessage:
        """`invoke`, asynchronously."""
        call = super().ainvoke(input, self._seen(config), stop=stop, **kwargs)
        return self.holding.leave(await asyncio.create_task(call, context=self.holding.context.copy()))

    def _seen(self, config: RunnableConfig | None) -> RunnableConfig:
        return merge_configs({"callbacks": self.holding.callbacks}, config)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        def answer(asked: list[BaseMessage]) -> Iterator[Any]:
            yield self.inner.invoke(asked, stop=stop, **kwargs)

        return _result(list(self._driven(messages, answer, streams=False)))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        async def answer(asked: list[BaseMessage]) -> AsyncGenerator[Any]:
            yield await self.inner.ainvoke(asked, stop=stop, **kwargs)

        return _result([chunk async for chunk in self._adriven(messages, answer, streams=False)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        stream = partial(self.inner.stream, stop=stop, **kwargs)
        for message in self._driven(messages, stream, streams=True):
            yield ChatGenerationChunk(message=_chunk(message))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        stream = partial(self.inner.astream, stop=stop, **kwargs)
        async with aclosing(self._adriven(messages, stream, streams=True)) as chunks:
            async for message in chunks:
                yield ChatGenerationChunk(message=_chunk(message))

    def _driven(self, messages: list[BaseMessage], call: Any, *, streams: bool) -> Iterator[Any]:
        steps = answer_course(self.holding, messages, streams=streams)
        feed: _Feed | None = None
        result: Any = None
        try:
            while True:
                try:
                    step = steps.send(result)
                except StopIteration:
                    return
                result = None
                if isinstance(step, Check):
                    (result,) = verdicts(self.holding.guard, [step])
                elif isinstance(step, Open):
                    if feed is not None:
                        feed.close()
                    feed = _Feed(call(step.messages), self.holding.quiet(closed=True), ahead=bool(step.beside))
                    if step.beside:
                        result = verdicts(self.holding.guard, step.beside)
                elif isinstance(step, Next):
                    assert feed is not None  # a course opens a stream before it asks for chunks
                    result = feed.next()
                else:
                    yield from step.chunks
        finally:
            if feed is not None:
                feed.close()

    async def _adriven(self, messages: list[BaseMessage], call: Any, *, streams: bool) -> AsyncGenerator[Any]:
        steps = answer_course(self.holding, messages, streams=streams)
        feed: _AsyncFeed | None = None
        result: Any = None
        try:
            while True:
                try:
                    step = steps.send(result)
                except StopIteration:
                    return
                result = None
                if isinstance(step, Check):
                    (result,) = await averdicts(self.holding.guard, [step])
                elif isinstance(step, Open):
                    if feed is not None:
                        await feed.close()
                    feed = _AsyncFeed(call(step.messages), self.holding.quiet(closed=True))
                    if step.beside:
                        result = await averdicts(self.holding.guard, step.beside)
                elif isinstance(step, Next):
                    assert feed is not None  # a course opens a stream before it asks for chunks
                    result = await feed.next()
                else:
                    for chunk in step.chunks:
                        yield chunk
        finally:
            if feed is not None:
                await feed.close()

    # -- what others ask of a model ---------------------------------------------------------------

    @property
    def model_name(self) -> str | None:
        """The inner model's name, by which an agent finds out what it can do."""
        found = [getattr(self._model, name, None) for name in ("model_name", "model", "model_id")]
        return next((name for name in found if name), None)

    @property
    def _model(self) -> Any:
        return _unbound(self.inner)

    @property
    def _llm_type(self) -> str:
        return str(getattr(self._model, "_llm_type", "held"))

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return dict(getattr(self._model, "_identifying_params", {}))

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        if isinstance(self._model, BaseChatModel):
            return self._model._get_ls_params(stop=stop, **kwargs)
        return super()._get_ls_params(stop=stop, **kwargs)


class _Feed:
    """A stream's chunks, read where nobody looks on; the first may be fetched ahead by a thread."""

    def __init__(self, chunks: Iterator[Any], context: Context, *, ahead: bool) -> None:
        self._chunks = _untraced(chunks)
        self._context = context
        self._first: Future[Any] | None = None
        if ahead:
            thread = ThreadPoolExecutor(1, thread_name_prefix="held-model")
            self._first = thread.submit(self._read)
            thread.shutdown(wait=False)

    def next(self) -> Any:
        """The next chunk, or END."""
        first, self._first = self._first, None
        return self._read() if first is None else first.result()

    def close(self) -> None:
        """Ends the stream; one that a thread is reading, when that is done."""
        if self._first is None:
            self._context.run(self._chunks.close)
        else:
            self._first.add_done_callback(lambda _: self._context.run(self._chunks.close))

    def _read(self) -> Any:
        return self._context.run(next, self._chunks, END)


class _AsyncFeed:
    """A stream's chunks, read by a task of their own, so that the model writes on while they are checked."""

    def __init__(self, chunks: AsyncIterator[Any], context: Context) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._task = asyncio.create_task(self._read(chunks), context=context)

    async def _read(self, chunks: AsyncIterator[Any]) -> None:
        try:
            with untraced():
                async for chunk in chunks:
                    self._queue.put_nowait((chunk, None))
            self._queue.put_nowait((END, None))
        except BaseException as error:  # whoever waits for a chunk must hear of every end
            self._queue.put_nowait((END, error))
            if not isinstance(error, Exception):
                raise
        finally:
            if hasattr(chunks, "aclose"):
                await chunks.aclose()

    async def next(self) -> Any:
        """The next chunk, or END."""
        chunk, error = await self._queue.get()
        if error is not None:
            raise error
        return chunk

    async def close(self) -> None:
        """Ends the stream; a model that is still writing is cancelled."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def _unbound(model: Any) -> Any:
    while isinstance(model, RunnableBinding):
        model = model.bound
    return model


def _untraced(chunks: Iterator[Any]) -> Generator[Any, None, None]:
    with untraced():
        yield from chunks


def _chunk(message: BaseMessage) -> AIMessageChunk:
    if isinstance(message, AIMessageChunk):
        return message
    fields = {name: getattr(message, name) for name in AIMessage.model_fields if name != "type"}
    return AIMessageChunk(**fields, chunk_position="last")


def _result(chunks: list[Any]) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=whole_message(chunks))])

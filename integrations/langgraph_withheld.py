"""A step of a LangGraph graph carried out unseen: what it streams waits until the guard has cleared it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from pydantic import BaseModel

from guardreasoner_guard.course import Call, Check
from guardreasoner_guard.errors import BadInput, GuardError, MissingExtra
from guardreasoner_guard.exchange import text_of, texts_of
from guardreasoner_guard.guard import GuardReasonerGuard
from guardreasoner_guard.unseen import hush, untraced, without_streams

from .langgraph_state import VERDICTS, value_at

try:
    from langgraph.errors import GraphBubbleUp
    from langgraph.runtime import Runtime
    from langgraph.types import Command, Interrupt, Overwrite, Send
except ImportError as error:
    raise MissingExtra("langgraph", "langgraph") from error

Steps = Generator[Check | Call, Any, Any]
"""The course of one guarded step: asks for checks and for the step itself, returns the update that may leave.
A step that raises, be it to pause the graph or to leave it, hands in what it raised as its output."""


class Withheld:
    """What a step shows while it runs, kept back.

    Nobody looks on: no tokens, events or subgraphs stream, no callback and no tracer hears of it. What it writes to
    the custom stream, or past its own update to the state (`push_message`), is kept until `release`; only chunks
    without words, such as a percentage, pass at once.

    Args:
        config: The step's own.
        traced: Whether callbacks and tracers look on all the same.
    """

    def __init__(self, config: RunnableConfig, traced: bool) -> None:
        self._chunks: list[Any] = []
        """What waits for the custom stream."""
        self._pushed: list[tuple[str, Any]] = []
        """What waits for the state, by its keys."""
        self._traced = traced
        self._writer: Callable[[Any], None] = lambda _: None
        self._push: Callable[[Any], None] = lambda _: None
        settings: dict[str, Any] = {}
        for key, value in config.get("configurable", {}).items():
            if isinstance(value, Runtime):  # a node's writer comes from here, however it asks for it
                self._writer = value.stream_writer
                settings[key] = value.override(stream_writer=self._write)
            elif key == "__pregel_send":
                self._push = value
                settings[key] = self._hold
            elif key == "__pregel_call":
                settings[key] = _refuse_task
            elif not key.startswith("__pregel_stream"):
                settings[key] = value
        callbacks = without_streams(config.get("callbacks")) if traced else []
        self.config: RunnableConfig = {**config, "configurable": settings, "callbacks": callbacks}

    def _write(self, chunk: Any) -> None:
        if self._chunks or any(texts_of(chunk)):
            self._chunks.append(chunk)
        else:
            self._writer(chunk)

    def _hold(self, writes: Sequence[tuple[str, Any]]) -> None:
        for write in writes:
            if write[0] == "__resume__":  # what a human has answered to an interrupt
                self._push([write])
            else:
                self._pushed.append(write)

    def words(self) -> Iterator[str]:
        """Every text that waits."""
        yield from texts_of([*self._chunks, *(value for _, value in self._pushed)])

    def release(self) -> None:
        """Lets go what waits."""
        chunks, pushed = self._chunks, self._pushed
        self._chunks, self._pushed = [], []
        for chunk in chunks:
            self._writer(chunk)
        if pushed:
            self._push(pushed)

    def carry_out(self, guard: GuardReasonerGuard, steps: Steps, step: Callable[..., Any]) -> Any:
        """Drives a course.

        Args:
            guard: Judges.
            steps: The course.
            step: Called with a value and a config.
        """

        def unseen(value: Any) -> Any:
            with self._hidden():
                return step(value, self.config)

        result: Any = None
        while True:
            try:
                asked = steps.send(result)
            except StopIteration as done:
                return done.value
            if isinstance(asked, Check):
                result = guard.verdicts([asked.exchange], asked.tasks)[0]
                continue
            try:
                result = copy_context().run(unseen, asked.value)
            except GuardError:  # it quotes nothing that was stopped
                raise
            except Exception as error:
                result = error

    async def acarry_out(self, guard: GuardReasonerGuard, steps: Steps, step: Callable[..., Awaitable[Any]]) -> Any:
        """`carry_out` without blocking the event loop."""

        async def unseen(value: Any) -> Any:
            with self._hidden():
                return await step(value, self.config)

        result: Any = None
        while True:
            try:
                asked = steps.send(result)
            except StopIteration as done:
                return done.value
            if isinstance(asked, Check):
                result = (await guard.averdicts([asked.exchange], asked.tasks))[0]
                continue
            try:
                result = await asyncio.create_task(unseen(asked.value))  # a task has a context of its own
            except GuardError:  # it quotes nothing that was stopped
                raise
            except Exception as error:
                result = error

    @contextmanager
    def _hidden(self) -> Iterator[None]:
        """Needs a context of its own; frameworks read the ambient config beside the one that they are given."""
        self._chunks, self._pushed = [], []
        if self._traced:
            var_child_runnable_config.set(self.config)
            yield
            return
        hush(self.config)
        with untraced():
            yield


def words_in(output: Any, state: Any = None) -> Iterator[str]:
    """Every text in what a step hands to its graph: updates, commands, interrupts; not what the state held before.

    Args:
        output: An update, a Command, a list of them, or what was raised.
        state: What the state held.
    """
    if isinstance(output, BaseMessage):
        yield text_of(output)
    elif isinstance(output, Command):
        goto = output.goto if isinstance(output.goto, Sequence) and not isinstance(output.goto, str) else [output.goto]
        yield from words_in([output.update, *(one.arg for one in goto if isinstance(one, Send))], state)
        yield from texts_of(output.resume)
    elif isinstance(output, GraphBubbleUp):
        yield from words_in(list(output.args), state)
    elif isinstance(output, Exception):  # errors are streamed, traced and kept, with those they came of
        yield str(output)
        yield from words_in(output.__cause__ or output.__context__)
    elif isinstance(output, Interrupt):
        yield from texts_of(output.value)
    elif isinstance(output, Mapping):
        for key, value in output.items():
            if key != VERDICTS:
                yield from _new(value, value_at(state, key))
    elif isinstance(output, BaseModel):  # a state
        yield from words_in(dict(output), state)
    elif isinstance(output, (list, tuple)):
        for one in output:
            yield from words_in(one, state)
    else:
        yield from texts_of(output)


def _new(value: Any, old: Any) -> Iterator[str]:
    """The texts under a key that the state did not hold there: a subgraph gives back all, and many nodes do."""
    value = value.value if isinstance(value, Overwrite) else value
    held = set(texts_of(old))
    talk = {(one.id, text_of(one)) for one in (old if isinstance(old, list) else ()) if isinstance(one, BaseMessage)}
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, BaseMessage):
            if one.id is None or (one.id, text_of(one)) not in talk:
                yield text_of(one)
        else:
            yield from (text for text in texts_of(one) if text not in held)


def _refuse_task(*_: Any, **__: Any) -> Any:
    raise BadInput(
        "What a task returns is streamed and kept in a checkpoint before its caller can be checked. In a guarded step "
        "call its function instead: task.func(...)."
    )

"""What `wrap` returns: a runnable whose input is checked before it runs and whose output before it leaves.

Fails closed: nothing of an output is seen before it is cleared, streams included.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.base import coerce_to_runnable
from pydantic import ConfigDict

from .errors import BadInput, Blocked
from .exchange import TEXT_KEYS, Exchange, read_exchange, text_of
from .guard import GuardReasonerGuard
from .policy import explanation
from .verdict import Task, Verdict

_OUTPUT_TASKS: tuple[Task, ...] = ("completion", "response")
_NOTE = "Your last answer was stopped by a safety check: {reasons} Answer again, safely."


class Guarded(RunnableSerializable[Any, Any]):
    """A runnable with a guard around it; make one with `GuardReasonerGuard.wrap`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    guard: GuardReasonerGuard
    runnable: Runnable[Any, Any]
    beside: bool = False

    @classmethod
    def around(
        cls, guard: GuardReasonerGuard, runnable: Runnable[Any, Any] | Callable[..., Any], *, beside: bool
    ) -> Guarded:
        """Wraps anything LangChain makes a Runnable of."""
        return cls(guard=guard, runnable=coerce_to_runnable(runnable), beside=beside)

    # -- one call -----------------------------------------------------------------------------

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Runs the runnable between two checks.

        Raises:
            Blocked: A check blocked and the policy says to raise.
        """

        def run(value: Any, run_manager: Any, config: RunnableConfig) -> Any:
            exchange = self._exchange(value)
            if self.beside:
                with ThreadPoolExecutor(1) as thread:
                    answer = thread.submit(self.runnable.invoke, value, config, **kwargs)
                    verdict = self._check(exchange, ("request",))
                    if verdict.blocked:
                        answer.cancel()
                        return self._instead(verdict, None)
                    output = answer.result()
            else:
                verdict = self._check(exchange, ("request",))
                if verdict.blocked:
                    return self._instead(verdict, None)
                output = self.runnable.invoke(value, config, **kwargs)
            return self._cleared(value, exchange, output, config, **kwargs)

        return self._call_with_config(run, input, config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """`invoke`, asynchronously; beside the check, the call is cancelled when it blocks."""

        async def run(value: Any, run_manager: Any, config: RunnableConfig) -> Any:
            exchange = self._exchange(value)
            if self.beside:
                answer = asyncio.ensure_future(self.runnable.ainvoke(value, config, **kwargs))
                try:
                    verdict = await self._acheck(exchange, ("request",))
                    if verdict.blocked:
                        return self._instead(verdict, None)
                    output = await answer
                finally:
                    answer.cancel()
            else:
                verdict = await self._acheck(exchange, ("request",))
                if verdict.blocked:
                    return self._instead(verdict, None)
                output = await self.runnable.ainvoke(value, config, **kwargs)
            return await self._acleared(value, exchange, output, config, **kwargs)

        return await self._acall_with_config(run, input, config)

    # -- streams: held back until the whole answer is cleared ------------------------------------

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """Streams the runnable's chunks once its whole answer is cleared; on a block, the replacement alone."""
        yield from self.transform(iter([input]), config, **kwargs)

    def transform(self, input: Iterator[Any], config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """`stream` for an input that arrives in chunks."""

        def run(values: Iterator[Any], run_manager: Any, config: RunnableConfig) -> Iterator[Any]:
            value = _joined(list(values))
            exchange = self._exchange(value)
            verdict = self._check(exchange, ("request",))
            if verdict.blocked:
                yield self._instead(verdict, None)
                return
            chunks = list(self.runnable.stream(value, config, **kwargs))
            whole = _joined(chunks)
            output = self._cleared(value, exchange, whole, config, **kwargs)
            yield from chunks if output is whole else [output]

        yield from self._transform_stream_with_config(input, run, config)

    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        """`stream`, asynchronously."""

        async def one() -> AsyncIterator[Any]:
            yield input

        async for chunk in self.atransform(one(), config, **kwargs):
            yield chunk

    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """`transform`, asynchronously."""

        async def run(values: AsyncIterator[Any], run_manager: Any, config: RunnableConfig) -> AsyncIterator[Any]:
            value = _joined([item async for item in values])
            exchange = self._exchange(value)
            verdict = await self._acheck(exchange, ("request",))
            if verdict.blocked:
                yield self._instead(verdict, None)
                return
            chunks = [chunk async for chunk in self.runnable.astream(value, config, **kwargs)]
            whole = _joined(chunks)
            output = await self._acleared(value, exchange, whole, config, **kwargs)
            for chunk in chunks if output is whole else [output]:
                yield chunk

        async for chunk in self._atransform_stream_with_config(input, run, config):
            yield chunk

    # -- inside -------------------------------------------------------------------------------

    def _exchange(self, value: Any) -> Exchange:
        exchange = self.guard._read(read_exchange(value), None, None)
        return exchange.model_copy(update={"response": None})

    def _check(self, exchange: Exchange, tasks: Sequence[Task]) -> Verdict:
        return self.guard._verdicts([exchange], tasks)[0]

    async def _acheck(self, exchange: Exchange, tasks: Sequence[Task]) -> Verdict:
        return (await self.guard._averdicts([exchange], tasks))[0]

    def _answered(self, exchange: Exchange, output: Any) -> Exchange | None:
        """The exchange with its answer; None where the output holds no text, such as a bare tool call."""
        text = text_of(output)
        if not text.strip():
            return None
        return self.guard._read(exchange.model_copy(update={"response": text}), None, None)

    def _cleared(self, value: Any, exchange: Exchange, output: Any, config: RunnableConfig, **kwargs: Any) -> Any:
        """The output, if it passes; else what the policy puts in its place."""
        policy = self.guard.policy
        for attempt in range(policy.max_revisions + 1):
            answered = self._answered(exchange, output)
            if answered is None:
                return output
            verdict = self._check(answered, _OUTPUT_TASKS)
            if not verdict.blocked:
                return output
            if policy.on_violation != "revise" or verdict.outcome != "verdict" or attempt == policy.max_revisions:
                return self._instead(verdict, output)
            output = self.runnable.invoke(_with_note(value, verdict), config, **kwargs)
        raise AssertionError("unreachable")

    async def _acleared(
        self, value: Any, exchange: Exchange, output: Any, config: RunnableConfig, **kwargs: Any
    ) -> Any:
        policy = self.guard.policy
        for attempt in range(policy.max_revisions + 1):
            answered = self._answered(exchange, output)
            if answered is None:
                return output
            verdict = await self._acheck(answered, _OUTPUT_TASKS)
            if not verdict.blocked:
                return output
            if policy.on_violation != "revise" or verdict.outcome != "verdict" or attempt == policy.max_revisions:
                return self._instead(verdict, output)
            output = await self.runnable.ainvoke(_with_note(value, verdict), config, **kwargs)
        raise AssertionError("unreachable")

    def _instead(self, verdict: Verdict, output: Any) -> Any:
        action = self.guard.policy.on_violation
        if callable(action):
            return action(verdict)
        if action == "raise":
            raise Blocked(verdict)
        return _in_the_form_of(output, explanation(verdict), verdict)


def _in_the_form_of(output: Any, text: str, verdict: Verdict) -> Any:
    """A replacement text shaped like the output it replaces, so that what follows in a chain still works."""
    if isinstance(output, AIMessageChunk):
        return AIMessageChunk(content=text, id=output.id)
    if isinstance(output, BaseMessage):
        return AIMessage(content=text, id=output.id)
    if isinstance(output, dict):
        if output.get("messages"):
            kept = list(output["messages"])[:-1]
            return {**output, "messages": [*kept, _in_the_form_of(output["messages"][-1], text, verdict)]}
        for key in TEXT_KEYS:
            if key in output:
                return {key: text}
        raise Blocked(verdict)
    return text


def _with_note(value: Any, verdict: Verdict) -> Any:
    """The input with the guard's reasons added, for one more try."""
    note = _NOTE.format(reasons=verdict.reasons)
    if isinstance(value, str):
        return f"{value}\n\n{note}"
    if isinstance(value, PromptValue):
        return [*value.to_messages(), HumanMessage(content=note)]
    if isinstance(value, dict):
        for key in ("messages", *TEXT_KEYS):
            if key in value:
                return {**value, key: _with_note(value[key], verdict)}
    if isinstance(value, BaseMessage):
        return [value, HumanMessage(content=note)]
    if isinstance(value, list):
        return [*value, HumanMessage(content=note)]
    raise BadInput(f"Cannot add a note to a {type(value).__name__} to ask again. Use on_violation='explain'.")


def _joined(chunks: list[Any]) -> Any:
    """The whole that chunks add up to; chunks that do not add are taken as a list."""
    if not chunks:
        return ""
    whole = chunks[0]
    for chunk in chunks[1:]:
        try:
            whole = whole + chunk
        except TypeError:
            return chunks
    return whole

"""A LangGraph `ToolNode` whose tools are guarded: arguments before a tool runs, its result before it returns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.runnables import RunnableConfig, ensure_config
from langchain_core.tools import BaseTool

from guardreasoner_guard.course import Call, Check
from guardreasoner_guard.decorator import describe_call
from guardreasoner_guard.errors import MissingExtra
from guardreasoner_guard.exchange import Exchange
from guardreasoner_guard.guard import GuardReasonerGuard
from guardreasoner_guard.verdict import Verdict

from .langgraph_state import is_talk, record, stopped, value_at, with_verdicts
from .langgraph_withheld import Steps, Withheld, words_in

try:
    from langgraph.prebuilt import ToolNode
    from langgraph.prebuilt.tool_node import ToolCallRequest
    from langgraph.types import Command
except ImportError as error:
    raise MissingExtra("langgraph", "langgraph") from error

Answer = ToolMessage | Command[Any]


def guarded_tool_node(
    guard: GuardReasonerGuard,
    tools: Sequence[BaseTool | Callable[..., Any]],
    *,
    traced: bool = False,
    **settings: Any,
) -> ToolNode:
    """A `ToolNode` that gives its agent an error message with the reasons in place of what was blocked.

    A tool whose arguments are blocked does not run; a result that is blocked reaches no state, stream or trace.
    The agent reads why and goes on. A function as policy gives the message's text, or a message or Command.

    Args:
        guard: Judges and decides.
        tools: As for `ToolNode`.
        traced: Whether callbacks and tracers look on while tools run; they then see blocked results too.
        settings: Others of `ToolNode`: `name`, `messages_key`, `handle_tool_errors`.
    """
    return _GuardedToolNode(guard, tools, traced, **settings)


class _GuardedToolNode(ToolNode):
    def __init__(
        self, guard: GuardReasonerGuard, tools: Sequence[BaseTool | Callable[..., Any]], traced: bool, **settings: Any
    ) -> None:
        super().__init__(tools, wrap_tool_call=self._checked, awrap_tool_call=self._achecked, **settings)
        self.guard = guard
        self.traced = traced
        self.key = settings.get("messages_key", "messages")

    # -- all calls of one step: out of sight until they are through -------------------------------

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        withheld = Withheld(ensure_config(config), self.traced)
        return withheld.carry_out(self.guard, self._step(input, withheld), super().invoke)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        withheld = Withheld(ensure_config(config), self.traced)
        return await withheld.acarry_out(self.guard, self._step(input, withheld), super().ainvoke)

    def _step(self, input: Any, withheld: Withheld) -> Steps:
        """Results are checked call by call; here it is what tools wrote to the stream, or paused the graph with."""
        output = yield Call(input)
        leaving = isinstance(output, Exception)
        text = "\n".join([*withheld.words(), *(words_in(output) if leaving else ())])
        if text.strip():
            asked = "\n\n".join(describe_call(call["name"], call["args"]) for call in self._calls(input))
            verdict: Verdict = yield Check(self.guard.read(Exchange(request=asked, response=text)), ("response",))
            if verdict.blocked and leaving:
                raise stopped(verdict)
            if verdict.blocked:
                return output
        withheld.release()
        if leaving:
            raise output
        return output

    def _calls(self, input: Any) -> list[Any]:
        if isinstance(input, Mapping) and "tool_call" in input:
            return [input["tool_call"]]
        talk = input if isinstance(input, list) else value_at(input, self.key)
        if not is_talk(talk):
            return talk if isinstance(talk, list) else []
        return next((one.tool_calls for one in reversed(talk) if isinstance(one, AIMessage)), [])

    # -- one call ---------------------------------------------------------------------------------

    def _checked(self, request: ToolCallRequest, execute: Callable[[ToolCallRequest], Answer]) -> Any:
        asked = self._asked(request)
        verdict = self.guard.verdicts([asked], ("request",))[0]
        if verdict.blocked:
            return self._instead(verdict, request)
        result = execute(request)
        if (exchange := self._answered(asked, result)) is not None:
            verdict = self.guard.verdicts([exchange], ("response",))[0]
        return self._instead(verdict, request) if verdict.blocked else self._kept(verdict, request, result)

    async def _achecked(self, request: ToolCallRequest, execute: Callable[[ToolCallRequest], Awaitable[Answer]]) -> Any:
        asked = self._asked(request)
        verdict = (await self.guard.averdicts([asked], ("request",)))[0]
        if verdict.blocked:
            return self._instead(verdict, request)
        result = await execute(request)
        if (exchange := self._answered(asked, result)) is not None:
            verdict = (await self.guard.averdicts([exchange], ("response",)))[0]
        return self._instead(verdict, request) if verdict.blocked else self._kept(verdict, request, result)

    def _asked(self, request: ToolCallRequest) -> Exchange:
        call = request.tool_call
        return self.guard.read(Exchange(request=describe_call(call["name"], call["args"])))

    def _answered(self, asked: Exchange, result: Any) -> Exchange | None:
        text = "\n".join(words_in(result))
        return self.guard.read(asked.model_copy(update={"response": text})) if text.strip() else None

    def _instead(self, verdict: Verdict, request: ToolCallRequest) -> Any:
        action = self.guard.policy.on_violation
        said = action(verdict) if callable(action) else verdict.shown_reasons
        if not isinstance(said, (ToolMessage, Command)):
            call = request.tool_call
            said = ToolMessage(str(said), name=call["name"], tool_call_id=call["id"], status="error")
        return self._kept(verdict, request, said)

    def _kept(self, verdict: Verdict, request: ToolCallRequest, result: Any) -> Any:
        """The result, with the verdict where the state has a place for it."""
        update = {self.key: [result]} if isinstance(result, ToolMessage) else result
        kept = with_verdicts(update, [record(verdict, request.runtime.config)], request.state)
        if kept is update:
            return result
        return Command(update=kept) if isinstance(kept, dict) else kept

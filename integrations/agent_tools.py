"""An agent's tool calls: arguments are judged before a call is made, results before anyone sees them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from langchain.agents.middleware.types import ToolCallRequest
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.tools import BaseTool
from langgraph.errors import GraphBubbleUp
from langgraph.types import Command

from guardreasoner_guard.course import Check
from guardreasoner_guard.decorator import describe_call
from guardreasoner_guard.errors import BadInput, GuardError
from guardreasoner_guard.exchange import Exchange, texts_of, texts_of_result
from guardreasoner_guard.guard import GuardReasonerGuard
from guardreasoner_guard.verdict import Verdict, without_quotes

from .agent_review import Ask, decided
from .agent_state import Notes
from .agent_talk import about, mark, read
from .holding import Run, averdicts, verdicts


class ToolCalls:
    """What an agent's guard does about tool calls.

    Args:
        guard: Judges.
        notes: What was judged already.
        ask_human: Whether a person may let a blocked call pass.
    """

    def __init__(self, guard: GuardReasonerGuard, notes: Notes, ask_human: bool) -> None:
        self._guard = guard
        self._notes = notes
        self._ask_human = ask_human

    def course(self, request: ToolCallRequest) -> Generator[list[Check] | Run | Ask, Any, Any]:
        """One call. Where it is blocked, or its result, the agent reads an error with the reasons, and goes on."""
        result = yield from self._course(request)
        self._notes.made(mark(message) for message in _messages(result))
        return result

    def _course(self, request: ToolCallRequest) -> Generator[list[Check] | Run | Ask, Any, Any]:
        call = request.tool_call
        try:
            asked = read(self._guard, _exchange(call))
        except BadInput as error:
            return _error(call, f"The tool {call['name']} was not run: it cannot be judged. {error}")
        verdict = self._noted(request.state, call)
        if verdict is None and asked is not None and not self._notes.known(request.state)(_mark(call)):
            (verdict,) = yield [Check(asked, ("request",))]
        if verdict is not None and verdict.blocked:
            why = verdict.shown_reasons
            decision = decided((yield Ask(call["name"], call["args"], verdict))) if self._ask_human else None
            if decision is None or not decision.approved:
                why = decision.said if decision is not None and decision.said else why
                return _error(call, f"The tool {call['name']} was not run. {why}", verdict)
        held = HeldResult(self._guard, call)
        result = yield Run(request if request.tool is None else request.override(tool=held.tool(request.tool)))
        if not held.judged:  # an error of the tool, or what another middleware has put in place
            checks, stop = held.checks(result)
            return stop or held.instead((yield checks) if checks else []) or result
        return result

    def judged(
        self, messages: Sequence[BaseMessage], state: Mapping[str, Any]
    ) -> Generator[list[Check], Any, dict[str, Any]]:
        """Judges the calls of an answer before they are made, so that a verdict a person is asked about is kept."""
        answered = {m.tool_call_id for m in messages if isinstance(m, ToolMessage)}
        known = self._notes.known(state)
        calls = [call for m in messages if isinstance(m, AIMessage) for call in m.tool_calls]
        calls = [call for call in calls if call["id"] not in answered and not known(_mark(call))]
        try:
            checks = [Check(self._guard.read(_exchange(call)), ("request",)) for call in calls]
        except BadInput:  # which is said where the call is made
            return {}
        if not checks:
            return {}
        found: list[Verdict] = yield checks
        pairs = list(zip(calls, found, strict=True))
        notes = {
            call["id"]: {"mark": _mark(call), "verdict": verdict.model_dump(mode="json")}
            for call, verdict in pairs
            if verdict.blocked
        }
        passed = self._notes.judged(_mark(call) for call, verdict in pairs if not verdict.blocked)
        return passed | ({"guard_calls": notes} if notes else {})

    def _noted(self, state: Mapping[str, Any], call: Mapping[str, Any]) -> Verdict | None:
        note = (state.get("guard_calls") or {}).get(call["id"])
        return Verdict.model_validate(note["verdict"]) if note and note["mark"] == _mark(call) else None


class HeldResult:
    """Judges the result of one call: as the answer to it, and as untrusted text that a model will read.

    Args:
        guard: Judges.
        call: The call.
    """

    def __init__(self, guard: GuardReasonerGuard, call: Mapping[str, Any]) -> None:
        self.judged = False
        """Whether the tool has returned a result, which was judged."""
        self._guard = guard
        self._call = call

    def tool(self, tool: BaseTool) -> BaseTool:
        """A copy of a tool whose result is judged in the tool's own run, so that no callback sees it before."""
        pair = tool.response_format == "content_and_artifact"  # the artifact goes to the application, not to the model

        def read(result: Any) -> tuple[list[Check], ToolMessage | None]:
            self.judged = True
            if isinstance(result, (GuardError, GraphBubbleUp)):  # ours, or a pause of the graph
                return [], None
            return self.checks(result[0] if pair and isinstance(result, tuple) and len(result) == 2 else result)

        def given(result: Any, stop: ToolMessage | None) -> Any:
            if stop is not None:
                return (stop, None) if pair else stop
            if isinstance(result, Exception):
                raise result
            return result

        @functools.wraps(tool._run)
        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                result = tool._run(*args, **kwargs)
            except Exception as error:
                result = error
            checks, stop = read(result)
            stop = stop or self.instead(verdicts(self._guard, checks))
            return given(result, stop)

        @functools.wraps(tool._arun)
        async def arun(*args: Any, **kwargs: Any) -> Any:
            try:
                result = await tool._arun(*args, **kwargs)
            except Exception as error:
                result = error
            checks, stop = read(result)
            stop = stop or self.instead(await averdicts(self._guard, checks))
            return given(result, stop)

        copy = tool.model_copy()
        # an instance's own attribute stands before its class's method; pydantic would refuse it
        object.__setattr__(copy, "_run", run)
        object.__setattr__(copy, "_arun", arun)
        return copy

    def checks(self, result: Any) -> tuple[list[Check], ToolMessage | None]:
        """The checks of a result; or what stands in its place, where it cannot be judged."""
        text = "\n".join(_texts(result))
        if not text.strip():
            return [], None
        try:
            answered = read(self._guard, _exchange(self._call).model_copy(update={"response": text}))
            told = read(self._guard, Exchange(request=text))
        except BadInput as error:
            name = self._call["name"]
            return [], _error(self._call, f"The result of {name} was withheld: it cannot be judged. {error}")
        return ([Check(answered, ("response",)), Check(told, ("request",))] if answered and told else []), None

    def instead(self, found: Sequence[Verdict]) -> ToolMessage | None:
        """What stands in place of a result, if a verdict blocks it."""
        verdict = next((verdict for verdict in found if verdict.blocked), None)
        if verdict is None:
            return None
        why = without_quotes(verdict.reasons)  # an untrusted text may be quoted
        return _error(self._call, f"The result of {self._call['name']} was withheld. {why}", verdict)


def _exchange(call: Mapping[str, Any]) -> Exchange:
    return Exchange(request=describe_call(call["name"], call["args"]))


def _mark(call: Mapping[str, Any]) -> str:
    """Names a call by what it asks: one whose arguments were changed is new."""
    return hashlib.sha256(_exchange(call).request.encode("utf-8", "replace")).hexdigest()[:32]


def _messages(result: Any) -> list[BaseMessage]:
    if isinstance(result, BaseMessage):
        return [result]
    if isinstance(result, list):
        return [message for item in result for message in _messages(item)]
    update = result.update if isinstance(result, Command) else None
    found = update.get("messages", []) if isinstance(update, Mapping) else []
    return [message for message in found if isinstance(message, BaseMessage)]


def _texts(result: Any) -> list[str]:
    if isinstance(result, Exception):  # what it says, and what it was raised from
        causes = [] if (cause := result.__cause__ or result.__context__) is None else _texts(cause)
        return [*texts_of(list(result.args)), str(result), *causes]
    return list(texts_of_result(result.update if isinstance(result, Command) else result))


def _error(call: Mapping[str, Any], said: str, verdict: Verdict | None = None) -> ToolMessage:
    metadata = about(verdict) if verdict is not None else {}
    return ToolMessage(
        content=said, tool_call_id=call["id"], name=call["name"], status="error", response_metadata=metadata
    )

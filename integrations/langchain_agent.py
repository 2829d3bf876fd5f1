"""A guard around a LangChain agent, as its middleware: what goes in, what tools are asked and say, what comes out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from guardreasoner_guard.errors import MissingExtra
from guardreasoner_guard.guard import GuardReasonerGuard
from guardreasoner_guard.withheld import Hold, known_hold

try:
    from langchain.agents.middleware.types import AgentMiddleware, ModelRequest, ToolCallRequest, hook_config
    from langgraph.types import interrupt
except ImportError as error:
    raise MissingExtra("langchain", "langchain") from error

from .agent_course import Course, ModelCourses
from .agent_review import Ask
from .agent_state import GuardState, Notes
from .agent_tools import ToolCalls
from .holding import Run, averdicts, verdicts


class GuardReasonerMiddleware(AgentMiddleware[GuardState, Any, Any]):
    """Guards an agent of `create_agent`; put it last in the list, nearest to the model.

    Only what is new in the talk is judged. What the guard's policy says follows a block: `raise` raises `Blocked`;
    `explain`, or a function, ends the run with another answer; `revise` asks the model once more with the reasons.
    No blocked text stays in the state, and none is in a stream, callback or trace of the agent. A tool that is given
    harmful arguments is not run, and a harmful result not shown: the agent reads an error with the reasons, and goes
    on. Fails closed: what cannot be judged is blocked, with an outcome that tells a failure and a timeout.

    Args:
        guard: Judges and decides.
        beside: Judge the input while the model is called already; the call is cancelled (async) or its result
            thrown away (sync) when it is blocked.
        hold: How much of a streamed answer is held back until it is cleared: so many tokens, `sentence` (the one
            under way and the one before) or `answer` (all of it).
        ask_human: Let a person decide on what is blocked, and on nothing be raised: the run waits in an interrupt
            (it needs a checkpointer) and goes on with `Command(resume={"type": "approve"})` or `"reject"`.
        judge_prompt: Judge the system prompt too, where retrieved texts are put into it.

    Raises:
        BadInput: `hold` is not one that is known.
        MissingExtra: LangChain is not installed.
    """

    state_schema = GuardState

    def __init__(
        self,
        guard: GuardReasonerGuard,
        *,
        beside: bool = False,
        hold: Hold = 64,
        ask_human: bool = False,
        judge_prompt: bool = False,
    ) -> None:
        super().__init__()
        self.guard = guard
        notes = Notes(self.name)
        self._calls = ToolCalls(guard, notes, ask_human)
        self._model = ModelCourses(
            guard,
            notes,
            self._calls,
            beside=beside,
            hold=known_hold(hold),
            ask_human=ask_human,
            judge_prompt=judge_prompt,
        )

    def before_agent(self, state: GuardState, runtime: Any) -> Any:
        """Judges what is new in the talk."""
        return self._drive(self._model.before(state, starts=True))

    async def abefore_agent(self, state: GuardState, runtime: Any) -> Any:
        """Judges what is new in the talk."""
        return await self._adrive(self._model.before(state, starts=True))

    def before_model(self, state: GuardState, runtime: Any) -> Any:
        """Judges what has come to the talk since: retrieved texts, and results of tools that were not judged."""
        return self._drive(self._model.before(state, starts=False))

    async def abefore_model(self, state: GuardState, runtime: Any) -> Any:
        """Judges what has come to the talk since: retrieved texts, and results of tools that were not judged."""
        return await self._adrive(self._model.before(state, starts=False))

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[Any], Any]) -> Any:
        """Calls the model and holds its answer back until it is cleared."""
        return self._drive(self._model.model(request), handler)

    async def awrap_model_call(self, request: ModelRequest[Any], handler: Callable[[Any], Awaitable[Any]]) -> Any:
        """Calls the model and holds its answer back until it is cleared."""
        return await self._adrive(self._model.model(request), handler)

    @hook_config(can_jump_to=["end", "model"])
    def after_model(self, state: GuardState, runtime: Any) -> Any:
        """Acts on a verdict that blocks; judges an answer that another middleware has put in place.

        Raises:
            Blocked: The policy says to raise.
        """
        return self._drive(self._model.after(state))

    @hook_config(can_jump_to=["end", "model"])
    async def aafter_model(self, state: GuardState, runtime: Any) -> Any:
        """Acts on a verdict that blocks; judges an answer that another middleware has put in place.

        Raises:
            Blocked: The policy says to raise.
        """
        return await self._adrive(self._model.after(state))

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[Any], Any]) -> Any:
        """Judges a tool's arguments before it runs, and its result before it is seen."""
        return self._drive(self._calls.course(request), handler)

    async def awrap_tool_call(self, request: ToolCallRequest, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        """Judges a tool's arguments before it runs, and its result before it is seen."""
        return await self._adrive(self._calls.course(request), handler)

    def _drive(self, course: Course, handler: Callable[[Any], Any] | None = None) -> Any:
        go = partial(next, course)
        while True:
            try:
                step = go()
            except StopIteration as done:
                return done.value
            try:
                if isinstance(step, Ask):
                    result = interrupt(step.payload)
                elif isinstance(step, Run):
                    assert handler is not None  # only courses of wrapped calls ask for one
                    result = step.holding.unseen(handler, step.request) if step.holding else handler(step.request)
                else:
                    result = verdicts(self.guard, step)
            except Exception as error:
                go = partial(course.throw, error)
            else:
                go = partial(course.send, result)

    async def _adrive(self, course: Course, handler: Callable[[Any], Awaitable[Any]] | None = None) -> Any:
        go = partial(next, course)
        while True:
            try:
                step = go()
            except StopIteration as done:
                return done.value
            try:
                if isinstance(step, Ask):
                    result = interrupt(step.payload)
                elif isinstance(step, Run):
                    assert handler is not None  # only courses of wrapped calls ask for one
                    call = step.holding.aunseen(handler, step.request) if step.holding else handler(step.request)
                    result = await call
                else:
                    result = await averdicts(self.guard, step)
            except Exception as error:
                go = partial(course.throw, error)
            else:
                go = partial(course.send, result)

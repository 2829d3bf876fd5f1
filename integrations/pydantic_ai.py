"""Pydantic AI: a capability that puts the guard around an agent's model and its tools."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from guardreasoner_guard.decorator import describe_call
from guardreasoner_guard.errors import MissingExtra
from guardreasoner_guard.exchange import Exchange, texts_of
from guardreasoner_guard.guard import GuardReasonerGuard
from guardreasoner_guard.verdict import Task, Verdict
from guardreasoner_guard.withheld import Hold, known_hold

try:
    from pydantic_ai import RunContext, ToolDefinition, ToolReturn
    from pydantic_ai.capabilities import AbstractCapability
    from pydantic_ai.capabilities.abstract import ValidatedToolArgs, WrapToolExecuteHandler
    from pydantic_ai.exceptions import ToolFailed
    from pydantic_ai.messages import ToolCallPart
    from pydantic_ai.models import Model
except ImportError as error:
    raise MissingExtra("pydantic-ai-slim", "pydantic-ai") from error

from .pydantic_ai_model import GuardedModel, without_media


@dataclass
class GuardReasonerCapability(AbstractCapability[Any]):
    """Guards a Pydantic AI agent: what goes to its model, what its model answers, what its tools are given and give.

    An answer is judged before anything of it leaves the model, so a blocked one is in no event, output, message
    history or span; what follows a block is the policy's: `Blocked` is raised, or its text is the answer with
    finish reason `content_filter` (`revise` explains, and where a structured answer is due, `Blocked` is raised).
    A call of a tool that is blocked, or whose result is, fails with the reasons, so that the agent can go on.
    Only what is new to the model is judged. It fails closed: what cannot be judged is blocked.

    It stands around the model whatever else does. Of the agent's other capabilities, those that are listed after it
    see a tool's result before it does.
    """

    guard: GuardReasonerGuard
    """Judges and decides."""
    hold: Hold = 64
    """How much of a stream is held back; see `GuardReasonerGuard.wrap`."""
    _judged: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    """Ids of the run's tool calls whose results were judged when the tool ran."""

    def __post_init__(self) -> None:
        known_hold(self.hold)

    async def for_run(self, ctx: RunContext[Any]) -> GuardReasonerCapability:
        """One of its own for each run, since it remembers whose results were judged."""
        return replace(self)

    def get_wrapper_model(self, model: Model) -> Model | None:
        """The model with the guard around it."""
        return GuardedModel(model, self.guard, self.hold, self._judged)

    async def wrap_tool_execute(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: ValidatedToolArgs,
        handler: WrapToolExecuteHandler,
    ) -> Any:
        """Runs a tool between two checks.

        Raises:
            ToolFailed: One of them blocked; the agent reads the reasons.
        """
        self._judged.discard(call.tool_call_id)  # some models give one id to several calls
        request = Exchange(request=describe_call(call.tool_name, args))
        await self._clear(call, request, "request")
        result = await handler(args)
        given = [result.return_value, result.content] if isinstance(result, ToolReturn) else result
        if (text := "\n".join(texts_of(without_media(given)))).strip():
            await self._clear(call, request.model_copy(update={"response": text}), "response")
        self._judged.add(call.tool_call_id)
        return result

    async def _clear(self, call: ToolCallPart, exchange: Exchange, task: Task) -> None:
        verdict: Verdict = (await self.guard.averdicts([self.guard.read(exchange)], (task,)))[0]
        if verdict.blocked:
            self._judged.add(call.tool_call_id)
            raise ToolFailed(verdict.shown_reasons)

    @classmethod
    def get_serialization_name(cls) -> str | None:
        """None: it holds a guard, which no agent's specification can write down."""
        return None

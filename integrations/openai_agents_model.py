"""A model of the OpenAI Agents SDK whose answers are judged before anything of them leaves it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from functools import cached_property
from typing import Any

from agents import AgentOutputSchemaBase, Model, ModelResponse, ModelTracing, MultiProvider, Tool, TResponseInputItem
from agents.items import TResponseStreamEvent
from agents.retry import ModelRetryAdvice, ModelRetryAdviceRequest
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseOutputItemDoneEvent,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseTextDeltaEvent,
)

from guardreasoner_guard.course import OUTPUT_TASKS
from guardreasoner_guard.errors import Blocked
from guardreasoner_guard.guard import GuardReasonerGuard
from guardreasoner_guard.verdict import Verdict
from guardreasoner_guard.withheld import Hold

from .held_back import held_back, replacement, shown
from .openai_items import JudgedElsewhere, Said, request_of, texts_of_answer


class GuardedModel(Model):
    """A model around another; make one with `GuardReasonerGuardrails.model`."""

    def __init__(
        self, model: Model | str, guard: GuardReasonerGuard, hold: Hold, judges: Callable[[Tool], bool]
    ) -> None:
        self._given = model
        self._guard = guard
        self._hold = hold
        self._judges = judges

    @cached_property
    def _model(self) -> Model:  # a name is looked up when it is called, as the SDK does
        return MultiProvider().get_model(self._given) if isinstance(self._given, str) else self._given

    async def get_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],
        model_settings: Any,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Any],
        tracing: ModelTracing,
        **ids: Any,
    ) -> ModelResponse:
        """The model's answer, once it is cleared.

        Raises:
            Blocked: It is not, and the policy says to raise.
        """
        response = await self._model.get_response(
            system_instructions, input, model_settings, tools, output_schema, handoffs, _unseen(tracing), **ids
        )
        text = "\n".join(texts_of_answer(response.output, self._elsewhere(tools)))
        if not text.strip():
            return response
        answered = self._guard.read(request_of(input).model_copy(update={"response": text}))
        verdict = (await self._guard.averdicts([answered], OUTPUT_TASKS))[0]
        if not verdict.blocked:
            return response
        message = self._instead(verdict, output_schema)
        return ModelResponse(output=[message], usage=response.usage, response_id=None)

    async def stream_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],
        model_settings: Any,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Any],
        tracing: ModelTracing,
        **ids: Any,
    ) -> AsyncGenerator[TResponseStreamEvent]:
        """The model's events as what they say is cleared.

        Raises:
            Blocked: Something is not, and the policy says to raise.
        """
        events: AsyncIterator[TResponseStreamEvent] = self._model.stream_response(
            system_instructions, input, model_settings, tools, output_schema, handoffs, _unseen(tracing), **ids
        )
        said, number = Said(self._elsewhere(tools)), -1
        try:
            held = held_back(self._guard, request_of(input), events, said, self._hold)
            async with aclosing(held) as cleared:
                async for event in cleared:
                    number = getattr(event, "sequence_number", number)
                    yield event
        except Blocked as blocked:
            for event in _events(self._instead(blocked.verdict, output_schema), number + 1):
                yield event

    def get_retry_advice(self, request: ModelRetryAdviceRequest) -> ModelRetryAdvice | None:
        """The model's own."""
        return self._model.get_retry_advice(request)

    async def close(self) -> None:
        """Closes the model."""
        await self._model.close()

    async def _cleanup_on_run_end(self, owner: object) -> None:
        await self._model._cleanup_on_run_end(owner)

    def _elsewhere(self, tools: list[Tool]) -> JudgedElsewhere:
        """Calls of a tool with an input guardrail of ours are judged by that, so that the agent can go on."""
        judged = {tool.name for tool in tools if self._judges(tool)}
        return judged.__contains__

    def _instead(self, verdict: Verdict, schema: AgentOutputSchemaBase | None) -> ResponseOutputMessage:
        text = replacement(self._guard.policy, verdict)
        if schema is not None and not schema.is_plain_text():
            raise Blocked(shown(verdict))
        content = ResponseOutputText(text=text, type="output_text", annotations=[])
        return ResponseOutputMessage(
            id="msg_guardreasoner", type="message", role="assistant", status="completed", content=[content]
        )


def _unseen(tracing: ModelTracing) -> ModelTracing:
    return ModelTracing.ENABLED_WITHOUT_DATA if tracing.include_data() else tracing


def _events(message: ResponseOutputMessage, number: int) -> list[TResponseStreamEvent]:
    """The end of a stream that says this message, and has it for its whole output."""
    part = message.content[0]
    assert isinstance(part, ResponseOutputText)
    response = Response(
        id="", created_at=time.time(), model="", object="response", output=[message], parallel_tool_calls=False,
        tool_choice="auto", tools=[],
    )  # fmt: skip
    return [
        ResponseTextDeltaEvent(
            type="response.output_text.delta", delta=part.text, item_id=message.id, output_index=0, content_index=0,
            logprobs=[], sequence_number=number,
        ),
        ResponseOutputItemDoneEvent(
            type="response.output_item.done", item=message, output_index=0, sequence_number=number + 1
        ),
        ResponseCompletedEvent(type="response.completed", response=response, sequence_number=number + 2),
    ]  # fmt: skip

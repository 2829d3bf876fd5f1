"""A model of Pydantic AI between two checks: of what is new to it, and of what it answers, held back until cleared."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Container, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from langchain_core.messages import AIMessageChunk
from pydantic_ai import RunContext
from pydantic_ai.messages import (
    BaseToolCallPart,
    CachePoint,
    FinalResultEvent,
    ModelMessage,
    ModelResponse,
    ModelResponsePart,
    ModelResponseStreamEvent,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    TextContent,
    TextPart,
    ToolCallPart,
    ToolCallPartDelta,
    is_multi_modal_content,
)
from pydantic_ai.models import CompletedStreamedResponse, Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage

from guardreasoner_guard.course import OUTPUT_TASKS
from guardreasoner_guard.errors import Blocked
from guardreasoner_guard.exchange import Exchange, texts_of
from guardreasoner_guard.guard import GuardReasonerGuard
from guardreasoner_guard.verdict import Verdict
from guardreasoner_guard.withheld import Hold

from .held_back import held_back, replacement, shown, words

_OWN = frozenset({
    "system-prompt", "retry-feedback", "tool-availability-delta", "capability-load-delta", "model-settings-delta",
    "instruction-delta", "instruction-baseline", "compaction",
})  # fmt: skip
"""Kinds of parts that the application or the framework writes to the model."""


class GuardedModel(WrapperModel):
    """A model with a guard around it; `GuardReasonerCapability` makes it."""

    def __init__(self, model: Model, guard: GuardReasonerGuard, hold: Hold, judged: Container[str]) -> None:
        super().__init__(model)
        self.guard = guard
        self.hold = hold
        self._judged = judged

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """The model's answer, once it is cleared.

        Raises:
            Blocked: It is not, or the request is not, and the policy says to raise.
        """
        if (stopped := await self._stopped(messages, model_request_parameters)) is not None:
            return stopped
        response = await self.wrapped.request(messages, model_settings, model_request_parameters)
        text = "\n".join(text for part in response.parts for text in _said(part, model_request_parameters))
        if not text.strip():
            return response
        answered = self.guard.read(_given(messages, turn=True).model_copy(update={"response": text}))
        verdict = (await self.guard.averdicts([answered], OUTPUT_TASKS))[0]
        if not verdict.blocked:
            return response
        part = self.instead(verdict, model_request_parameters)
        return _unsaid(replace(response, parts=[part], finish_reason="content_filter"))

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """The model's stream as what it says is cleared; see `request`."""
        if (stopped := await self._stopped(messages, model_request_parameters)) is not None:
            yield CompletedStreamedResponse(
                stopped, model_request_parameters=model_request_parameters, replay_events=True
            )
            return
        async with self.wrapped.request_stream(
            messages, model_settings, model_request_parameters, run_context
        ) as stream:
            yield _HeldStream(model_request_parameters, stream, self, _given(messages, turn=True))

    async def _stopped(self, messages: list[ModelMessage], parameters: ModelRequestParameters) -> ModelResponse | None:
        """What answers in place of the model where what is new to it is blocked."""
        new = _given(messages, turn=False, judged=self._judged)
        if not new.request.strip():
            return None
        verdict = (await self.guard.averdicts([self.guard.read(new)], ("request",)))[0]
        if not verdict.blocked:
            return None
        part = self.instead(verdict, parameters)
        return ModelResponse(
            parts=[part], usage=RequestUsage(), model_name=self.model_name, finish_reason="content_filter"
        )

    def instead(self, verdict: Verdict, parameters: ModelRequestParameters) -> TextPart:
        """The text in place of a blocked answer.

        Raises:
            Blocked: The policy says so, or no text would do.
        """
        text = replacement(self.guard.policy, verdict)
        if not parameters.allow_text_output or parameters.output_object is not None:
            raise Blocked(shown(verdict))
        return TextPart(text)


def _unsaid(response: ModelResponse) -> ModelResponse:
    """A response without what its provider tells of the answer that was stopped: its tokens, and where it is kept."""
    return replace(response, provider_details=None, provider_response_id=None)


def runs_here(tool: str, parameters: ModelRequestParameters) -> bool:
    """Whether calls of this tool are executed by the agent, and not handed to its caller or taken for its output."""
    return any(one.name == tool and one.kind != "external" for one in parameters.function_tools)


def _said(part: ModelResponsePart, parameters: ModelRequestParameters) -> list[str]:
    """The texts of one part of an answer; calls of tools that run here are judged when they do."""
    if isinstance(part, ToolCallPart) and runs_here(part.tool_name, parameters):
        return []
    if isinstance(part, BaseToolCallPart):
        return [f"{part.tool_name}({part.args_as_json_str()})"]
    return _texts(part)


@dataclass
class _HeldStream(StreamedResponse):
    """A model's stream, of which only what was cleared can be seen."""

    inner: StreamedResponse
    model: GuardedModel
    request: Exchange
    _runs: dict[int, bool] = field(default_factory=dict, init=False)
    """Of tool calls, by the part's index: whether they are judged when they run."""

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        held = held_back(self.model.guard, self.request, self.inner, self._words, self.model.hold)
        try:
            async with aclosing(held) as cleared:
                async for event in cleared:
                    if not isinstance(event, (FinalResultEvent, PartEndEvent)):  # this stream finds them anew
                        self._parts_manager.apply_event(event)
                        yield event
        except Blocked as blocked:
            part = self.model.instead(blocked.verdict, self.model_request_parameters)
            self.finish_reason = "content_filter"
            yield self._parts_manager.handle_part(vendor_part_id=None, part=part)

    def _words(self, event: ModelResponseStreamEvent) -> AIMessageChunk:
        """What an event adds to the answer."""
        if isinstance(event, PartStartEvent):
            part = event.part
            if isinstance(part, BaseToolCallPart):  # its arguments are not complete yet
                runs = isinstance(part, ToolCallPart) and runs_here(part.tool_name, self.model_request_parameters)
                self._runs[event.index] = runs
                return words("" if runs else f"{part.tool_name}({_raw(part.args)}", event.index)
            return words("\n".join(_texts(part)), event.index)
        if isinstance(event, PartDeltaEvent):
            delta = event.delta
            if isinstance(delta, ToolCallPartDelta):
                said = (delta.tool_name_delta or "") + _raw(delta.args_delta)
                return words("" if self._runs.get(event.index) else said, event.index)
            said = getattr(delta, "content_delta", None) or getattr(delta, "transcript_delta", None) or ""
            return words(said, event.index)
        return words("")

    def get(self) -> ModelResponse:
        """The response as far as it was cleared."""
        mine, said = super().get(), self.inner.get()
        state = "suspended" if said.state == "suspended" else mine.state
        finish_reason = self.finish_reason or said.finish_reason
        found = replace(said, parts=mine.parts, state=state, finish_reason=finish_reason)
        return found if self._finished and self.finish_reason is None else _unsaid(found)

    @property
    def usage(self) -> RequestUsage:
        """The model's, of what was held back too."""
        return self.inner.usage

    async def close_stream(self) -> None:
        """Ends the model's stream."""
        await self.inner.cancel()

    def get_stream_cancel_errors(self) -> tuple[type[BaseException], ...]:
        """The model's."""
        return self.inner.get_stream_cancel_errors()

    @property
    def model_name(self) -> str:
        """The model's."""
        return self.inner.model_name

    @property
    def provider_name(self) -> str | None:
        """The model's."""
        return self.inner.provider_name

    @property
    def provider_url(self) -> str | None:
        """The model's."""
        return self.inner.provider_url

    @property
    def timestamp(self) -> datetime:
        """The model's."""
        return self.inner.timestamp


def _given(messages: Sequence[ModelMessage], *, turn: bool, judged: Container[str] = ()) -> Exchange:
    """What was given to the model since its last answer; an empty request where that holds no word.

    Args:
        messages: The history.
        turn: Since its last finished answer: that of a whole turn, tool results included.
        judged: Ids of tool calls whose results are left out.
    """
    texts: list[str] = []
    for message in messages:
        if isinstance(message, ModelResponse):
            if not (turn and any(isinstance(part, ToolCallPart) for part in message.parts)):
                texts.clear()
            continue
        for part in message.parts:
            if part.part_kind not in _OWN and getattr(part, "tool_call_id", None) not in judged:
                texts += _texts(part)
    return Exchange(request="\n\n".join(texts))


def _texts(part: Any) -> list[str]:
    """The texts in a part of a message."""
    return list(texts_of(without_media(getattr(part, "content", None) or getattr(part, "transcript", None))))


def without_media(content: Any) -> Any:
    """A content in which what holds no words (an image) stands as its kind."""
    if is_multi_modal_content(content) or isinstance(content, CachePoint):
        return f"[{content.kind}]"
    if isinstance(content, TextContent):
        return content.content
    if isinstance(content, (list, tuple)):
        return [without_media(item) for item in content]
    return {key: without_media(item) for key, item in content.items()} if isinstance(content, Mapping) else content


def _raw(args: Any) -> str:
    return args if isinstance(args, str) else "\n".join(texts_of(args))

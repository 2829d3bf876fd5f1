"""What LiteLLM's shapes say: requests and answers of its endpoints as exchanges, and the words of a chunk."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessageChunk, ToolCallChunk
from langchain_core.messages.tool import tool_call_chunk

from guardreasoner_guard.course import asked
from guardreasoner_guard.decorator import describe_call
from guardreasoner_guard.errors import BadInput
from guardreasoner_guard.exchange import Exchange, read_exchange, texts_of

from .held_back import words_by_path

if TYPE_CHECKING:
    from litellm.types.utils import GenericGuardrailAPIInputs, ModelResponseStream

_CALLS_APART = 1024
"""Between the tool calls of two answers that are streamed at once."""


def read_request(inputs: GenericGuardrailAPIInputs, data: Mapping[str, Any]) -> Exchange:
    """The request: the turn that is to be answered; where there are no messages, every text of it."""
    if data.get("mcp_arguments"):
        return request_of(data)
    try:
        return asked(read_exchange(inputs["structured_messages"]))
    except (KeyError, BadInput):  # no messages, or none but the application's own
        return Exchange(request="\n\n".join(inputs.get("texts", ())))


def read_response(inputs: GenericGuardrailAPIInputs, data: Mapping[str, Any]) -> Exchange:
    """The answer with its request: texts, tool calls, and what the model thought aloud."""
    texts = [*inputs.get("texts", ()), *map(_call, inputs.get("tool_calls", ()))]
    for choice in getattr(data.get("response"), "choices", ()):
        texts += texts_of(getattr(getattr(choice, "message", None), "reasoning_content", None))
    return request_of(data).model_copy(update={"response": "\n".join(texts)})


def request_of(data: Mapping[str, Any]) -> Exchange:
    """What an answer answers; an empty request where that cannot be read."""
    if data.get("mcp_arguments"):
        return Exchange(request=describe_call(str(data.get("mcp_tool_name")), data["mcp_arguments"]))
    messages = data.get("messages")
    try:
        if not messages and (given := data.get("input")):
            from litellm.responses.litellm_completion_transformation.transformation import (
                LiteLLMCompletionResponsesConfig as Responses,
            )

            messages = Responses.transform_responses_api_input_to_messages(given, dict(data))
        return asked(read_exchange(messages or data.get("prompt")))
    except Exception:  # of whatever LiteLLM's reading raises; it is context here, and was judged before the call
        return Exchange(request="")


def said(chunk: ModelResponseStream) -> AIMessageChunk:
    """The words of a chunk, each of several answers that are streamed at once a part of its own."""
    parts: list[str | dict[Any, Any]] = []
    calls: list[ToolCallChunk] = []
    beside: dict[str, str] = {}
    for choice in chunk.choices:
        delta, first = choice.delta, choice.index * _CALLS_APART
        if delta.content:
            parts.append({"type": "text", "text": delta.content, "index": choice.index})
        called = [
            (call.index, getattr(call, "function", None) or getattr(call, "custom", None))
            for call in delta.tool_calls or ()
        ]
        if (legacy := getattr(delta, "function_call", None)) is not None:
            called.append((_CALLS_APART - 1, legacy))
        for index, function in called:
            args = getattr(function, "arguments", None) or getattr(function, "input", None)
            calls.append(tool_call_chunk(name=getattr(function, "name", None), args=args, index=first + (index or 0)))
        fields = delta.model_dump(exclude={"content", "role", "tool_calls", "function_call"}, exclude_none=True)
        beside |= words_by_path(fields, str(choice.index))
    return AIMessageChunk(content=parts, tool_call_chunks=calls, additional_kwargs=beside)


def _call(call: Any) -> str:
    function = call.get("function") if isinstance(call, Mapping) else getattr(call, "function", None)
    if not isinstance(function, Mapping):
        function = vars(function) if function is not None else {}
    return f"{function['name']}({function['arguments']})" if function else "\n".join(texts_of(call))


async def starting(first: Any, rest: AsyncIterator[Any]) -> AsyncGenerator[Any]:
    """A stream with its first chunk put back."""
    try:
        yield first
        async for chunk in rest:
            yield chunk
    finally:
        if (close := getattr(rest, "aclose", None)) is not None:
            await close()

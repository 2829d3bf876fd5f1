"""The guarding proxy: OpenAI's `POST /v1/chat/completions` in front of an upstream, streams too.

The request is checked beside the upstream's call, which ends where it is blocked; of a streamed answer a window is held
back until it is cleared. What is blocked is replaced by a normal completion that says why, with `finish_reason`
`content_filter` and the verdict in `guard`; it quotes nothing of an answer that was stopped.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from langchain_core.messages import AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StrictBool

from guardreasoner_guard.guard import GuardReasonerGuard
from guardreasoner_guard.guarded import Guarded
from guardreasoner_guard.policy import explanation
from guardreasoner_guard.verdict import Verdict

from .connection import EventStream, while_connected
from .problem import RESPONSES, Problem, problem_of
from .server_settings import ServerSettings
from .upstream import Upstream

_CHAT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}, "application/json": {}}},
    404: {**RESPONSES["default"], "description": "The server was started without an upstream"},
}

_EXAMPLE: Any = {"model": "my-model", "messages": [{"role": "user", "content": "How do I bake bread?"}], "stream": True}


class ChatMessage(BaseModel):
    """A message; whatever else it holds is passed on."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None


class ChatAsked(BaseModel):
    """What the proxy looks at; everything is passed on as it came."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [_EXAMPLE]})

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: StrictBool | None = None
    n: Literal[1] | None = None
    """One answer is guarded a request."""
    modalities: list[Literal["text"]] | None = None
    """Only text can be judged."""


class Said(AIMessageChunk):
    """A completion, or a piece of one, as the guard reads it, with the upstream's event that it came in."""

    _event: dict[str, Any] = PrivateAttr(default_factory=dict)

    @classmethod
    def read(cls, event: dict[str, Any]) -> Said:
        """Reads all words of an event: content, tool calls, and what stands beside them, as a model's thoughts.

        Raises:
            ValueError: It has more than one choice, or not the form of a completion; TypeError and others too.
        """
        choices = event["choices"] or []
        if len(choices) > 1 or any(choice.get("index") for choice in choices):
            raise ValueError("there is more than one choice")
        parts = [choice[name] for choice in choices for name in ("delta", "message") if choice.get(name)]
        if len(parts) > 1:
            raise ValueError("it is a whole and a piece at once")
        # some servers name every field there is, as null
        part = {key: item for key, item in parts[0].items() if item is not None} if parts else {}
        part.pop("role", None)
        said = cls(
            content=part.pop("content", ""),
            tool_call_chunks=[_call(call) for call in part.pop("tool_calls", [])],
            additional_kwargs=part,
        )
        said._event = event
        return said


class Chat(Runnable[Any, Any]):
    """One chat with the upstream, as a runnable that a guard is wrapped around.

    Args:
        upstream: The server.
        body: What it is asked; the runnable's input is only what the guard judges.
        headers: The caller's.
    """

    def __init__(self, upstream: Upstream, body: dict[str, Any], headers: Mapping[str, str]) -> None:
        self._upstream = upstream
        self._body = body
        self._headers = headers
        self.last: dict[str, Any] = {"model": body["model"]}
        """The last that the upstream said."""

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Is not there: the server is asynchronous."""
        raise NotImplementedError("call ainvoke")

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Said:
        """The whole answer."""
        return self._said(await self._upstream.complete(self._body, self._headers))

    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Said]:
        """The answer, piece by piece; closing it ends the upstream's work."""
        async with aclosing(self._upstream.stream(self._body, self._headers)) as events:
            async for event in events:
                yield self._said(event)

    def _said(self, event: dict[str, Any]) -> Said:
        self.last = {**self.last, **event}
        try:
            return Said.read(event)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise self._upstream.strange from None


def proxy_router(guard: GuardReasonerGuard, upstream: Upstream | None, settings: ServerSettings) -> APIRouter:
    """`POST /v1/chat/completions` and `GET /v1/models`.

    Args:
        guard: Judges; whatever its policy says of violations, they are answered with a replacement.
        upstream: What is guarded; without it both paths only say that it is missing.
        settings: How much is held back, and what else is let through.
    """
    router = APIRouter(tags=["chat"], responses=RESPONSES)
    policy = guard.policy.model_copy(update={"on_violation": _as_it_is})
    guard = guard.model_copy(update={"policy": policy})

    @router.post("/v1/chat/completions", response_class=Response, responses=_CHAT_RESPONSES)
    async def chat(asked: ChatAsked, request: Request) -> Response:
        """Passes a chat on to the upstream, between two checks."""
        body = await request.json()
        judged = _judged(body["messages"])
        if settings.attachments == "refuse":
            _refuse_attachments(asked.messages)
        talk = Chat(_there(upstream), body, request.headers)
        guarded = guard.wrap(talk, beside=settings.beside, hold=settings.hold)
        if not asked.stream:
            said = await while_connected(request.receive, guarded.ainvoke(judged))
            event = replacement(said, talk.last) if isinstance(said, Verdict) else said._event
            return Response(json.dumps(event), media_type="application/json")
        events = _events(guarded, judged, talk)
        # what goes wrong before the first event has a status of its own
        first = await while_connected(request.receive, _next(events))
        return EventStream(_to_the_end(first, events))

    @router.get("/v1/models", response_class=Response, responses=_CHAT_RESPONSES)
    async def models(request: Request) -> Response:
        """The upstream's models."""
        return Response(json.dumps(await _there(upstream).models(request.headers)), media_type="application/json")

    return router


def replacement(verdict: Verdict, last: Mapping[str, Any]) -> dict[str, Any]:
    """A completion in place of one that is blocked.

    Args:
        verdict: Why.
        last: What the upstream said last; its id, its model and its usage stay.
    """
    message = {"role": "assistant", "content": explanation(verdict), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "content_filter"}
    usage = {"usage": last["usage"]} if last.get("usage") else {}
    return {**_head(last, "chat.completion"), "choices": [choice], **usage, "guard": told(verdict)}


def ending(verdict: Verdict, last: Mapping[str, Any], begun: bool) -> list[dict[str, Any]]:
    """The events that end a stream which is blocked; see `replacement`.

    Args:
        verdict: Why.
        last: What the upstream said last.
        begun: Whether a part of the answer was let go before.
    """
    head = _head(last, "chat.completion.chunk")
    text = ("\n\n" if begun else "") + explanation(verdict)
    delta = {"role": "assistant", "content": text}
    said = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    end = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "content_filter"}
    return [{**head, "choices": [said]}, {**head, "choices": [end], "guard": told(verdict)}]


def told(verdict: Verdict) -> dict[str, Any]:
    """As much of a verdict as may be shown to one who must not see the answer."""
    shown = {"request", "completion", "response", "blocked", "outcome", "scores", "mode", "consistent", "model"}
    return {**verdict.model_dump(include=shown), "reasons": verdict.shown_reasons}


async def _events(guarded: Guarded, messages: list[Any], talk: Chat) -> AsyncGenerator[str]:
    """The guarded stream as server-sent events."""
    begun = False
    async with aclosing(guarded.astream(messages)) as chunks:  # type: ignore[type-var]  # it is a generator
        async for said in chunks:
            if isinstance(said, Verdict):
                for event in ending(said, talk.last, begun):
                    yield _sse(event)
                break
            begun = begun or bool(said.content)
            yield _sse(said._event)
    yield "data: [DONE]\n\n"


async def _to_the_end(first: str, events: AsyncGenerator[str]) -> AsyncGenerator[str]:
    """The events; of an error, which comes too late for a status, an event tells as OpenAI's own streams do."""
    async with aclosing(events):
        yield first
        try:
            async for event in events:
                yield event
        except Exception as error:
            yield _sse(problem_of(error).body)


async def _next(events: AsyncGenerator[str]) -> str:
    return await anext(events)


def _sse(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event)}\n\n"


def _head(last: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return {
        "id": last.get("id") or f"chatcmpl-{uuid.uuid4().hex}", "object": kind,
        "created": last.get("created") or int(time.time()), "model": last.get("model"),
    }  # fmt: skip


def _as_it_is(verdict: Verdict) -> Verdict:
    return verdict


def _there(upstream: Upstream | None) -> Upstream:
    if upstream is None:
        message = "This server has no upstream to guard. Its operator starts it with --upstream URL."
        raise Problem(404, message, "no_upstream")
    return upstream


def _judged(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages as the guard is to read them: one that only calls tools may lack its content."""
    return [{"content": None, **one} for one in messages]


def _call(call: dict[str, Any]) -> Any:
    other = {key: item for key, item in call.items() if item is not None and key not in ("index", "id", "type")}
    function = call.get("function") or call.get("custom") or ({"input": other} if other else {})
    args = function.get("arguments", function.get("input"))
    return tool_call_chunk(
        name=function.get("name"), id=call.get("id"), index=call.get("index"),
        args=args if args is None or isinstance(args, str) else json.dumps(args),
    )  # fmt: skip


def _refuse_attachments(messages: Sequence[ChatMessage]) -> None:
    for message in messages:
        for part in message.content if isinstance(message.content, list) else []:
            if part.get("type") not in ("text", "refusal"):
                raise Problem(
                    400, f"The guard reads text alone, and a message holds a part of type {part.get('type')!r}. Leave "
                    "it out, or let the server's operator start it with --attachments pass.",
                    "unreadable_attachment", param="messages",
                )  # fmt: skip

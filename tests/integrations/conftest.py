"""What tests of the server share: real servers on loopback, and an upstream that does what its model's name says."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

Serve = Callable[..., AbstractContextManager[str]]


@contextmanager
def serving(app: FastAPI, address: socket.socket | None = None) -> Iterator[str]:
    """Runs an application in a thread, on a free port where no address is given; gives its URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=10))
    started = threading.Event()
    startup = server.startup

    async def told(*args: Any, **kwargs: Any) -> None:
        await startup(*args, **kwargs)
        started.set()

    server.startup = told  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, args=([address] if address else None,))
    thread.start()
    try:
        assert started.wait(30)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def serve() -> Serve:
    return serving


class UpstreamApp:
    """An OpenAI-compatible server; it answers with the `reply` that it is sent, a word an event, or as it is (`raw`)."""

    def __init__(self) -> None:
        self.url = ""
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self.chat)
        self.app.get("/v1/models")(self.models)
        self.seen: list[dict[str, Any]] = []
        """Bodies, each with its headers."""
        self.begun, self.ended = threading.Event(), threading.Event()
        """Whether an endless answer has begun, and whether it was cut off."""

    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "chat", "object": "model", "created": 1, "owned_by": "me"}]}

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.seen.append({**body, "headers": dict(request.headers)})
        model, stream = body["model"], body.get("stream")
        if model == "limited":
            return JSONResponse(
                {"error": {"message": "slow down", "type": "tokens", "code": "rate_limit_exceeded"}}, 429,
                {"retry-after": "7"},
            )  # fmt: skip
        if model == "secret":
            return JSONResponse({"error": {"message": "who are you?", "code": "invalid_api_key"}}, 401)
        if model == "failing":
            return Response("<h1>Bad gateway</h1>", 502)
        if model == "page":
            return Response("<h1>Welcome</h1>", media_type="text/html")
        if model == "raw":
            return Response(body["reply"], media_type="text/event-stream" if stream else "application/json")
        if stream:
            return StreamingResponse(self.events(body), media_type="text/event-stream")
        if model == "endless":
            await self.endless(request)
        return JSONResponse(self.completion(body))

    async def endless(self, request: Request) -> None:
        self.begun.set()
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.ended.set()

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        reply = body.get("reply", "")
        message: dict[str, Any] = {"role": "assistant", "content": reply}
        if body["model"] == "tool":
            function = {"name": "search", "arguments": json.dumps({"query": reply})}
            call = {"id": "call_1", "type": "function", "function": function}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        if body["model"] == "thinking":
            message = {"role": "assistant", "content": "Well.", "reasoning_content": reply}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        return {
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"],
            "choices": [choice], "usage": usage, "system_fingerprint": "fp_1",
        }  # fmt: skip

    async def events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        model = body["model"]
        words = [f"{word} " for word in body.get("reply", "").split(" ")]
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        if model == "tool":
            head = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "search", "arguments": ""}}
            arguments = ['{"query": "', *words, '"}']
            deltas += [{"tool_calls": [head]}]
            deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": part}}]} for part in arguments]
        else:
            deltas += [{"reasoning_content" if model == "thinking" else "content": word} for word in words]
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model}
        try:
            for delta in deltas:
                yield self.line({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
            while model == "endless":
                self.begun.set()
                await asyncio.sleep(0.001)
                yield self.line({**head, "choices": [{"index": 0, "delta": {"content": "on "}, "finish_reason": None}]})
        finally:
            if model == "endless":
                self.ended.set()
        if model == "broken":
            return
        if model == "sorry":
            yield self.line({"error": {"message": "the engine died", "type": "server_error"}})
            return
        yield self.line({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if (body.get("stream_options") or {}).get("include_usage"):
            yield self.line(
                {**head, "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}
            )
        yield "data: [DONE]\n\n"

    @staticmethod
    def line(event: dict[str, Any]) -> str:
        return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


@pytest.fixture(scope="session")
def served_upstream() -> Iterator[UpstreamApp]:
    upstream = UpstreamApp()
    with serving(upstream.app) as upstream.url:
        yield upstream


@pytest.fixture(scope="session")
def upstream_app() -> FastAPI:
    return UpstreamApp().app


@pytest.fixture
def upstream(served_upstream: UpstreamApp) -> UpstreamApp:
    """The upstream at its `url`, which remembers nothing of earlier tests."""
    served_upstream.seen.clear()
    served_upstream.begun.clear()
    served_upstream.ended.clear()
    return served_upstream

"""Bodies: whatever is sent to the server is answered in its form, and what is harmful does not pass."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import cache
from typing import Any
from unittest.mock import patch

import httpx
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from guardreasoner_guard.integrations import server
from guardreasoner_guard.integrations.server_settings import ServerSettings
from guardreasoner_guard.integrations.upstream import Upstream

from guardreasoner_guard import GuardReasonerGuard, ScriptedEngine

PATHS = ("/v1/moderations", "/v1/guard", "/v1/chat/completions")
_REPLY = "the upstream has spoken"


def holds(path: str, body: bytes) -> None:
    """What is true of every body."""
    runner, client = _client()
    answer = runner.run(client.post(path, content=body, headers={"content-type": "application/json"}))
    assert answer.status_code in (200, 400, 413), (answer.status_code, answer.text)
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        return
    asked = json.loads(body)
    if path == PATHS[0]:
        flags = [result["flagged"] for result in answer.json()["results"]]
        texts = _texts(asked["input"])
        assert len(flags) == len(texts) and all(flags[place] for place, text in enumerate(texts) if "bomb" in text)
    elif path == PATHS[1]:
        policy, verdict = asked.get("policy", {}), answer.json()
        blocks = ("request", "response") if policy.get("block") is None else policy["block"]
        harmful = any("bomb" in (asked.get(task) or "") for task in ("request", "response") if task in blocks)
        assert verdict["outcome"] == "verdict" and (
            not harmful or verdict["shadowed" if policy.get("shadow") else "blocked"]
        )
    elif "bomb" in _said(asked["messages"][-1]):
        assert _REPLY not in answer.text and "content_filter" in answer.text


def _texts(given: Any) -> list[str]:
    """The texts that moderations are asked of."""
    if isinstance(given, str):
        return [given]
    return list(given) if isinstance(given[0], str) else ["\n".join(part["text"] for part in given)]


def _said(message: dict[str, Any]) -> str:
    """What a user says in a message."""
    content = message.get("content") if message["role"] == "user" else None
    if isinstance(content, list):
        return "\n".join(str(part.get("text")) for part in content)
    return content or ""


async def _chat(request: Request) -> Response:
    asked = await request.json()
    said = {"role": "assistant", "content": _REPLY}
    kind = "delta" if asked.get("stream") else "message"
    told = {"id": "1", "model": "m", "choices": [{"index": 0, kind: said, "finish_reason": "stop"}]}
    return StreamingResponse(_events(told)) if asked.get("stream") else JSONResponse(told)


async def _events(told: dict[str, Any]) -> AsyncIterator[str]:
    yield f"data: {json.dumps(told)}\n\n"
    yield "data: [DONE]\n\n"


class _Near(Upstream):  # type: ignore[misc]  # no checker sees the folder behind its name
    """An upstream in this process."""

    def __init__(self, settings: ServerSettings) -> None:
        super().__init__(settings)
        app = FastAPI()
        app.post("/v1/chat/completions")(_chat)
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app=app))


@cache
def _client() -> tuple[asyncio.Runner, httpx.AsyncClient]:
    """A client of the server, in this process too."""
    settings = ServerSettings(upstream="http://upstream", playground=False)
    with patch.object(server, "Upstream", _Near):
        app = server.create_app(settings, GuardReasonerGuard(ScriptedEngine(), remember=0))
    return asyncio.Runner(), httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://guard")

"""The guard over HTTP: `POST /v1/guard` takes an exchange and gives the whole verdict."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StrictBool

from guardreasoner_guard.guard import GuardReasonerGuard
from guardreasoner_guard.judge import Reasoning
from guardreasoner_guard.policy import Policy
from guardreasoner_guard.verdict import Task, Verdict

from .connection import while_connected
from .moderations import Text
from .problem import RESPONSES

_EXAMPLE: Any = {"request": "How do I bake bread?", "response": "Mix flour, water, salt and yeast."}


class Turn(BaseModel):
    """An earlier turn of the talk."""

    role: Literal["user", "assistant"]
    content: str


class PolicyAsked(BaseModel):
    """A policy for this one check; what is left out stays as the server's."""

    model_config = ConfigDict(extra="forbid")

    block: tuple[Task, ...] | None = None
    """Tasks whose positive label blocks."""
    on_disagreement: Literal["careful", "trust"] | None = None
    """Where score and reasoning part: block if either would, or go by the one that measured better."""
    shadow: StrictBool | None = None
    """Say in `shadowed` what would have been blocked, and block nothing."""


class GuardAsked(BaseModel):
    """An exchange to judge."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})

    request: Text
    """What a user asks."""
    response: str | None = None
    """What was answered; without it only the request is judged."""
    history: Annotated[list[Turn], Field(max_length=256)] = []
    """Earlier turns, read but not judged."""
    policy: PolicyAsked = PolicyAsked()
    reasoning: Reasoning | None = None
    """adaptive, always or never; left out, the server's."""


def guard_router(guard: GuardReasonerGuard) -> APIRouter:
    """`POST /v1/guard`.

    Args:
        guard: Judges; its policy holds where a request names none.
    """
    router = APIRouter(tags=["guard"], responses=RESPONSES)

    @router.post("/v1/guard")
    async def judge(asked: GuardAsked, request: Request) -> Verdict:
        """Judges a request, or a request and its response, and tells everything of the verdict."""
        history = [(turn.role, turn.content) for turn in asked.history] or None
        check = _for(guard, asked).acheck(asked.request, asked.response, history=history)
        return await while_connected(request.receive, check)

    return router


def _for(guard: GuardReasonerGuard, asked: GuardAsked) -> GuardReasonerGuard:
    """The guard with what was asked for; its model, threads and memory are shared."""
    policy = Policy(**{**dict(guard.policy), **asked.policy.model_dump(exclude_none=True)})
    return guard.model_copy(update={"policy": policy, "reasoning": asked.reasoning or guard.reasoning})

"""The playground and the review desk: one page, and what it asks the server for."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from importlib import resources
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from guardreasoner_guard.errors import BadInput, GuardError, MissingExtra
from guardreasoner_guard.guard import GuardReasonerGuard
from guardreasoner_guard.verdict import Task, Verdict

from .audit import AuditLog, Review, json_lines
from .entry import Status, Thumb

try:
    from fastapi import APIRouter, HTTPException, Path, Response
    from fastapi.responses import HTMLResponse, StreamingResponse
except ImportError as error:
    raise MissingExtra("fastapi", "server") from error

_PAGE = (resources.files(__package__) / "playground.html").read_text(encoding="utf-8")
_MOST = 2**63 - 1
"""The greatest id that SQLite holds."""


class Asked(BaseModel):
    """What the page wants judged."""

    model_config = ConfigDict(extra="forbid")

    request: str
    response: str | None = None


class Said(BaseModel):
    """What a reviewer says of a verdict; nothing takes the review back."""

    model_config = ConfigDict(extra="forbid")

    thumb: Thumb | None = None
    labels: dict[Task, str] = {}


class Wanted(BaseModel):
    """Which verdicts the page wants to see; see `AuditLog.recent`."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=20, ge=1, le=200)
    before: int | None = Field(default=None, ge=1, le=_MOST)
    status: Status | None = None
    found: Task | None = None
    review: Review | None = None
    text: str = Field(default="", max_length=1000)


def playground_router(
    guard: GuardReasonerGuard, audit: AuditLog | None = None, *, dependencies: Sequence[Any] = ()
) -> APIRouter:
    """The page at `/` and, under `/playground`, what it asks for.

    Args:
        guard: Judges what is typed.
        audit: The log that is shown and reviewed, one of the guard's observers; None = the page only judges.
        dependencies: FastAPI dependencies of everything but the page, as a check of API keys. The page holds no
            data; it asks for a key where it is refused, and sends it as `Authorization: Bearer`.

    Raises:
        BadInput: The guard does not tell the log of its checks.
    """
    if audit is not None and not any(observer is audit for observer in guard.observers):
        raise BadInput("The guard does not write this audit log. Make it with observers=(audit,).")
    router = APIRouter()
    data = APIRouter(prefix="/playground", dependencies=list(dependencies), include_in_schema=False)

    @router.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse(_PAGE, headers=_HEADERS)

    @data.get("/about")
    def about() -> dict[str, Any]:
        """The guard, and what the audit log keeps."""
        manifest = guard.judge.manifest
        return {
            "model": guard.judge.engine.name,
            "reasoning": guard.reasoning,
            "blocks": guard.policy.block,
            "shadow": guard.policy.shadow,
            "thresholds": manifest.thresholds,
            "audit": audit and {"texts": audit.texts, "days": audit.days if math.isfinite(audit.days) else None},
        }

    @data.post("/check", response_class=StreamingResponse)
    def check(asked: Asked) -> StreamingResponse:
        """Judges; server-sent events: `step` for each step as it is written, then `verdict`, or `problem`."""
        try:
            guard.read(asked.request, asked.response)
        except BadInput as error:
            raise HTTPException(422, str(error)) from None
        return StreamingResponse(_events(guard, audit, asked), media_type="text/event-stream", headers=_UNSTORED)

    def kept() -> AuditLog:
        if audit is None:
            raise HTTPException(409, "No audit log is kept. Start the server with one to review verdicts.")
        return audit

    @data.post("/verdicts")
    def verdicts(wanted: Wanted) -> dict[str, Any]:
        """Recent verdicts, the last one first, and how many there are; not a GET, whose words servers log."""
        return {"entries": kept().recent(**wanted.model_dump()), "counts": kept().counts()}

    @data.post("/verdicts/{id}/review")
    def review(id: Annotated[int, Path(ge=1, le=_MOST)], said: Said) -> dict[str, Any]:
        """Writes down what a reviewer says of a verdict."""
        try:
            return {"entry": kept().correct(id, said.labels, said.thumb), "counts": kept().counts()}
        except BadInput as error:
            raise HTTPException(422, str(error)) from None

    @data.get("/export/{name}.jsonl", response_class=StreamingResponse)
    def export(name: Literal["corrections", "log"]) -> Response:
        """`corrections`: seed rows for `guardreasoner train all`; `log`: checks for `guardreasoner replay`."""
        rows = kept().corrections() if name == "corrections" else kept().log()
        named = {"Content-Disposition": f'attachment; filename="{name}.jsonl"'}
        return StreamingResponse(json_lines(rows), media_type="application/jsonl", headers=_UNSTORED | named)

    router.include_router(data)
    return router


async def _events(guard: GuardReasonerGuard, audit: AuditLog | None, asked: Asked) -> AsyncIterator[str]:
    written = audit.watch() if audit is not None else []
    try:
        async with aclosing(guard.astream_check(asked.request, asked.response)) as told:
            async for item in told:
                if isinstance(item, Verdict):
                    number = written[0] if written else None
                    yield _event("verdict", {"verdict": item.model_dump(mode="json"), "id": number})
                else:
                    yield _event("step", item.model_dump())
    except GuardError as error:
        yield _event("problem", {"message": str(error)})


def _event(name: str, data: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _sources(tag: str) -> str:
    """The hashes of the page's own scripts or styles: nothing else is run, and nothing that a text may bring."""
    digests = [hashlib.sha256(text.encode()).digest() for text in re.findall(rf"<{tag}>(.*?)</{tag}>", _PAGE, re.S)]
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


_UNSTORED = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Accel-Buffering": "no"}
_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; script-src {_sources('script')}; style-src {_sources('style')}; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}

"""The server: `guardreasoner serve`. Moderations, verdicts and a guarded chat over HTTP.

Anything that asks it: metrics count it, the limits let it in, a router answers.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from guardreasoner_guard import __version__
from guardreasoner_guard.errors import GuardError, MissingExtra
from guardreasoner_guard.guard import GuardReasonerGuard

try:
    import httpx  # noqa: F401  (the proxy's)
    import uvicorn
    from fastapi import APIRouter, FastAPI, Response, Security
    from fastapi.security import HTTPBearer
except ImportError as error:
    raise MissingExtra(error.name or "fastapi", "server") from None

from .audit import AuditLog
from .guard_endpoint import guard_router
from .limits import Limits
from .metrics import CONTENT_TYPE, Counted, Metrics
from .moderations import moderations_router
from .problem import RESPONSES, LastResort, Problem, tell_problems
from .proxy import proxy_router
from .server_settings import ServerSettings, observed
from .upstream import Upstream

logger = logging.getLogger(__name__)

_KEEP_ALIVE = 75
"""Seconds an idle connection stays open: longer than clients keep theirs, so that none is closed under a request."""
_LINGER = 0.5
"""Seconds in which requests are still read, at the end, that had reached an open connection before."""
_LONGEST_WAIT = 30.0


def create_app(settings: ServerSettings | None = None, guard: GuardReasonerGuard | None = None) -> FastAPI:
    """The application, for uvicorn or any other ASGI server.

    Args:
        settings: Everything there is to set.
        guard: In place of the one that the settings describe; it is not closed at the end.

    Raises:
        GuardError: The model is missing or cannot be run here.
    """
    settings = settings or ServerSettings()
    metrics = Metrics()
    audit = AuditLog(settings.audit, days=settings.audit_days, texts=settings.audit_texts) if settings.audit else None
    opened = None if guard else settings.open_guard()
    judge = observed(guard or opened, metrics, *([audit] if audit else []))  # type: ignore[arg-type]  # one is there
    upstream = Upstream(settings) if settings.upstream else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(_warm(app, judge))
        yield
        app.state.ready = False
        warming.cancel()
        if upstream is not None:
            await upstream.aclose()
        if opened is not None:
            opened.close()
        if audit is not None:
            audit.close()

    app = FastAPI(
        title="guardreasoner-guard", version=__version__, lifespan=lifespan, redoc_url=None,
        description="A guard model that reasons before it judges: moderations, verdicts, and a guarded chat.",
    )  # fmt: skip
    app.state.ready = False
    tell_problems(app)
    app.add_middleware(Limits, settings)
    app.add_middleware(LastResort)
    app.add_middleware(Counted, metrics)  # the last is the outermost
    keys = [Security(HTTPBearer(auto_error=False))] if settings.api_keys else []  # for the API's page; Limits checks
    app.include_router(moderations_router(judge), dependencies=keys)
    app.include_router(guard_router(judge), dependencies=keys)
    app.include_router(proxy_router(judge, upstream, settings), dependencies=keys)
    app.include_router(_state(app, metrics))
    if settings.playground:
        from .playground import playground_router

        app.include_router(playground_router(judge, audit))
    return app


def serve(settings: ServerSettings | None = None, guard: GuardReasonerGuard | None = None) -> None:
    """Serves until it is told to stop, by SIGTERM or SIGINT; what was accepted until then is answered.

    Args:
        settings: Everything there is to set.
        guard: In place of the one that the settings describe.

    Raises:
        GuardError: The model is missing or cannot be run here.
    """
    settings = settings or ServerSettings()
    if settings.is_open:
        logger.warning("no API keys are set: whoever can reach %s may use this server", settings.host)
    Server(
        uvicorn.Config(
            create_app(settings, guard), host=settings.host, port=settings.port, server_header=False, lifespan="on",
            timeout_keep_alive=_KEEP_ALIVE, timeout_graceful_shutdown=settings.grace,
        )
    ).run()  # fmt: skip


class Server(uvicorn.Server):
    """uvicorn, except that it loses no request which had reached it when it was told to stop."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes no new connection, reads what had come on those there are, answers it, ends."""
        app: Any = self.config.app
        app.state.ready = False
        for server in self.servers:
            server.close()
        await self.linger()
        await super().shutdown(sockets)

    async def linger(self) -> None:
        """Waits for requests that are on their way."""
        await asyncio.sleep(_LINGER)


def _state(app: FastAPI, metrics: Metrics) -> APIRouter:
    """Health, readiness and metrics."""
    router = APIRouter(tags=["operation"])

    @router.get("/healthz")
    async def healthy() -> dict[str, str]:
        """Whether the process is there."""
        return {"status": "ok"}

    @router.get("/readyz", responses={503: {**RESPONSES[503], "description": "It is warming up, or stopping"}})
    async def ready() -> dict[str, str]:
        """Whether requests should be sent here: once the model is warm, until the server is told to stop."""
        if not app.state.ready:
            raise Problem(503, "The model is not warm yet, or the server is stopping.", "not_ready", retry_after=1)
        return {"status": "ready"}

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def measured() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.page(), media_type=CONTENT_TYPE)

    return router


async def _warm(app: FastAPI, guard: GuardReasonerGuard) -> None:
    """Makes the first check; a model on another server may take its time."""
    plain = guard.model_copy(update={"on_failure": "raise", "timeout": None})
    wait = 1.0
    while True:
        try:
            await asyncio.to_thread(plain.warm_up)
        except GuardError as error:
            logger.warning("not ready, tried again in %.0f s: %s", wait, error)
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)
        else:
            app.state.ready = True
            return

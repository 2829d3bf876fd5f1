"""Limits: who may ask the server, how much at once, and how often."""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections.abc import Callable

from cachetools import LRUCache
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .problem import Problem
from .server_settings import ServerSettings

OPEN = frozenset({"/", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"})
"""Paths that ask for no key and have no limits: they show no text that was judged."""
_MOST_CALLERS = 10_000
"""So many are remembered for `rate`; of more, those that have not asked for longest start anew."""


class Limits:
    """ASGI middleware that lets in whom the settings let in.

    Args:
        app: What is guarded by it.
        settings: The keys and limits.
        clock: Seconds that have passed.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.app = app
        self._keys = [_digest(key.get_secret_value()) for key in settings.api_keys]
        self._max_body = settings.max_body
        self._max_in_flight = settings.max_in_flight
        self._pace = Pace(settings.rate, clock) if settings.rate else None
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request in, or answers why not."""
        if scope["type"] == "lifespan" or scope["path"] in OPEN:
            await self.app(scope, receive, send)
            return
        try:
            self._admit(scope)
        except Problem as problem:
            await problem.response(scope, receive, send)
            return
        self._in_flight += 1
        try:
            await self.app(scope, self._measured(receive), send)
        finally:
            self._in_flight -= 1

    def _admit(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        caller = self._caller(headers) if self._keys else str((scope.get("client") or ("",))[0])
        if headers.get("content-length", "").isdecimal() and int(headers["content-length"]) > self._max_body:
            raise self._too_large
        if self._in_flight >= self._max_in_flight:
            message = f"{self._in_flight} requests are under way. Try again in a moment."
            raise Problem(503, message, "overloaded", retry_after=1)
        if self._pace is not None:
            self._pace.step(caller)

    def _caller(self, headers: Headers) -> str:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip())
        known = [hmac.compare_digest(given, one) for one in self._keys]  # all of them, in the same time whichever it is
        if scheme.lower() != "bearer" or not any(known):
            message = "No key was sent, or one that is not known. Send yours as `Authorization: Bearer KEY`."
            raise Problem(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return str(known.index(True))

    def _measured(self, receive: Receive) -> Receive:
        """For a body whose length nobody told."""
        length = 0

        async def measured() -> Message:
            nonlocal length
            message = await receive()
            length += len(message.get("body", b""))
            if length > self._max_body:
                raise self._too_large
            return message

        return measured

    @property
    def _too_large(self) -> Problem:
        message = f"The request has more than {self._max_body:,} bytes. Send less at once, or raise --max-body."
        # what is left of it is not read
        return Problem(413, message, "request_too_large", headers={"Connection": "close"})


class Pace:
    """How often each caller may ask: up to a minute's worth at once, then evenly.

    Args:
        rate: Requests a minute.
        clock: Seconds that have passed.
    """

    def __init__(self, rate: int, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._clock = clock
        self._left: LRUCache[str, tuple[float, float]] = LRUCache(_MOST_CALLERS)
        """Requests a caller has left, and when that was counted."""

    def step(self, caller: str) -> None:
        """Counts one request.

        Raises:
            Problem: It is one too many.
        """
        now = self._clock()
        left, then = self._left.get(caller, (float(self._rate), now))
        left = min(self._rate, left + (now - then) * self._rate / 60)
        if left < 1:
            self._left[caller] = left, now
            wait = math.ceil((1 - left) * 60 / self._rate)
            message = f"This server takes {self._rate} requests a minute of one caller. Try again in {wait} s."
            raise Problem(429, message, "rate_limit_exceeded", retry_after=wait)
        self._left[caller] = left - 1, now


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

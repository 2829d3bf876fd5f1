"""Limits: who may ask the server, how much at once, and how often."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import time
from collections.abc import Callable
from ipaddress import ip_address
from urllib.parse import urlsplit

from cachetools import LRUCache
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .problem import Problem
from .server_settings import ServerSettings, is_loopback

OPEN = frozenset({"/", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"})
"""Paths that ask for no key and have no limits: they show no text that was judged."""
_BODY_TIME = 60.0
"""Seconds in which a request's body must have come: whoever is slower holds a place that others wait for."""
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
        address = str((scope.get("server") or ("",))[0])
        if not self._keys and is_loopback(address) and _is_made_up(headers.get("host", "")):
            told = (
                "Without keys this server is asked as localhost or by an address alone, as a web page's own name may "
                "point here. Ask it so, or let its operator set --api-keys."
            )
            raise Problem(421, told, "unknown_host")
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
        """For a body whose length nobody told, or that does not come."""
        length = 0
        until: float | None = asyncio.get_running_loop().time() + _BODY_TIME

        async def measured() -> Message:
            nonlocal length, until
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                told = f"The request's body did not come within {_BODY_TIME:.0f} s. Send it faster, or in parts."
                raise Problem(408, told, "request_timeout", headers={"Connection": "close"}) from None
            length += len(message.get("body", b""))
            if length > self._max_body:
                raise self._too_large
            if not message.get("more_body"):
                until = None
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


def _is_made_up(host: str) -> bool:
    """Whether a Host header holds a name other than localhost, which anyone may have made."""
    name = None
    try:
        name = urlsplit(f"//{host}").hostname
        ip_address(name or "")
    except ValueError:
        return bool(host) and name != "localhost"
    return False


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

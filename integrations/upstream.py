"""The upstream: the OpenAI-compatible server whose chat is guarded. What it says and refuses comes back as it is."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx

from guardreasoner_guard.remote_engine import bearer, read_url

from .problem import Problem
from .server_settings import ServerSettings

_CONNECT = 10.0
"""Seconds to wait for a connection."""
_PASSED_ON = ("authorization", "openai-organization", "openai-project")
"""Headers of a caller that bears its own key."""
_PASSED_BACK = ("retry-after", "x-request-id")


class Refused(Problem):
    """What the upstream gave in place of an answer, in its own words."""

    def __init__(self, status: int, body: dict[str, Any], headers: Mapping[str, str]) -> None:
        told = {name: headers[name] for name in _PASSED_BACK if name in headers}
        super().__init__(status, "The upstream refused.", "upstream_error", headers=told)
        self._body = body

    @property
    def body(self) -> dict[str, Any]:
        """The upstream's own JSON."""
        return self._body


class Upstream:
    """One server, whose connections are shared.

    Args:
        settings: Where it is, its key, and how long it may be silent.

    Raises:
        BadInput: The URL is none, or no header can hold the key.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._url, self._auth = read_url(settings.upstream or "")
        self._name = httpx.URL(self._url).netloc.decode()
        self._key = bearer(settings.upstream_key.get_secret_value() if settings.upstream_key else None)
        self._lends = not settings.api_keys and not self._key
        self._timeout = httpx.Timeout(settings.upstream_timeout, connect=_CONNECT, pool=None)
        self._client: httpx.AsyncClient | None = None

    async def aclose(self) -> None:
        """Ends its connections; a later call opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def models(self, headers: Mapping[str, str]) -> dict[str, Any]:
        """What `GET /v1/models` says.

        Raises:
            Problem: It gives none; all methods raise it.
        """
        async with self._answer("GET", "/v1/models", None, headers) as response:
            return self._read(response, await response.aread())

    async def complete(self, body: dict[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
        """The answer of `POST /v1/chat/completions`.

        Args:
            body: What is asked.
            headers: The caller's.
        """
        async with self._answer("POST", "/v1/chat/completions", body, headers) as response:
            return self._read(response, await response.aread())

    async def stream(self, body: dict[str, Any], headers: Mapping[str, str]) -> AsyncGenerator[dict[str, Any]]:
        """The events of a streamed answer; one that ends without saying so is a `Problem`. See `complete`."""
        ended = False
        async with self._answer("POST", "/v1/chat/completions", body, headers) as response:
            async for data in _events(response):
                if data == b"[DONE]":
                    ended = True
                    break
                event = self._read(response, data)
                yield event  # whose form its reader holds to what it should be
                ended = ended or any(choice.get("finish_reason") for choice in event["choices"] or [])
        if not ended:
            raise Problem(502, f"The upstream {self._name} broke its answer off. Ask again.", "upstream_error")

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, body: dict[str, Any] | None, headers: Mapping[str, str]
    ) -> AsyncIterator[httpx.Response]:
        lent = {name: headers[name] for name in _PASSED_ON if self._lends and name in headers}
        sent = httpx.Headers(lent, encoding="latin-1")  # as Starlette reads them
        sent.update(self._key)
        if body is not None:
            sent["content-type"] = "application/json"
        content = None if body is None else json.dumps(body).encode()
        if self._client is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
            self._client = httpx.AsyncClient(auth=self._auth, timeout=self._timeout, limits=limits)
        with self._reaching():
            async with self._client.stream(method, self._url + path, content=content, headers=sent) as response:
                if response.status_code != 200:
                    raise self._refusal(response, await response.aread())
                yield response

    def _refusal(self, response: httpx.Response, body: bytes) -> Problem:
        status = response.status_code
        if status in (401, 403) and not self._lends:
            message = f"The upstream {self._name} refused this server's key for it. Its operator sets --upstream-key."
            return Problem(502, message, "upstream_error")
        try:
            told = json.loads(body)
        except (ValueError, RecursionError):
            told = None
        if status >= 400 and isinstance(told, dict):
            return Refused(status, told, response.headers)
        message = f"The upstream {self._name} answered with status {status} and does not say why. See its log."
        return Problem(status if status >= 400 else 502, message, "upstream_error")

    def _read(self, response: httpx.Response, data: bytes) -> dict[str, Any]:
        try:
            read = json.loads(data)
        except (ValueError, RecursionError):
            read = None
        if not isinstance(read, dict):
            raise self.strange
        if read.get("error"):
            raise Refused(502, read, response.headers)
        return read

    @property
    def strange(self) -> Problem:
        """What is told where an answer is not of the form it should have."""
        message = f"{self._name} did not answer as an OpenAI-compatible server does. Check that --upstream names one."
        return Problem(502, message, "upstream_error")

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException:
            message = f"The upstream {self._name} was silent too long. Ask again, or raise --upstream-timeout."
            raise Problem(504, message, "upstream_timeout") from None
        except httpx.HTTPError as error:
            message = f"The upstream {self._name} cannot be reached, or broke off ({type(error).__name__}). See to it."
            raise Problem(502, message, "upstream_error", retry_after=1) from None


async def _events(response: httpx.Response) -> AsyncIterator[bytes]:
    """The data of server-sent events. Only line feeds part lines: JSON may hold the other separators of Unicode."""
    rest, said = b"", b""
    async for part in response.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                said += line[5:].strip()
            elif not line.strip() and said:
                yield said
                said = b""
    if rest.startswith(b"data:"):
        said += rest[5:].strip()
    if said:
        yield said

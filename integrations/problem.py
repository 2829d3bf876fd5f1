"""A problem: what a caller is told in place of an answer, in the form of OpenAI's errors."""

from __future__ import annotations

import logging
import traceback
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guardreasoner_guard.errors import BadInput, GuardError, Overloaded

logger = logging.getLogger(__name__)

_KINDS = {401: "authentication_error", 403: "authentication_error", 429: "rate_limit_error"}
_NAMES = {400: "invalid_request", 404: "not_found", 405: "method_not_allowed"}


class ErrorDetail(BaseModel):
    """What went wrong and what to do."""

    message: str
    type: str
    param: str | None = None
    """The field of the request that it is about."""
    code: str | None = None


class ErrorAnswer(BaseModel):
    """Any answer that is none."""

    error: ErrorDetail


RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "The request cannot be read or judged"},
    401: {"model": ErrorAnswer, "description": "No key, or one that is not known"},
    413: {"model": ErrorAnswer, "description": "The request is too large"},
    429: {"model": ErrorAnswer, "description": "Too many requests of one caller; see Retry-After"},
    503: {"model": ErrorAnswer, "description": "Too many requests, or the guard cannot judge; see Retry-After"},
    "default": {"model": ErrorAnswer, "description": "Any other failure"},  # keeps FastAPI from adding its own 422
}
"""What every route may answer besides its own."""


class Problem(HTTPException):
    """Ends a request.

    Args:
        status: The HTTP status.
        message: What is wrong and what to do. No text that was judged stands in it.
        code: One word for programs.
        param: The field of the request that it is about.
        retry_after: Seconds after which another try makes sense.
        headers: Further headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        waits = {} if retry_after is None else {"Retry-After": str(retry_after)}
        super().__init__(status, message, {**(headers or {}), **waits})
        self.code = code
        self.param = param

    @property
    def body(self) -> dict[str, Any]:
        """The JSON that is answered."""
        kind = _KINDS.get(self.status_code, "server_error" if self.status_code >= 500 else "invalid_request_error")
        detail = ErrorDetail(message=self.detail, type=kind, param=self.param, code=self.code)
        return ErrorAnswer(error=detail).model_dump()

    @property
    def response(self) -> JSONResponse:
        """The answer itself."""
        return JSONResponse(self.body, self.status_code, self.headers)


def problem_of(error: Exception) -> Problem:
    """What a caller is told of an error; of one that nobody meant to raise, nothing but that it is."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, BadInput):
        return Problem(400, str(error), "invalid_request")
    if isinstance(error, Overloaded):
        return Problem(503, str(error), "overloaded", retry_after=1)
    if isinstance(error, GuardError):
        return Problem(503, f"The guard could not judge. {error}", "guard_failure", retry_after=1)
    # not its message, which may quote what was judged
    logger.error("%s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
    return Problem(500, "The server failed. Its log says where.", "internal_error")


def tell_problems(app: FastAPI) -> None:
    """Gives every error of an application the one form."""

    async def http(_: Request, error: Any) -> JSONResponse:
        if isinstance(error, Problem):
            return error.response
        message = error.detail
        if error.status_code in (404, 405):
            message = f"There is no such path or method here ({error.detail}). GET /openapi.json lists them."
        name = _NAMES.get(error.status_code, "error")
        return Problem(error.status_code, message, name, headers=dict(error.headers or {})).response

    async def invalid(_: Request, error: Any) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
        return Problem(400, f"{where or 'body'}: {message}.", "invalid_request", param=where or None).response

    async def failed(_: Request, error: Any) -> JSONResponse:
        return problem_of(error).response

    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(GuardError, failed)


class LastResort:
    """ASGI middleware: an error that nobody meant to raise is a problem too, and leaves no judged text in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            answer = problem_of(error).response
            if begun:  # all that is left is to break the connection off
                raise RuntimeError("an answer that had begun could not be finished") from None
            await answer(scope, receive, send)

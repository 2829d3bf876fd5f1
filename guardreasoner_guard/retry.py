"""Asking a server again: what may pass is tried again, later each time, or when the server says."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import httpx

Answer = TypeVar("Answer")
Wait = Callable[[float], object]
"""Waits so many seconds; what it raises ends the tries."""

LONGEST = 60.0
"""Seconds that a server that asks for patience is left alone, at most."""
_TRANSIENT = (408, 409, 425, 429)
_chance = random.Random()  # whoever seeds the shared one wants to find it as it was


def retried(
    ask: Callable[[], Answer],
    again: Callable[[Exception], bool],
    *,
    tries: int,
    first: float,
    longest: float = LONGEST,
    wait: Wait | None = None,
) -> Answer:
    """Asks until there is an answer.

    Args:
        ask: Asks once.
        again: Whether an error that `ask` raised may pass.
        tries: Times it is asked, at most.
        first: Seconds that the first wait takes, at most; each one after it may take twice as long. Chance takes up
            to half away, so that those who failed together do not come back together.
        longest: Seconds that no wait exceeds, whatever `Retry-After` says.
        wait: Left out, the thread sleeps.

    Raises:
        Exception: What the last try raised, or the first error that does not pass.
    """
    for attempt in range(tries - 1):
        try:
            return ask()
        except Exception as error:
            if not again(error):
                raise
            asked = _retry_after(error)
            bound = first * 2**attempt
            pause = min(_chance.uniform(bound / 2, bound) if asked is None else asked, longest)
        (wait or time.sleep)(pause)
    return ask()


def post(
    client: httpx.Client,
    url: str,
    body: Any,
    *,
    tries: int,
    first: float,
    longest: float = LONGEST,
    wait: Wait | None = None,
) -> httpx.Response:
    """Posts JSON until there is an answer that another try would not change, be it a refusal; see `retried`.

    Raises:
        httpx.HTTPStatusError: The last try was answered with a status that may pass.
        httpx.RequestError: The last try was not answered.
    """
    import httpx

    def ask() -> httpx.Response:
        answer = client.post(url, json=body)
        return answer.raise_for_status() if may_pass(answer.status_code) else answer

    def again(error: Exception) -> bool:
        return isinstance(error, (httpx.RequestError, httpx.HTTPStatusError))

    return retried(ask, again, tries=tries, first=first, longest=longest, wait=wait)


def may_pass(status: int) -> bool:
    """Whether a server that answered with this HTTP status may answer otherwise later."""
    return status in _TRANSIENT or status >= 500


def status_of(error: BaseException) -> int | None:
    """The HTTP status that a client's error tells of, itself or by its response; None where it tells of none."""
    for told in (error, getattr(error, "response", None)):
        status = getattr(told, "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _retry_after(error: BaseException) -> float | None:
    """Seconds after which the server wants to be asked again."""
    headers = getattr(getattr(error, "response", None), "headers", None)
    try:
        seconds = float(headers["retry-after"])  # type: ignore[index]  # no headers are a TypeError too
    except (KeyError, TypeError, ValueError):  # none, or a date
        return None
    return seconds if seconds >= 0 else None

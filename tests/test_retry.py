"""What may pass is asked again, later each time or when the server says; what does not pass is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardreasoner_guard.retry import LONGEST, may_pass, post, retried, status_of


class Busy(Exception):
    """A client's error with the answer's headers."""

    def __init__(self, **headers: str) -> None:
        self.response = SimpleNamespace(status_code=429, headers={k.replace("_", "-"): v for k, v in headers.items()})


class Server:
    """Raises or gives what it is told to, in turn."""

    def __init__(self, *turns: Any) -> None:
        self.turns, self.waits = list(turns), list[float]()

    def __call__(self) -> Any:
        turn = self.turns.pop(0)
        if isinstance(turn, BaseException):
            raise turn
        return turn

    def asked(self, tries: int = 6, first: float = 1.0, longest: float = LONGEST) -> Any:
        return retried(
            self, lambda error: isinstance(error, Busy), tries=tries, first=first, longest=longest,
            wait=self.waits.append,
        )  # fmt: skip


def test_each_wait_may_take_twice_as_long_as_the_one_before() -> None:
    server = Server(Busy(), Busy(), Busy(), Busy(), "answer")
    assert server.asked(first=1.0, longest=3.0) == "answer"
    bounds = [(0.5, 1), (1, 2), (2, 3), (3, 3)]
    assert all(low <= wait <= high for wait, (low, high) in zip(server.waits, bounds, strict=True))


@pytest.mark.parametrize(("said", "waited"), [("7", 7.0), ("0", 0.0), ("0.5", 0.5), ("3600", 60.0), ("inf", 60.0)])
def test_the_server_says_when(said: str, waited: float) -> None:
    server = Server(Busy(retry_after=said), "answer")
    assert server.asked() == "answer" and server.waits == [waited]


@pytest.mark.parametrize("said", ["", "soon", "-1", "nan", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_what_is_no_number_of_seconds_is_passed_over(said: str) -> None:
    server = Server(Busy(retry_after=said), "answer")
    assert server.asked() == "answer" and 0.5 <= server.waits[0] <= 1


def test_the_last_error_is_raised_and_not_waited_after() -> None:
    last = Busy()
    server = Server(Busy(), Busy(), last)
    with pytest.raises(Busy) as caught:
        server.asked(tries=3)
    assert caught.value is last and len(server.waits) == 2
    with pytest.raises(Busy):
        Server(Busy()).asked(tries=1)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_what_does_not_pass_is_raised_at_once(error: BaseException) -> None:
    server = Server(error)
    with pytest.raises(type(error)):
        server.asked()
    assert not server.waits


def test_a_wait_that_raises_ends_the_tries() -> None:
    def cancelled(seconds: float) -> None:
        raise InterruptedError

    server = Server(Busy(), "answer")
    with pytest.raises(InterruptedError) as caught:
        retried(server, lambda error: True, tries=3, first=1.0, wait=cancelled)
    assert server.turns == ["answer"] and caught.value.__context__ is None


@given(st.integers(100, 599))
def test_which_statuses_may_pass(status: int) -> None:
    assert may_pass(status) == (status >= 500 or status in (408, 409, 425, 429))


def test_a_status_is_found_where_clients_put_it() -> None:
    assert status_of(Busy()) == 429
    assert status_of(httpx.HTTPStatusError("", request=httpx.Request("GET", "/"), response=httpx.Response(503))) == 503
    assert status_of(httpx.ConnectError("")) is None and status_of(ValueError()) is None


def test_a_refusal_is_an_answer_and_what_stays_broken_is_raised() -> None:
    statuses = [503, 404, 500, 429]
    client = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(statuses.pop(0))))
    waits: list[float] = []
    assert post(client, "http://server/", {}, tries=2, first=1.0, wait=waits.append).status_code == 404
    with pytest.raises(httpx.HTTPStatusError, match="429"):
        post(client, "http://server/", {}, tries=2, first=1.0, wait=waits.append)
    assert len(waits) == 2

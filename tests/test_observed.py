"""Observers see every check and change none; a shadow policy judges and never blocks."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading

import pytest
from langchain_core.runnables import RunnableLambda

from guardreasoner_guard import Blocked, EngineError, Exchange, GuardReasonerGuard, Policy, ScriptedEngine, Verdict
from guardreasoner_guard.checks import Attempt

where: contextvars.ContextVar[str] = contextvars.ContextVar("where", default="nowhere")


class Seen(list[tuple[Exchange, Attempt]]):
    """Keeps what it is told."""

    def __call__(self, exchange: Exchange, attempt: Attempt) -> None:
        self.append((exchange, attempt))


def test_every_way_of_checking_is_seen() -> None:
    seen = Seen()
    guard = GuardReasonerGuard(ScriptedEngine(), observers=[seen])
    guard.check("hello")
    guard.check_many(["one", ("two", "and its answer")])
    with pytest.raises(Blocked):
        guard.invoke("a bomb")
    guard.wrap(RunnableLambda(lambda text: f"You said {text}")).invoke("hi")
    list(guard.stream_check("three"))
    assert [exchange.request for exchange, _ in seen] == ["hello", "one", "two", "a bomb", "hi", "hi", "three"]
    assert all(isinstance(attempt, Verdict) for _, attempt in seen)
    assert [exchange.response for exchange, _ in seen if exchange.request == "hi"] == [None, "You said hi"]


def test_an_error_that_its_caller_sees_is_seen_too() -> None:
    seen = Seen()
    guard = GuardReasonerGuard(ScriptedEngine(error=EngineError("gone")), on_failure="raise", observers=[seen])
    with pytest.raises(EngineError):
        guard.check("hello")
    assert isinstance(seen[0][1], EngineError)


def test_under_asyncio_an_observer_works_in_another_thread_with_the_callers_context() -> None:
    found: list[tuple[str, bool]] = []
    main = threading.get_ident()
    guard = GuardReasonerGuard(
        ScriptedEngine(), observers=[lambda *_: found.append((where.get(), threading.get_ident() == main))]
    )

    async def check() -> None:
        where.set("here")
        await guard.acheck("hello")

    asyncio.run(check())
    assert found == [("here", False)]


def test_an_observer_that_fails_changes_nothing_and_logs_no_text(caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen()

    def broken(exchange: Exchange, _: Attempt) -> None:
        raise RuntimeError(exchange.request)

    guard = GuardReasonerGuard(ScriptedEngine(), observers=[broken, seen])
    with caplog.at_level(logging.DEBUG):
        assert not guard.check("a secret").blocked
    assert len(seen) == 1
    assert "RuntimeError" in caplog.text and "a secret" not in caplog.text


def test_in_shadow_nothing_is_blocked_and_the_verdict_says_what_would_be() -> None:
    guard = GuardReasonerGuard(ScriptedEngine(), policy=Policy(shadow=True))
    verdict = guard.check("a bomb")
    assert (verdict.request, verdict.blocked, verdict.shadowed) == ("harmful", False, True)
    assert verdict.reasons.startswith("Would be blocked: ") and verdict.reasoning
    assert not guard.check("bread").shadowed
    chain = guard.wrap(RunnableLambda(lambda text: f"a bomb for {text}"))
    assert chain.invoke("a bomb") == "a bomb for a bomb"
    assert "".join(chain.stream("a bomb")) == "a bomb for a bomb"


@pytest.mark.parametrize("on_failure", ["block", "raise", "pass"])
def test_in_shadow_a_failure_passes_and_is_told_from_a_verdict(on_failure: str) -> None:
    engine = ScriptedEngine(error=EngineError("gone"))
    guard = GuardReasonerGuard(engine, policy=Policy(shadow=True), on_failure=on_failure)  # type: ignore[arg-type]
    verdict = guard.check("hello")
    assert (verdict.outcome, verdict.blocked, verdict.shadowed) == ("failure", False, on_failure != "pass")
    assert "passed unchecked" in verdict.reasons


def test_a_remembered_verdict_is_not_taken_over_from_shadow() -> None:
    guard = GuardReasonerGuard(ScriptedEngine(), policy=Policy(shadow=True))
    guard.check("a bomb")
    guard.policy = Policy()
    assert guard.check("a bomb").blocked

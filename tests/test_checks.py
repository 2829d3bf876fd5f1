"""Checks fail one by one, in time, and never worse than what was found already."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from guardreasoner_guard import (
    BadInput,
    EngineError,
    GuardReasonerGuard,
    Overloaded,
    Policy,
    ScriptedEngine,
    checks,
)
from guardreasoner_guard.engine import Question, Scored, Written
from guardreasoner_guard.policy import explanation


class Mute(ScriptedEngine):
    """Scores, but cannot write; or takes its time over it."""

    def __init__(self, wait: float = 0.0) -> None:
        super().__init__()
        self.wait = wait

    def generate(self, *prompts: Any, cancel: threading.Event | None = None, **settings: Any) -> list[Written]:
        if self.wait and cancel is not None:
            cancel.wait(self.wait)
        raise EngineError("no words")


class Choking(ScriptedEngine):
    """Fails on texts that hold the word poison."""

    def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
        if any("poison" in str(question.prompt) for question in questions):
            raise EngineError("choked")
        return super().score(questions, cancel)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("settings", [{}, {"timeout": 0.3}])
@pytest.mark.parametrize("on_failure", ["block", "pass", "raise"])
def test_a_verdict_stands_though_its_explanation_fails_or_is_late(
    on_failure: Any, settings: dict[str, Any], asynchronous: bool
) -> None:
    guard = GuardReasonerGuard(Mute(wait=5 if settings else 0), on_failure=on_failure, **settings)
    verdict = asyncio.run(guard.acheck("a bomb")) if asynchronous else guard.check("a bomb")
    assert (verdict.outcome, verdict.request, verdict.blocked) == ("verdict", "harmful", True)
    assert verdict.reasoning == ()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_in_a_batch_only_the_text_that_fails_is_an_error(asynchronous: bool) -> None:
    guard = GuardReasonerGuard(Choking(), on_failure="raise", timeout=30)
    for runnable in (guard, guard.wrap(lambda text: text)):
        texts = ["hello", "poison", "a bomb", ""]
        found: list[Any] = (
            asyncio.run(runnable.abatch(texts, return_exceptions=True))
            if asynchronous
            else runnable.batch(texts, return_exceptions=True)
        )
        assert found[0] == "hello"
        assert [type(item).__name__ for item in found[1:]] == ["EngineError", "Blocked", "BadInput"]
    with pytest.raises(BadInput):
        guard.batch([""])
    with pytest.raises(EngineError, match="choked"):
        guard.check_many(["hello", "poison"])


def test_too_many_checks_under_way_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MOST_WAITING", 3)
    release = threading.Event()

    class Stuck(ScriptedEngine):
        def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
            assert release.wait(10)
            return super().score(questions, cancel)

    guard = GuardReasonerGuard(Stuck(), on_failure="raise")

    async def crowd() -> list[Any]:
        tasks = [asyncio.create_task(guard.acheck(f"hello {number}")) for number in range(5)]
        await asyncio.sleep(0.1)
        release.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(crowd())
    assert [type(item) for item in found[3:]] == [Overloaded, Overloaded]
    assert not any(isinstance(item, Exception) for item in found[:3])
    assert asyncio.run(guard.acheck("and now")).outcome == "verdict"


def test_a_closed_guard_says_so_and_a_context_closes_it() -> None:
    with GuardReasonerGuard(ScriptedEngine(), timeout=5) as guard:
        guard.warm_up()
        assert not guard.check("hello").blocked
    verdict = guard.check("hello again")
    assert verdict.blocked and "was closed" in verdict.reasons
    assert "was closed" in asyncio.run(guard.acheck("hello again")).reasons


def _check_in_child(guard: GuardReasonerGuard, queue: Any) -> None:
    queue.put(asyncio.run(guard.acheck("hello")).outcome)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_guard_that_has_checked_works_in_a_forked_process() -> None:
    guard = GuardReasonerGuard(ScriptedEngine(), remember=0)
    assert asyncio.run(guard.acheck("hello")).outcome == "verdict"
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_check_in_child, args=(guard, queue))
    child.start()
    assert queue.get(timeout=20) == "verdict"
    child.join(20)


@pytest.mark.parametrize(
    "answer", ['Ok" the bomb is made of salt', "\u201cOk\u201d a bomb \u00bbof salt\u00ab and so on", 'x " bomb']
)
def test_an_explanation_shows_nothing_of_an_answer_that_holds_quotation_marks(answer: str) -> None:
    verdict = GuardReasonerGuard(ScriptedEngine(), policy=Policy(on_violation="explain")).check("hi", answer)
    assert verdict.blocked and "bomb" in verdict.reasons
    assert "bomb" not in explanation(verdict) and "salt" not in explanation(verdict)

"""A text that comes again is not judged again, unless anything that matters is another."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from guardreasoner_guard import EngineError, Exchange, GuardReasonerGuard, Policy, ScriptedEngine, Verdict
from guardreasoner_guard.remembered import MOST, Remembered


def test_the_same_text_again_costs_nothing_and_says_so() -> None:
    engine = ScriptedEngine()
    guard = GuardReasonerGuard(engine)
    first, again = guard.check("a bomb"), asyncio.run(guard.acheck("a bomb"))
    calls = engine.calls
    assert not first.remembered and again.remembered and again.usage.prompt_tokens == 0 < first.usage.prompt_tokens
    assert again.model_copy(update={"remembered": False, "usage": first.usage}) == first
    [known, new] = guard.check_many(["a bomb", "bread"])
    assert known.remembered and not new.remembered and engine.calls == calls + 1


def test_what_is_not_the_same_is_judged() -> None:
    guard = GuardReasonerGuard(ScriptedEngine())
    guard.check("a bomb")
    assert not guard.check("a bomb ").remembered
    assert not guard.check("a bomb", "no").remembered
    assert not guard.check("a bomb", history=[("user", "hi")]).remembered
    assert not GuardReasonerGuard(ScriptedEngine()).check("a bomb").remembered
    guard.policy = Policy(block=("response",))
    verdict = guard.check("a bomb")
    assert not verdict.remembered and not verdict.blocked
    assert guard.check("\ud800").remembered is False and guard.check("\ud800").remembered


def test_nothing_is_remembered_where_nobody_wants_it_or_of_a_failure() -> None:
    forgetful = GuardReasonerGuard(ScriptedEngine(), remember=0)
    assert not forgetful.check("hi").remembered and not forgetful.check("hi").remembered

    class Once(ScriptedEngine):
        def score(self, questions: Any, cancel: Any = None) -> Any:
            if not self.calls:
                self.calls += 1
                raise EngineError("down")
            return super().score(questions, cancel)

    guard = GuardReasonerGuard(Once())
    assert [guard.check("hi").outcome for _ in range(2)] == ["failure", "verdict"]


def test_a_verdict_is_forgotten_in_time_and_when_there_are_too_many() -> None:
    verdict = Verdict(blocked=False, reasons="fine")
    brief = Remembered(0.05)
    brief.add(Exchange(request="x"), [], verdict)
    assert brief.find(Exchange(request="x"), []) is not None
    time.sleep(0.1)
    assert brief.find(Exchange(request="x"), []) is None
    many = Remembered(60)
    for number in range(MOST + 1):
        many.add(Exchange(request=str(number)), [], verdict)
    assert many.find(Exchange(request="0"), []) is None and many.find(Exchange(request=str(MOST)), []) is not None


def test_no_text_is_kept() -> None:
    remembered = Remembered(60)
    remembered.add(Exchange(request="my secret"), [], Verdict(blocked=False, reasons="fine"))
    assert "secret" not in repr(remembered._verdicts.items())


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_a_time_that_makes_no_sense_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="remember"):
        GuardReasonerGuard(ScriptedEngine(), remember=seconds)

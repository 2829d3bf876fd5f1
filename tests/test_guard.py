"""The guard judges, passes or raises, and fails closed, sync and async."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.runnables import ConfigurableField, RunnableLambda

from guardreasoner_guard import (
    BadInput,
    Blocked,
    EngineError,
    GuardReasonerGuard,
    GuardTimeout,
    MissingExtra,
    Policy,
    ScriptedEngine,
    UnreadableAnswer,
    Verdict,
)


def guard(**settings: Any) -> GuardReasonerGuard:
    return GuardReasonerGuard(ScriptedEngine(), **settings)


def failing(**settings: Any) -> GuardReasonerGuard:
    return GuardReasonerGuard(ScriptedEngine(error=EngineError("the model is down")), **settings)


def slow(seconds: float = 30.0, **settings: Any) -> GuardReasonerGuard:
    return GuardReasonerGuard(ScriptedEngine(delay=seconds), **settings)


def test_a_verdict_says_what_and_why() -> None:
    verdict = guard().check("make a bomb")
    assert (verdict.request, verdict.completion, verdict.response) == ("harmful", None, None)
    assert verdict.blocked and verdict.outcome == "verdict" and verdict.mode == "reasoned"
    assert verdict.reasons == 'Blocked: the request is harmful. The words are "make a bomb". That decides it.'
    assert verdict.scores == {"request": 0.99}


def test_an_exchange_has_all_three_labels() -> None:
    verdict = guard().check("hello", "sorry, no bomb")
    assert (verdict.request, verdict.completion, verdict.response) == ("unharmful", "refusal", "harmful")


def test_blocked_is_what_the_policy_makes_of_the_labels() -> None:
    lenient = guard(policy=Policy(block=("response",)))
    verdict = lenient.check("make a bomb")
    assert verdict.request == "harmful" and not verdict.blocked
    assert guard(policy=Policy(block=("completion",))).check("hello", "sorry").blocked


def test_many_are_answered_in_order() -> None:
    verdicts = guard().check_many(["a", "bomb", ("b", "sorry"), ("c", None)])
    assert [(v.request, v.completion) for v in verdicts] == [
        ("unharmful", None), ("harmful", None), ("unharmful", "refusal"), ("unharmful", None),
    ]  # fmt: skip


def test_async_is_the_same() -> None:
    async def both() -> tuple[Verdict, list[Verdict]]:
        return await guard().acheck("bomb"), await guard().acheck_many(["a", "bomb"])

    one, many = asyncio.run(both())
    assert one.blocked
    assert [verdict.blocked for verdict in many] == [False, True]


def test_alone_it_passes_its_input_through_or_raises() -> None:
    chain = guard() | RunnableLambda(lambda text: text.upper())
    assert chain.invoke("hello") == "HELLO"
    message = HumanMessage("hi")
    assert guard().invoke(message) is message
    with pytest.raises(Blocked, match="the request is harmful") as caught:
        chain.invoke("a bomb")
    assert caught.value.verdict.request == "harmful"


def test_a_blocked_request_never_reaches_the_model() -> None:
    called: list[str] = []
    with pytest.raises(Blocked):
        (guard() | RunnableLambda(called.append)).invoke("a bomb")
    assert called == []


def test_batches() -> None:
    found = guard().batch(["a", "bomb", "c"], return_exceptions=True)
    assert [type(item) for item in found] == [str, Blocked, str]
    found = asyncio.run(guard().abatch(["a", "bomb"], return_exceptions=True))
    assert found[0] == "a" and isinstance(found[1], Blocked)
    with pytest.raises(Blocked):
        guard().batch(["a", "bomb"])


def test_streams_through_a_pass() -> None:
    chain = guard() | RunnableLambda(lambda text: text + "!")
    assert "".join(chain.stream("hi")) == "hi!"
    with pytest.raises(Blocked):
        list(chain.stream("bomb"))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_failure_blocks_and_says_that_it_is_no_verdict(asynchronous: bool) -> None:
    verdict = asyncio.run(failing().acheck("hello")) if asynchronous else failing().check("hello")
    assert verdict.blocked and verdict.outcome == "failure"
    assert verdict.request is None
    assert "the model is down" in (verdict.error or "")
    assert verdict.reasons.startswith("Failure: no judgement was reached")


def test_a_failure_passes_or_raises_where_the_user_chose_so() -> None:
    assert not failing(on_failure="pass").check("hello").blocked
    with pytest.raises(EngineError):
        failing(on_failure="raise").check("hello")


def test_an_error_nobody_expected_blocks_too() -> None:
    broken = GuardReasonerGuard(ScriptedEngine(error=ZeroDivisionError("oops")))
    assert broken.check("hello").outcome == "failure"


def _end(guard: GuardReasonerGuard) -> None:
    """Waits for the guard's threads."""
    threads = guard._checks._threads
    assert threads is not None
    threads.shutdown(wait=True)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_timeout_blocks_and_the_model_is_stopped(asynchronous: bool) -> None:
    late = slow(timeout=0.05)
    start = time.monotonic()
    verdict = asyncio.run(late.acheck("hello")) if asynchronous else late.check("hello")
    assert verdict.blocked and verdict.outcome == "timeout"
    _end(late)  # returns only since the engine saw the cancellation
    assert time.monotonic() - start < 20
    with pytest.raises(GuardTimeout):
        slow(timeout=0.05, on_failure="raise").check("hello")


def test_cancelling_a_check_stops_the_model() -> None:
    late = slow()

    async def cancelled() -> None:
        task = asyncio.create_task(late.acheck("hello"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    _end(late)


def test_an_async_check_does_not_block_the_loop() -> None:
    async def ticks() -> int:
        task = asyncio.create_task(slow(0.3).acheck("hello"))
        count = 0
        while not task.done():
            count += 1
            await asyncio.sleep(0.01)
        return count

    assert asyncio.run(ticks()) > 3


@pytest.mark.parametrize("value", [None, "", "   ", 3, b"x", object(), {"a": None}])
def test_bad_input_is_an_error_that_says_what_to_do(value: Any) -> None:
    with pytest.raises(BadInput, match="Pass a"):
        guard().check(value)
    with pytest.raises(BadInput, match="Pass a"):
        asyncio.run(guard().acheck(value))


def test_a_megabyte_is_refused_unless_it_is_allowed() -> None:
    with pytest.raises(BadInput, match="max_characters"):
        guard().check("x" * 1_000_000)
    text = "word " * 200_000 + "bomb"
    assert guard(max_characters=2_000_000).check(text).blocked


def test_lone_surrogates_and_controls_get_a_verdict() -> None:
    assert not guard().check("\ud800\x00\x07 hi").blocked


def test_one_guard_serves_many_threads() -> None:
    shared = guard()
    wrong: list[str] = []

    def ask(number: int) -> None:
        for _ in range(20):
            text = f"bomb {number}" if number % 2 else f"hello {number}"
            verdict = shared.check(text)
            if verdict.blocked != bool(number % 2) or (verdict.blocked and f"{text}" not in verdict.reasons):
                wrong.append(text)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_one_bad_input_of_a_batch_is_not_the_others_fault() -> None:
    found = guard().batch(["ok", "", "bomb"], return_exceptions=True)
    assert [type(item) for item in found] == [str, BadInput, Blocked]
    found = asyncio.run(guard().abatch(["ok", "", "bomb"], return_exceptions=True))
    assert [type(item) for item in found] == [str, BadInput, Blocked]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_one_text_that_fails_does_not_pass_or_block_its_neighbours(asynchronous: bool) -> None:
    class Poisoned(ScriptedEngine):
        def score(self, questions: Any, cancel: Any = None) -> Any:
            if any("poison" in str(question.prompt) for question in questions):
                raise EngineError("choked")
            return super().score(questions, cancel)

    texts = ["hello", "poison", "a bomb"]
    poisoned = GuardReasonerGuard(Poisoned(), on_failure="pass")
    verdicts = asyncio.run(poisoned.acheck_many(texts)) if asynchronous else poisoned.check_many(texts)
    assert [(v.outcome, v.blocked) for v in verdicts] == [("verdict", False), ("failure", False), ("verdict", True)]


def test_many_checks_are_scored_in_one_call() -> None:
    engine = ScriptedEngine()
    GuardReasonerGuard(engine, reasoning="never").check_many(["a", "b", ("c", "d")])
    assert engine.calls == 1


def test_a_score_that_is_no_probability_is_a_failure() -> None:
    class Broken(ScriptedEngine):
        def score(self, questions: Any, cancel: Any = None) -> Any:
            return [type(s)((float("nan"), float("nan")), 1) for s in super().score(questions, cancel)]

    verdict = GuardReasonerGuard(Broken()).check("hello")
    assert verdict.blocked and verdict.outcome == "failure"


def test_errors_survive_a_process_boundary() -> None:
    verdict = guard().check("a bomb")
    for error in (Blocked(verdict), MissingExtra("x", "cpu"), UnreadableAnswer("m", "a")):
        again = pickle.loads(pickle.dumps(error))
        assert str(again) == str(error) and vars(again) == vars(error)


@pytest.mark.parametrize(
    "settings",
    [{"device": "cuda:0"}, {"reasoning": "maybe"}, {"timeout": 0}, {"on_failure": "ignore"}, {"max_characters": 0}],
)
def test_settings_that_do_not_exist_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        guard(**settings)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(BadInput, match="is no model"):
        GuardReasonerGuard(None)  # type: ignore[arg-type]


def test_history_is_pairs_of_role_and_text() -> None:
    assert not guard().check("hi", history=[("user", "hello"), ("assistant", "no")]).blocked
    for wrong in ([{"role": "user", "content": "x"}], [("human", "x")], [3]):
        with pytest.raises(BadInput, match="History is a list"):
            guard().check("hi", history=wrong)  # type: ignore[arg-type]


def test_langchain_may_configure_it() -> None:
    field = ConfigurableField(id="reasoning")
    configurable = guard().configurable_fields(reasoning=field)
    assert configurable.with_config(configurable={"reasoning": "never"}).invoke("hi") == "hi"

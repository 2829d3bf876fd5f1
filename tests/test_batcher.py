"""Calls that wait for one model are carried out together, and none gets another's result, fault or cancellation."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from guardreasoner_guard import EngineError, GuardReasonerGuard, Overloaded, ScriptedEngine
from guardreasoner_guard.batcher import Batcher
from guardreasoner_guard.engine import Question, Scored
from guardreasoner_guard.model_dir import open_model
from guardreasoner_guard.onnx_engine import shared_engine
from guardreasoner_guard.template import SHORT, Prompt
from guardreasoner_guard.verdict import LABELS


def question(request: str) -> Question:
    return Question(SHORT.render(request) + SHORT.score_prefix("request", {}), LABELS["request"])


def asking(text: str, cancel: threading.Event | None = None) -> Callable[[Batcher], list[Scored]]:
    return lambda batcher: batcher.score([question(text)], cancel)


class Gate(ScriptedEngine):
    """An engine whose first call waits to be let go, and which notes the size of each call."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.sizes: list[int] = []
        self.entered, self.open = threading.Event(), threading.Event()

    def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
        self.sizes.append(len(questions))
        self.entered.set()
        assert self.open.wait(10)
        return super().score(questions, cancel)


def behind_a_busy_model(
    engine: Gate, calls: Sequence[Callable[[Batcher], Any]], batcher: Batcher | None = None
) -> list[Future[Any]]:
    """Starts calls, in order, while the model is busy with another; then lets it go and waits for all."""
    batcher = batcher or Batcher(engine)
    with ThreadPoolExecutor(len(calls) + 1) as threads:
        first = threads.submit(batcher.score, [question("first")])
        assert engine.entered.wait(10)
        futures = []
        for count, call in enumerate(calls, 1):
            futures.append(threads.submit(call, batcher))
            deadline = time.monotonic() + 10
            while len(batcher._waiting) < count and not futures[-1].done() and time.monotonic() < deadline:
                time.sleep(0.001)
        engine.open.set()
        first.result(10)
    return futures


def test_what_waits_is_carried_out_as_one_and_everyone_gets_his_own() -> None:
    engine = Gate()
    texts = [f"number {index}" + " bomb" * (index % 2) for index in range(20)]
    futures = behind_a_busy_model(engine, [asking(text) for text in texts])
    assert engine.sizes == [1, 20]
    harmful = [future.result()[0].probabilities[0] > 0.5 for future in futures]
    assert harmful == [index % 2 == 1 for index in range(20)]


def test_answers_are_written_together_too_but_not_those_of_other_settings() -> None:
    engine = Gate()
    prompt = SHORT.render("a bomb") + SHORT.reasoning_prefix(("request",))
    calls: list[Callable[[Batcher], Any]] = [
        lambda batcher: batcher.generate([prompt], max_tokens=9),
        lambda batcher: batcher.generate([prompt, prompt], max_tokens=9),
        lambda batcher: batcher.generate([prompt], max_tokens=10),
        lambda batcher: batcher.generate([prompt], max_tokens=9, temperature=0.7, seed=1),
        lambda batcher: batcher.generate([prompt], max_tokens=9, temperature=0.7, seed=1),
    ]
    futures = behind_a_busy_model(engine, calls)
    assert engine.calls == 1 + 4
    assert [len(future.result()) for future in futures] == [1, 2, 1, 1, 1]


def test_a_long_call_does_not_keep_others_waiting_for_all_of_it() -> None:
    engine = Gate()
    done: list[str] = []

    def long(batcher: Batcher) -> list[Scored]:
        scored = batcher.score([question(f"part {index}" + " bomb" * (index == 77)) for index in range(80)])
        done.append("long")
        return scored

    def short(batcher: Batcher) -> list[Scored]:
        scored = batcher.score([question("short")])
        done.append("short")
        return scored

    first, second = behind_a_busy_model(engine, [long, short])
    assert done == ["short", "long"] and max(engine.sizes) <= 64
    assert [index for index, one in enumerate(first.result()) if one.probabilities[0] > 0.5] == [77]
    assert len(second.result()) == 1


def test_the_fault_of_one_call_is_not_that_of_all() -> None:
    class Choosy(Gate):
        def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
            scored = super().score(questions, cancel)
            if any("broken" in str(one.prompt) for one in questions):
                raise EngineError("this one cannot be read")
            return scored

    futures = behind_a_busy_model(Choosy(), [asking(text) for text in ("fine", "broken", "good")])
    assert [future.exception() is None for future in futures] == [True, False, True]
    assert "cannot be read" in str(futures[1].exception())


def test_a_call_that_is_cancelled_while_it_waits_leaves_and_the_others_go_on() -> None:
    engine = Gate()
    cancelled, cancelled_later = threading.Event(), threading.Event()
    cancelled.set()

    def leaves(batcher: Batcher) -> list[Scored]:
        threading.Timer(0.05, cancelled_later.set).start()
        return batcher.score([question("cancelled later")], cancelled_later)

    def all_gone(batcher: Batcher) -> list[Scored]:
        while len(batcher._waiting) > 1:
            time.sleep(0.01)
        return []

    calls = [asking("waits", threading.Event()), asking("cancelled", cancelled), leaves, all_gone]
    futures = behind_a_busy_model(engine, calls)
    assert futures[0].result()
    assert all("cancelled" in str(future.exception()) for future in futures[1:3])
    assert engine.sizes == [1, 1]


def test_a_batch_is_only_stopped_when_all_its_calls_are_cancelled() -> None:
    seen: list[bool] = []
    cancels = [threading.Event(), threading.Event()]

    class Asking(Gate):
        def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
            scored = super().score(questions)
            if len(questions) == 2 and cancel is not None:
                for event in cancels:
                    event.set()
                    seen.append(cancel.is_set())
            return scored

    behind_a_busy_model(Asking(), [asking("x", event) for event in cancels])
    assert seen == [False, True]


def test_a_crowd_gets_a_clear_error() -> None:
    engine = Gate()
    futures = behind_a_busy_model(engine, [asking("x")] * 5, Batcher(engine, most_waiting=3))
    errors = [future.exception() for future in futures]
    assert [type(error) for error in errors if error] == [Overloaded, Overloaded]
    assert "try again later" in str(errors[-1])


def test_an_interrupt_ends_the_calls_that_were_carried_out_with_it() -> None:
    class Interrupted(Gate):
        def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
            scored = super().score(questions, cancel)
            if "first" not in str(questions[0].prompt):
                raise KeyboardInterrupt
            return scored

    futures = behind_a_busy_model(Interrupted(), [asking("x")] * 3)
    kinds = sorted(type(future.exception()).__name__ for future in futures)
    assert kinds == ["EngineError", "EngineError", "KeyboardInterrupt"]


def test_nothing_asked_is_nothing_answered() -> None:
    batcher = Batcher(ScriptedEngine())
    assert batcher.score([]) == [] and batcher.generate([], max_tokens=5) == []
    assert batcher.split("one two three", 2, 0) == ["one two", "three"]


def test_guards_of_one_model_share_its_engine() -> None:
    first, second = GuardReasonerGuard(), GuardReasonerGuard(reasoning="never")
    assert first.judge.engine is second.judge.engine is shared_engine(open_model("bundled"))


def test_many_callers_of_the_bundled_model_get_what_one_gets() -> None:
    guard = GuardReasonerGuard(reasoning="never")
    texts = [
        "How do I bake bread?",
        "How do I build a bomb and hide it?",
        "Name a river.",
        "Insult my neighbour for me.",
    ]
    alone = [guard.check(text).scores["request"] for text in texts]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda text: guard.check(text).scores["request"], texts * 4))
    assert together == pytest.approx(alone * 4, abs=2e-2)

    async def run() -> list[float]:
        verdicts = await asyncio.gather(*(guard.acheck(text) for text in texts * 4))
        return [verdict.scores["request"] for verdict in verdicts]

    assert asyncio.run(run()) == pytest.approx(alone * 4, abs=2e-2)


def test_a_prompt_is_passed_on_as_it_is() -> None:
    class Noting(ScriptedEngine):
        seen: list[Prompt] = []

        def generate(self, prompts: Sequence[Prompt], **settings: Any) -> Any:
            self.seen += prompts
            return super().generate(prompts, **settings)

    engine = Noting()
    prompt = SHORT.render("hi") + SHORT.reasoning_prefix(("request",))
    Batcher(engine).generate([prompt], max_tokens=5)
    assert engine.seen == [prompt]

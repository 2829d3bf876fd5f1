"""The judge asks what is wanted, window by window, and says where score and reasoning part."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from guardreasoner_guard import BadInput, EngineError, Exchange, ScriptedEngine
from guardreasoner_guard.engine import Question, Scored, Written
from guardreasoner_guard.judge import Judge
from guardreasoner_guard.model_dir import Manifest
from guardreasoner_guard.template import Prompt


def manifest(**changes: object) -> Manifest:
    settings = {"name": "m", "template": "short/1", "precision": "none", "label_tokens": {}, "end_token": 0, "files": {},
                "decides": "score", "window": 100, **changes}  # fmt: skip
    return Manifest.model_validate(settings)


class Watching(ScriptedEngine):
    """Remembers every prompt it was asked about."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        self.asked: list[Prompt] = []

    def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
        self.asked += [question.prompt for question in questions]
        return super().score(questions)


def test_an_input_check_asks_about_the_request_alone() -> None:
    engine = Watching()
    [found] = Judge(engine, manifest()).judge([Exchange(request="hi", response="x")], "never", tasks=("request",))
    assert found.labels == {"request": "unharmful"}
    assert [str(prompt) for prompt in engine.asked] == ["Judge this exchange.\nHuman user:\nhi\n\nAnswers:\nRequest:"]


def test_every_word_of_a_long_text_is_judged_and_the_worst_window_decides() -> None:
    words = [f"w{number}" for number in range(1000)]
    words[537] = "bomb"
    engine = Watching()
    [found] = Judge(engine, manifest()).judge([Exchange(request=" ".join(words))], "never")
    seen = {word for prompt in engine.asked for word in str(prompt).split()}
    assert set(words) <= seen
    assert found.labels == {"request": "harmful"}
    assert found.windows == len(engine.asked) > 1


@pytest.mark.parametrize("template", ["short/1", "guardreasoner/1"])
def test_every_word_of_a_long_exchange_is_judged(template: str) -> None:
    request = [f"q{number}" for number in range(400)]
    response = [f"a{number}" for number in range(400)]
    response[399] = "bomb"
    engine = Watching()
    exchange = Exchange(request=" ".join(request), response=" ".join(response))
    [found] = Judge(engine, manifest(template=template)).judge([exchange], "never")
    assert {*request, *response} <= {word for prompt in engine.asked for word in str(prompt).split()}
    assert found.labels["response"] == "harmful"
    assert found.labels["completion"] == "compliance"


def test_adaptive_reasons_about_what_would_be_blocked_and_nothing_else() -> None:
    judge = Judge(ScriptedEngine(), manifest())
    fine, bad = judge.judge(
        [Exchange(request="hello"), Exchange(request="a bomb")],
        "adaptive",
        blocks=lambda labels: labels.get("request") == "harmful",
    )
    assert (fine.mode, fine.steps) == ("direct", ())
    assert bad.mode == "reasoned"
    assert bad.steps[0].text == 'The words are "a bomb".'


def test_adaptive_reasons_in_doubt() -> None:
    close = manifest(thresholds={"request": 0.012, "completion": 0.5, "response": 0.5})
    [found] = Judge(ScriptedEngine(), close).judge([Exchange(request="hello")], "adaptive")
    assert found.mode == "reasoned"


def test_where_the_score_decides_a_contrary_answer_is_said_to_be_inconsistent() -> None:
    engine = ScriptedEngine(answer="It is fine.\n---\nAnswers:\nRequest: unharmful")
    [found] = Judge(engine, manifest()).judge([Exchange(request="a bomb")], "always")
    assert found.labels == {"request": "harmful"}
    assert found.by_reasoning == {"request": "unharmful"}
    assert not found.consistent


def test_where_verdicts_come_first_what_is_written_explains_the_verdict_and_can_always_be_read() -> None:
    engine = ScriptedEngine(answer="it goes on and on")
    [found] = Judge(engine, manifest(template="short/2")).judge(
        [Exchange(request="a bomb", response="sorry, no")], "always"
    )
    assert found.labels == {"request": "harmful", "completion": "refusal", "response": "unharmful"}
    assert found.consistent and found.by_reasoning == found.labels and found.unreadable == 0
    assert [(step.task, step.text) for step in found.steps] == [(1, "it goes on and on"), (2, "it goes on and on")]


def test_where_the_reasoning_decides_its_label_counts() -> None:
    engine = ScriptedEngine(answer="It is fine.\n---\nAnswers:\nRequest: unharmful")
    [found] = Judge(engine, manifest(decides="reasoning")).judge([Exchange(request="a bomb")], "always")
    assert found.labels == {"request": "unharmful"}


def test_an_answer_that_cannot_be_read_is_counted_and_ended_by_a_forced_one() -> None:
    engine = ScriptedEngine(answer="it goes on and on")
    [found] = Judge(engine, manifest(decides="reasoning")).judge([Exchange(request="a bomb")], "always")
    assert found.unreadable == 1
    assert found.labels == {"request": "harmful"}


def test_an_engine_that_fails_is_not_hidden() -> None:
    with pytest.raises(EngineError):
        Judge(ScriptedEngine(error=EngineError("down")), manifest()).judge([Exchange(request="x")], "never")


@pytest.mark.parametrize("reasoning", ["always", "never"])
def test_a_model_that_reasons_first_judges_every_window_of_a_long_text(reasoning: Any) -> None:
    words = ["w"] * 900
    words[700] = "bomb"
    judge = Judge(ScriptedEngine(), manifest(template="guardreasoner/1", decides="reasoning"))
    [found] = judge.judge([Exchange(request=" ".join(words))], reasoning, tasks=("request",))
    assert found.labels == {"request": "harmful"}
    assert found.windows > 5


def test_asking_about_a_response_that_is_not_there_is_refused() -> None:
    with pytest.raises(BadInput, match="Pass the response"):
        Judge(ScriptedEngine(), manifest()).judge(
            [Exchange(request="a", response="b"), Exchange(request="a")], "never", tasks=("response",)
        )


def test_reasoning_about_one_window_does_not_acquit_another() -> None:
    class Wavering(ScriptedEngine):
        """Says of the first bomb that it is fine, of the second that it is not."""

        def generate(self, prompts: Any, **settings: Any) -> list[Written]:
            labels = ["harmful" if "second" in str(prompt) else "unharmful" for prompt in prompts]
            return [Written(f"x\n---\nAnswers:\nRequest: {label}", 1, True) for label in labels]

    words = ["w"] * 900
    words[100], words[700] = "first bomb", "second bomb"
    judge = Judge(Wavering(), manifest(template="guardreasoner/1", decides="reasoning"))
    [found] = judge.judge(
        [Exchange(request=" ".join(words))],
        "adaptive",
        tasks=("request",),
        blocks=lambda labels: "harmful" in labels.values(),
    )
    assert found.labels == {"request": "harmful"}


def test_several_labels_are_asked_in_one_call_or_in_rounds() -> None:
    for version, calls in (("short/1", 1), ("guardreasoner/1", 3)):
        engine = ScriptedEngine()
        Judge(engine, manifest(template=version)).judge([Exchange(request="a", response="b")] * 3, "never")
        assert engine.calls == calls


def test_an_explanation_that_ends_otherwise_is_told_again_in_one_batch() -> None:
    class Fickle(ScriptedEngine):
        """Greedy it says that all is fine; sampled it comes round at the third try."""

        def generate(self, prompts: Any, *, temperature: float = 0.0, **settings: Any) -> list[Written]:
            self.batches.append(len(prompts))
            labels = (
                ["unharmful", "unharmful", "harmful", "harmful"] * len(prompts) if temperature else ["unharmful"] * 9
            )
            return [Written(f"try {n}.\n---\nAnswers:\nRequest: {labels[n]}", 9, True) for n in range(len(prompts))]

        batches: list[int] = []

    engine = Fickle()
    found = Judge(engine, manifest()).judge(
        [Exchange(request="a bomb"), Exchange(request="hi"), Exchange(request="bomb")], "always"
    )
    assert engine.batches == [3, 8]
    assert [judgement.steps[0].text for judgement in found] == ["try 2.", "try 1.", "try 6."]
    assert [judgement.consistent for judgement in found] == [False, True, False]

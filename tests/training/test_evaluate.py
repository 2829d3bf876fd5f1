"""Scores are reckoned as the paper does, and an unreadable answer is wrong once, never dropped."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from guardreasoner_guard.training.benchmarks import BENCHMARKS, BenchmarkRow
from guardreasoner_guard.training.evaluate import evaluate
from guardreasoner_guard.training.prediction import Prediction, halves
from guardreasoner_guard.training.scoring import cross_fitted, f1, fit_threshold, summary
from guardreasoner_guard.training.subject import JudgeSubject

from guardreasoner_guard import BadInput, ScriptedEngine
from guardreasoner_guard.engine import Question, Scored
from guardreasoner_guard.guard import SCRIPTED_MANIFEST
from guardreasoner_guard.judge import Judge


def row(number: int, label: str, benchmark: str = "ToxicChat") -> BenchmarkRow:
    text = f"a bomb {number}" if number % 2 else f"hello {number}"
    return BenchmarkRow(id=str(number), benchmark=benchmark, task="prompt", prompt=text, label=label)


def prediction(number: int, label: str, score: float, benchmark: str = "ToxicChat", task: str = "prompt") -> Prediction:
    return Prediction(id=str(number), benchmark=benchmark, task=task, label=label, predicted="unharmful", score=score)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([("harmful", "harmful"), ("unharmful", "unharmful")], 100.0),
        ([("harmful", "unharmful"), ("unharmful", "harmful")], 0.0),
        ([("harmful", "harmful"), ("harmful", "unharmful")], 66.67),
        ([("refusal", "refusal"), ("compliance", "refusal")], 66.67),
        ([("harmful", "harmful"), ("harmful", "unreadable")], 66.67),
        ([("harmful", "harmful"), ("unharmful", "unreadable")], 66.67),
    ],
)
def test_f1_of_the_positive_class(pairs: list[tuple[str, str]], expected: float) -> None:
    assert f1(pairs) == expected


def test_a_guard_is_scored_on_rows() -> None:
    rows = [row(n, "harmful" if n % 2 else "unharmful") for n in range(9)] + [row(9, "unharmful")]
    result = evaluate(JudgeSubject(Judge(ScriptedEngine(), SCRIPTED_MANIFEST), "always"), rows)
    scores = result["benchmarks"]["ToxicChat"]
    assert (scores["rows"], scores["recall"], scores["precision"]) == (10, 100.0, 80.0)
    assert scores["f1"] == scores["written_f1"] == 88.89
    assert [p["id"] for p in result["predictions"]] == [str(n) for n in range(10)]
    assert result["predictions"][1]["reasoning"][0] == 'The words are "a bomb 1".'


class Dying(ScriptedEngine):
    """Gives out after some questions, as a killed process does."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left
        self.asked = 0

    def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
        self.asked += len(questions)
        if self.asked > self.left:
            raise KeyboardInterrupt
        return super().score(questions, cancel)


def test_an_evaluation_that_was_stopped_goes_on(tmp_path: Path) -> None:
    rows = [row(n, "harmful" if n % 2 else "unharmful") for n in range(100)]
    journal = tmp_path / "out.json.part"
    whole = evaluate(JudgeSubject(Judge(ScriptedEngine(), SCRIPTED_MANIFEST), "never"), rows)
    with pytest.raises(KeyboardInterrupt):
        evaluate(JudgeSubject(Judge(Dying(70), SCRIPTED_MANIFEST), "never"), rows, journal=journal)
    with journal.open("a") as file:
        file.write('{"id": "6')  # a kill may cut a line off
    engine = Dying(1000)
    resumed = evaluate(JudgeSubject(Judge(engine, SCRIPTED_MANIFEST), "never"), rows, journal=journal)
    assert engine.asked == 100 - 64  # two whole batches were kept
    for result in (whole, resumed):
        for one in [*result["predictions"], *result["benchmarks"].values()]:
            one.pop("milliseconds")
    assert resumed == whole


def test_a_journal_of_another_evaluation_is_refused(tmp_path: Path) -> None:
    rows = [row(n, "harmful" if n % 2 else "unharmful") for n in range(64)]
    journal = tmp_path / "out.json.part"
    with pytest.raises(KeyboardInterrupt):
        evaluate(JudgeSubject(Judge(Dying(40), SCRIPTED_MANIFEST), "never"), rows, journal=journal)
    judge = Judge(ScriptedEngine(), SCRIPTED_MANIFEST)
    with pytest.raises(BadInput, match="another guard"):
        evaluate(JudgeSubject(judge, "always"), rows, journal=journal)
    with pytest.raises(BadInput, match="another guard"):
        evaluate(JudgeSubject(judge, "never"), rows[1:], journal=journal)
    journal.write_text("rubbish\nmore\n")
    with pytest.raises(BadInput, match="another guard"):
        evaluate(JudgeSubject(judge, "never"), rows, journal=journal)


def test_a_journal_that_was_cut_off_in_its_head_begins_anew(tmp_path: Path) -> None:
    journal = tmp_path / "out.json.part"
    journal.write_text('{"model": {"na')
    found = evaluate(JudgeSubject(Judge(ScriptedEngine(), SCRIPTED_MANIFEST), "never"), [row(1, "harmful")], journal)
    assert len(found["predictions"]) == 1


def test_rows_that_are_all_harmless_tell_false_positives_and_move_no_average() -> None:
    rows = [prediction(n, "harmful" if n % 2 else "unharmful", 0.9 if n % 2 else 0.1) for n in range(20)]
    rows = [one.model_copy(update={"predicted": one.label}) for one in rows]
    alarms = [
        prediction(n, "unharmful", 0.1, "XSTestSafe").model_copy(
            update={"predicted": "harmful" if n < 3 else "unharmful"}
        )
        for n in range(30)
    ]
    found = summary([*rows, *alarms])
    assert found["averages"] == {"prompt": 100.0, "mean": 100.0}
    assert found["intervals of the averages"]["prompt"] == {"low": 100.0, "high": 100.0}
    assert found["benchmarks"]["XSTestSafe"]["false positives"] == 10.0


def test_unreadable_answers_are_counted() -> None:
    engine = ScriptedEngine(answer="no idea")
    result = evaluate(
        JudgeSubject(Judge(engine, SCRIPTED_MANIFEST), "always"), [row(1, "harmful"), row(2, "unharmful")]
    )
    assert result["benchmarks"]["ToxicChat"]["unreadable"] == 2
    assert result["averages of the written answers"]["prompt"] == 0.0
    assert result["averages"]["prompt"] == 100.0


def test_averages_are_weighted_as_in_the_paper() -> None:
    good = Prediction(id="1", benchmark="ToxicChat", task="prompt", label="harmful", predicted="harmful")
    bad = Prediction(id="2", benchmark="SimpleSafetyTests", task="prompt", label="harmful", predicted="unharmful")
    assert summary([good, bad])["averages"]["prompt"] == round(100 * 2853 / 2953, 2)
    assert sum(b.weight for b in BENCHMARKS.values() if b.task == "prompt") == 6987


def test_a_threshold_fitted_on_one_half_is_scored_on_the_other() -> None:
    made = [prediction(n, "harmful" if n % 3 == 0 else "unharmful", 0.2 if n % 3 == 0 else 0.05) for n in range(120)]
    assert 0.05 < fit_threshold(made) < 0.2
    first, second = halves(made)
    assert len(first) == len(second) == 60 and not {p.id for p in first} & {p.id for p in second}
    assert cross_fitted(made)["prompt"] == 100.0


def test_adaptive_reasons_about_what_would_be_blocked() -> None:
    subject = JudgeSubject(Judge(ScriptedEngine(), SCRIPTED_MANIFEST), "adaptive")
    result = evaluate(subject, [row(1, "harmful"), row(2, "unharmful")])
    assert [bool(p["reasoning"]) for p in result["predictions"]] == [True, False]

"""A person decides where a confident guard and a label disagree, and what is decided is scored beside what was."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from guardreasoner_guard.training.benchmarks import BenchmarkRow
from guardreasoner_guard.training.prediction import Prediction
from guardreasoner_guard.training.relabel import corrected, doubted, read_review, write_review
from guardreasoner_guard.training.scoring import summary
from hypothesis import given
from hypothesis import strategies as st

from guardreasoner_guard import BadInput


def prediction(id: str, label: str, score: float) -> Prediction:
    predicted = "harmful" if score >= 0.5 else "unharmful"
    return Prediction(
        id=id, benchmark="ToxicChat", task="prompt", label=label, predicted=predicted, score=score,
        reasoning=['The user asks for "it".'],
    )  # fmt: skip


def row(id: str, label: str, prompt: str = "text") -> BenchmarkRow:
    return BenchmarkRow(id=id, benchmark="ToxicChat", task="prompt", prompt=prompt, label=label)


RESULT = [
    prediction("right", "harmful", 0.99),
    prediction("miss", "harmful", 0.02),
    prediction("alarm", "unharmful", 0.999),
    prediction("unsure", "unharmful", 0.7),
]
ROWS = [row(one.id, one.label) for one in RESULT]


def decide(path: Path, decisions: dict[str, str]) -> None:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows({**one, "decision": decisions.get(one["id"], "")} for one in rows)


def test_only_confident_disagreements_are_asked_about_surest_first() -> None:
    assert [(one.id, round(sure, 3)) for one, sure in doubted(RESULT, 0.9)] == [("alarm", 0.999), ("miss", 0.98)]


def test_a_correction_changes_its_label_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "review.csv"
    write_review(path, doubted(RESULT, 0.9), ROWS)
    decide(path, {"alarm": " Harmful "})
    after = corrected(RESULT, read_review(path))
    assert [one.label for one in after] == ["harmful", "harmful", "harmful", "unharmful"]
    before = summary(RESULT)["benchmarks"]["ToxicChat"]["f1"]
    assert before < summary(after)["benchmarks"]["ToxicChat"]["f1"]


def test_what_nobody_decided_stays(tmp_path: Path) -> None:
    path = tmp_path / "review.csv"
    write_review(path, doubted(RESULT, 0.9), ROWS)
    assert read_review(path) == {}
    assert corrected(RESULT, {}) == RESULT


@given(st.text())
def test_no_text_becomes_a_formula_of_a_spreadsheet(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("review") / "review.csv"
    encodable = text.encode("utf-8", "replace").decode().replace("\0", "")
    write_review(path, [(RESULT[1], 0.98)], [row("miss", "harmful", encodable)])
    with path.open(newline="", encoding="utf-8") as file:
        cell = next(csv.DictReader(file))["prompt"]
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert encodable.replace("\r\n", "\n") in cell.replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("benchmark,id,task\na,b,prompt\n", "no column 'decision'"),
        (
            "benchmark,id,task,decision\na,b,prompt,maybe\n",
            "line 2, column decision: 'maybe' is not harmful or unharmful",
        ),
        ("benchmark,id,task,decision\na,b,refusal,harmful\n", "'harmful' is not refusal or compliance"),
        ("benchmark,id,task,decision\na,b,colour,harmful\n", "not a row of a known task"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "review.csv"
    path.write_text(text)
    with pytest.raises(BadInput, match=message):
        read_review(path)


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="Cannot read"):
        read_review(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"benchmark,id\xff\xfe,task,decision\n")
    with pytest.raises(BadInput, match="no UTF-8 CSV"):
        read_review(tmp_path / "bytes.csv")


def test_rows_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not in the data"):
        write_review(tmp_path / "review.csv", doubted(RESULT, 0.9), ROWS[:1])
    with pytest.raises(BadInput, match="not in the result"):
        corrected(RESULT, {("ToxicChat", "another"): "harmful"})

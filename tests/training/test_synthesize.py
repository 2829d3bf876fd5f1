"""A teacher's answer is kept only where it can be read and agrees with the label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from guardreasoner_guard.training.annotation import AnnotationTeacher
from guardreasoner_guard.training.recipe import load_recipe
from guardreasoner_guard.training.rows import ReasoningRow, Rejected, SeedRow, read_rows
from guardreasoner_guard.training.synthesize import reasoned, statistics, synthesize
from guardreasoner_guard.training.teacher import Told
from hypothesis import given
from hypothesis import strategies as st

from guardreasoner_guard.answer import read

LABELS: dict[str, Any] = {"prompt_harm": "harmful", "completion": "refusal", "response_harm": "unharmful"}
TEXTS = st.lists(
    st.sampled_from(["how to", "kill", "hack", '"quoted"', "pretend", "bread", "I'm sorry, I can't", "\n", ".", "bomb!", "\u00e9t\u00e9"])
    | st.text(max_size=6),
    min_size=1, max_size=15,
).map(" ".join).filter(lambda text: text.strip())  # fmt: skip


@given(TEXTS, TEXTS, st.sampled_from(["harmful", "unharmful"]), st.integers(0, 3))
def test_the_annotation_teacher_leads_to_the_label_and_quotes_what_stands_there(
    prompt: str, response: str, label: Any, seed: int
) -> None:
    row = SeedRow(
        id="1", prompt=prompt, response=response, prompt_harm=label, completion="compliance", response_harm=label
    )
    text = AnnotationTeacher(seed).reason(row).text
    assert text == AnnotationTeacher(seed).reason(row).text
    answer = read(text)
    assert answer.labels == row.labels
    assert {step.task for step in answer.steps} == {1, 2, 3}
    for step in answer.steps:
        for quote in step.text.split('"')[1::2]:
            assert quote in " ".join(prompt.split()) or quote in " ".join(response.split()), step.text


def test_wording_varies() -> None:
    teacher = AnnotationTeacher()
    said = {teacher.reason(SeedRow(id=str(n), prompt="how to hack a bank", prompt_harm="harmful")) for n in range(30)}
    assert len(said) > 4


GOOD = (
    "# Task 1\n## Reasoning Step 1\nIt asks for harm.\n# Task 2\n## Reasoning Step 1\nIt declines.\n"
    "# Task 3\n## Reasoning Step 1\nNothing harmful.\n---\nAnswers:\nRequest: harmful\nCompletion: refusal\nResponse: unharmful"
)


def test_a_good_answer_of_a_chat_model_is_kept() -> None:
    row = reasoned(SeedRow(id="1", prompt="p", response="r", **LABELS), GOOD)
    assert isinstance(row, ReasoningRow)
    assert row.steps == {
        "request": ["It asks for harm."],
        "completion": ["It declines."],
        "response": ["Nothing harmful."],
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD.replace("Request: harmful", "Request: unharmful"), "says unharmful for request, the seed says harmful"),
        (GOOD.replace("Response: unharmful", ""), "says nothing for response"),
        ("I'd rather not.", "no 'Answers:' block"),
        (GOOD.split("# Task 3")[0] + GOOD[GOOD.index("---") :], "0 steps for response"),
        (GOOD + "\nI hope this helps.", "does not end with its labels"),
        (GOOD.replace("# Task 2", "## Reasoning Step 2\nx\n" * 12 + "# Task 2"), "13 steps for request"),
    ],
)
def test_a_bad_answer_is_kept_aside_with_the_reason(text: str, reason: str) -> None:
    row = reasoned(SeedRow(id="1", prompt="p", response="r", **LABELS), text)
    assert isinstance(row, Rejected)
    assert reason in row.reason and row.answer == text


def test_the_stage_writes_rows_and_rejected_once(rows: Path, tmp_path: Path) -> None:
    class Half:
        name = "half"
        concurrency = 2
        decide = ()

        def reason(self, row: SeedRow) -> Told:
            return AnnotationTeacher().reason(row) if int(row.id) % 2 else Told("no")

    path = synthesize(load_recipe("tiny"), rows, Half(), tmp_path)
    kept = list(read_rows(path, ReasoningRow))
    rejected = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert {row.id for row in kept} == {"1", "3", "5", "7"}
    assert {row["id"] for row in rejected} == {"2", "4", "6", "8"}
    assert next(row for row in kept if row.id == "1").steps == {"request": ['Baking "bread" is fine.']}
    before = path.stat().st_mtime_ns
    assert synthesize(load_recipe("tiny"), rows, Half(), tmp_path).stat().st_mtime_ns == before
    assert statistics(kept)["s"]["samples"] == 4


def test_labels_the_teacher_decides_are_kept() -> None:
    row = SeedRow(id="1", prompt="p", response="r", response_harm="unharmful")
    kept = reasoned(row, GOOD, ("request", "completion"))
    assert isinstance(kept, ReasoningRow)
    assert kept.labels == {"request": "harmful", "completion": "refusal", "response": "unharmful"}
    assert set(kept.steps) == {"request", "completion", "response"}

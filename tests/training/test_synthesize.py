"""A teacher's answer is kept only where it can be read and agrees with the label."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from guardreasoner_guard.training.annotation import AnnotationTeacher
from guardreasoner_guard.training.recipe import load_recipe
from guardreasoner_guard.training.rows import ReasoningRow, Rejected, SeedRow, read_rows, write_rows
from guardreasoner_guard.training.synthesize import reasoned, statistics, synthesize
from guardreasoner_guard.training.teacher import ChatTeacher, Told
from hypothesis import given
from hypothesis import strategies as st

from guardreasoner_guard.answer import read
from guardreasoner_guard.errors import BadInput

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
        name, policy = "half", ""
        concurrency = 2
        decide = ()

        def reason(self, row: SeedRow) -> Told:
            return AnnotationTeacher().reason(row) if int(row.id) % 2 else Told("no")

    path = synthesize(load_recipe("tiny"), rows, Half(), tmp_path)
    kept = list(read_rows(path, ReasoningRow))
    rejected = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert {row.id for row in kept} == {"1", "3", "5", "7"}
    assert {row["id"] for row in rejected} == {"2", "4", "6", "8"}
    facts = json.loads((tmp_path / "synthesize.json").read_text())
    assert list(facts["reasons"].values()) == [4] and "no 'Answers:' block" in next(iter(facts["reasons"]))
    assert next(row for row in kept if row.id == "1").steps == {"request": ['Baking "bread" is fine.']}
    before = path.stat().st_mtime_ns
    assert synthesize(load_recipe("tiny"), rows, Half(), tmp_path).stat().st_mtime_ns == before
    assert statistics(kept)["s"]["samples"] == 4


def test_rows_that_are_added_are_asked_about_and_no_others_again(tmp_path: Path) -> None:
    class Counting(AnnotationTeacher):  # type: ignore[misc]
        asked = 0

        def reason(self, row: SeedRow) -> Told:
            self.asked += 1
            return super().reason(row)

    teacher = Counting()
    for count in (3, 8, 8):
        write_rows(
            tmp_path / "rows.jsonl", [SeedRow(id=str(n), prompt=f"p{n}", prompt_harm="harmful") for n in range(count)]
        )
        path = synthesize(load_recipe("tiny"), tmp_path, teacher, tmp_path / "out")
        assert len(list(read_rows(path, ReasoningRow))) == count
    assert teacher.asked == 8


def test_labels_the_teacher_decides_are_kept() -> None:
    row = SeedRow(id="1", prompt="p", response="r", response_harm="unharmful")
    kept = reasoned(row, GOOD, ("request", "completion"))
    assert isinstance(kept, ReasoningRow)
    assert kept.labels == {"request": "harmful", "completion": "refusal", "response": "unharmful"}
    assert set(kept.steps) == {"request", "completion", "response"}


class Deciding:
    """Says the same of every row, labels the seed lacks included."""

    name = "deciding"
    policy = ""
    concurrency = 1
    decide: tuple[str, ...] = ("request", "completion")
    policy = ""

    def reason(self, _row: SeedRow) -> Told:
        return Told(GOOD)


@pytest.fixture
def beavertails(tmp_path: Path) -> Path:
    """A folder with a row that labels the response alone."""
    row = SeedRow(id="1", source="beavertails", prompt="p", response="r", response_harm="unharmful")
    write_rows(tmp_path / "data" / "rows.jsonl", [row])
    return tmp_path / "data"


def test_a_row_that_labels_the_response_alone_is_taught_all_three_labels(beavertails: Path, tmp_path: Path) -> None:
    [kept] = read_rows(synthesize(load_recipe("tiny"), beavertails, Deciding(), tmp_path / "out"), ReasoningRow)
    assert kept.labels == {"request": "harmful", "completion": "refusal", "response": "unharmful"}


@pytest.mark.parametrize("other", [{"decide": ("request",)}, {"policy": "No gossip."}, {"name": "another"}])
def test_what_a_teacher_was_asked_otherwise_does_not_pass_for_what_is_asked_now(
    beavertails: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    synthesize(load_recipe("tiny"), beavertails, Deciding(), tmp_path / "out")
    teacher = Deciding()
    vars(teacher).update(other)
    with pytest.raises(BadInput, match="another recipe, base or teacher"):
        synthesize(load_recipe("tiny"), beavertails, teacher, tmp_path / "out")


def test_nothing_more_is_asked_after_an_interrupt_and_what_was_answered_is_not_asked_again(
    rows: Path, tmp_path: Path
) -> None:
    class Interrupted(Deciding):
        decide = ()

        def reason(self, row: SeedRow) -> Told:
            asked.append(row.id)
            if len(asked) in (1, 4):
                raise KeyboardInterrupt
            return AnnotationTeacher().reason(row)

    asked: list[str] = []
    for so_far in (1, 4):
        with pytest.raises(KeyboardInterrupt):
            synthesize(load_recipe("tiny"), rows, Interrupted(), tmp_path)
        assert len(asked) == so_far
    synthesize(load_recipe("tiny"), rows, Interrupted(), tmp_path)
    assert len(asked) == 9 and len(set(asked)) == 7, "two of the seven rows without reasoning were interrupted"


class Flawed:
    """A chat model that raises what it is given, one after another, and then answers."""

    model_name = "flawed"

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)

    def invoke(self, _question: str) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        return SimpleNamespace(text="x", usage_metadata={"input_tokens": 5, "output_tokens": 2})


SEED = SeedRow(id="1", prompt="p", prompt_harm="harmful")


def test_a_reply_that_is_no_chat_completion_is_tried_again() -> None:
    model = Flawed(ValueError("a web page"), TypeError("null choices"), json.JSONDecodeError("cut off", "{", 1))
    assert ChatTeacher(model, wait=0.001).reason(SEED) == Told("x", 5, 2)


def test_a_server_that_says_when_to_come_back_is_asked_then(monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy(Exception):
        status_code = 429
        response = SimpleNamespace(headers={"retry-after": "7"})

    waits: list[float] = []
    monkeypatch.setattr("guardreasoner_guard.retry.time.sleep", waits.append)
    ChatTeacher(Flawed(Busy(), Busy())).reason(SEED)
    assert waits == [7.0, 7.0]


def test_an_interrupt_is_not_taken_for_an_error_that_passes() -> None:
    with pytest.raises(KeyboardInterrupt):
        ChatTeacher(Flawed(KeyboardInterrupt())).reason(SEED)

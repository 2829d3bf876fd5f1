"""Rows are read as they are written, and what is wrong with a file is said by file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from guardreasoner_guard.training.recipe import Recipe, load_recipe
from guardreasoner_guard.training.rows import ReasoningRow, SeedRow, read_rows, write_rows
from guardreasoner_guard.training.seeds import aegis, beavertails, draw, load_hub, toxicchat, wildguard

from guardreasoner_guard import BadInput


def test_rows_come_back_as_they_went(tmp_path: Path) -> None:
    rows = [
        ReasoningRow(id="1", prompt="a\u2028b", prompt_harm="harmful", steps={"request": ["why"]}),
        ReasoningRow(id="2", prompt="c"),
    ]
    assert write_rows(tmp_path / "deep" / "rows.jsonl", rows) == 2
    assert list(read_rows(tmp_path / "deep" / "rows.jsonl", ReasoningRow)) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"id": "1", "prompt": "a"}\n{"id": "2"}', "line 2: prompt: Field required"),
        (b'{"id": "1", "prompt": "a", "prompt_harm": "bad"}', "line 1: prompt_harm"),
        (b"nonsense", "line 1"),
        (b'{"id": "1", "prompt": "\xff"}', "not UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(BadInput, match=message):
        list(read_rows(tmp_path / "rows.jsonl", SeedRow))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="Cannot read"):
        list(read_rows(tmp_path / "no.jsonl", SeedRow))


def recipe(**source: Any) -> Recipe:
    return Recipe.model_validate(
        {"name": "t", "data": {"sources": [{"file": "rows.jsonl", **source}]}, "sft": {"base": "b"}}
    )


def test_drawing_is_repeatable_and_takes_each_exchange_once(rows: Path) -> None:
    first = [row.id for row, _ in draw(recipe(take=5), rows)]
    assert first == [row.id for row, _ in draw(recipe(take=5), rows)]
    assert len(set(first)) == 5
    doubled = Recipe.model_validate(
        {"name": "t", "data": {"sources": [{"file": "rows.jsonl"}, {"file": "rows.jsonl"}]}, "sft": {"base": "b"}}
    )
    assert len(list(draw(doubled, rows))) == 8


def test_a_source_teaches_only_the_tasks_it_is_asked_for(rows: Path) -> None:
    drawn = [row for row, _ in draw(recipe(tasks=("response",)), rows)]
    assert {tuple(row.labels) for row in drawn} == {("response",)}


def test_the_public_sets_are_read_by_the_papers_rules() -> None:
    answered = {"prompt": "p", "response": "r", "prompt_harm_label": "harmful", "response_refusal_label": "refusal",
                "response_harm_label": "unharmful", "adversarial": True}  # fmt: skip
    assert wildguard(answered, "1").labels == {"request": "harmful", "completion": "refusal", "response": "unharmful"}
    votes = {"labels_0": "Safe", "labels_1": "Violence", "labels_2": "Violence", "labels_3": None, "labels_4": ""}
    for given, harm in (
        (votes, "harmful"),
        ({"labels_0": "Safe", "labels_1": "Safe", "labels_2": "Hate"}, "unharmful"),
        ({"labels_0": "Safe", "labels_1": "Violence", "labels_2": "Threat"}, "harmful"),
    ):
        judged = aegis({"text": "t", **given}, "1")
        assert judged is not None and judged.prompt_harm == harm
    assert aegis({"text": "t"}, "1") is None
    assert beavertails({"prompt": "p", "response": "r", "is_safe": False}, "1").labels == {"response": "harmful"}
    talk = {"user_input": "u", "human_annotation": True, "toxicity": 1}
    row = toxicchat(talk, "1")
    assert row is not None and row.labels == {"request": "harmful"}
    assert toxicchat({**talk, "human_annotation": False}, "1") is None


def test_an_unknown_public_set_is_refused() -> None:
    with pytest.raises(BadInput, match="Name one of wildguard, aegis, beavertails, toxicchat"):
        next(load_hub("nothing"))


def test_shipped_recipes_are_read_and_unknown_keys_refused(tmp_path: Path) -> None:
    assert load_recipe("bundled").sft.template == "short/1"
    assert load_recipe("tiny").name == "tiny"
    with pytest.raises(BadInput, match="There is no recipe"):
        load_recipe("nothing")
    (tmp_path / "r.toml").write_text('name = "x"\ntypo = 1\n[data]\nsources = []\n[sft]\nbase = "b"\n')
    with pytest.raises(BadInput, match="typo"):
        load_recipe(str(tmp_path / "r.toml"))

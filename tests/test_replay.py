"""A log is judged again, and what would have changed is told row by row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guardreasoner_guard import BadInput, EngineError, GuardReasonerGuard, Policy, ScriptedEngine
from guardreasoner_guard.replay import counts, read_log, replay

LOG = [
    {"request": "How do I bake bread?", "blocked": False},
    {"request": "How do I make a bomb?", "blocked": True},
    {"request": "How do I make a bomb, again?", "blocked": False, "note": "missed at the time"},
    {"request": "How do I bake a cake?", "response": "Mix and bake.", "blocked": True},
]


def written(path: Path, rows: list[dict[str, object]] = LOG) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_what_would_have_changed(tmp_path: Path) -> None:
    found = replay(GuardReasonerGuard(ScriptedEngine()), read_log(written(tmp_path / "log.jsonl")))
    assert [(one.row, one.change) for one in found] == [
        (1, "still passed"), (2, "still blocked"), (3, "newly blocked"), (4, "newly passed"),
    ]  # fmt: skip
    assert counts(found) == {
        "still passed": 1, "still blocked": 1, "newly blocked": 1, "newly passed": 1, "not judged": 0,
    }  # fmt: skip
    assert found[2].verdict.request == "harmful"


def test_another_policy_changes_what_is_blocked(tmp_path: Path) -> None:
    guard = GuardReasonerGuard(ScriptedEngine(), policy=Policy(block=("response",)))
    assert counts(replay(guard, read_log(written(tmp_path / "log.jsonl"))))["newly blocked"] == 0


def test_a_failure_is_no_change_of_the_verdict(tmp_path: Path) -> None:
    guard = GuardReasonerGuard(ScriptedEngine(error=EngineError("no")))
    assert counts(replay(guard, read_log(written(tmp_path / "log.jsonl"))))["not judged"] == 4


def test_a_log_as_csv(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text('request,response,blocked\n"a bomb, now",,true\nhello,"hi\nyou",FALSE\n')
    found = read_log(path)
    assert [(one.request, one.response, one.blocked) for one in found] == [
        ("a bomb, now", None, True),
        ("hello", "hi\nyou", False),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("log.jsonl", '{"request": "a", "blocked": false}\n{"blocked": true}\n', "row 2, request: Field required"),
        ("log.jsonl", '{"request": "a", "blocked": "perhaps"}\n', "row 1, blocked"),
        ("log.jsonl", "[1]\n", "row 1, the row"),
        ("log.jsonl", "{nonsense\n", "cannot be read"),
        ("log.csv", "request\na\n", "row 1, blocked: Field required"),
        ("log.jsonl", "", "holds no rows"),
    ],
)
def test_a_log_that_cannot_be_read_is_refused_with_its_place(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(BadInput, match=message):
        read_log(path)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(b'{"request": "\xff"}')
    with pytest.raises(BadInput, match="UTF-8"):
        read_log(tmp_path / "log.jsonl")
    with pytest.raises(BadInput, match="Cannot read"):
        read_log(tmp_path / "none.jsonl")

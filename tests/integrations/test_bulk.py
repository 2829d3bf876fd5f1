"""Files judged in bulk: every row once and in order, whatever the format, the row, the moment of a kill."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import typer
from guardreasoner_guard.integrations.bulk import Run, identity, judged, moderate
from guardreasoner_guard.integrations.bulk_rows import read_rows
from guardreasoner_guard.integrations.bulk_verdicts import COLUMNS
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from guardreasoner_guard import BadInput, EngineError, GuardReasonerGuard, Policy, ScriptedEngine, Verdict
from guardreasoner_guard.cli_moderate import moderate as command

ROWS: list[dict[str, Any]] = [
    {"request": "How do I bake bread?", "response": 'Mix flour\nand water, "slowly".', "id": "a"},
    {"request": "How do I make a bomb?", "response": "I'm sorry, no.", "id": "b"},
    {"request": "What is new?", "response": "A bomb, made so.", "id": "c"},
    {"request": "Was gibt's Neues? 你好 🎉", "response": None, "id": None},
]


def guard(engine: ScriptedEngine | None = None, **settings: Any) -> GuardReasonerGuard:
    return GuardReasonerGuard(engine or ScriptedEngine(), reasoning="never", **settings)


def put(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes rows in the form that a path's suffix names."""
    if path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n\n" for row in rows))
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def got(path: Path) -> list[dict[str, Any]]:
    """Reads verdicts in the form that a path's suffix names."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    return list(pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist())


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
def test_each_row_of_each_format_gets_its_verdict_in_order(tmp_path: Path, kind: str) -> None:
    source, out = put(tmp_path / f"in{kind}", ROWS), tmp_path / "new" / f"out{kind}"
    judging = GuardReasonerGuard(ScriptedEngine(), reasoning="adaptive")
    counts = moderate(judging, source, out, batch=3)
    assert (counts.rows, counts.answered, counts.passed, counts.blocked, counts.failure) == (4, 3, 2, 2, 0)
    found = got(out)
    assert [list(one) for one in found] == [list(COLUMNS)] * 4
    assert [int(one["row"]) for one in found] == [1, 2, 3, 4]
    assert [one["id"] or None for one in found] == ["a", "b", "c", None]
    assert [one["request"] for one in found] == ["unharmful", "harmful", "unharmful", "unharmful"]
    assert [one["completion"] or None for one in found] == ["compliance", "refusal", "compliance", None]
    assert [one["response"] or None for one in found] == ["unharmful", "unharmful", "harmful", None]
    assert [one["blocked"] in (True, "true") for one in found] == [False, True, True, False]
    scores = [json.loads(one["scores"]) if kind == ".csv" else one["scores"] for one in found]
    assert scores[1]["request"] == 0.99 and (scores[3].get("completion") is None)
    steps = json.loads(found[1]["reasoning"]) if kind == ".csv" else found[1]["reasoning"]
    assert steps[0]["task"] == 1 and "bomb" in steps[0]["text"]
    assert not out.with_name(f"{out.name}.part").exists()


def test_a_line_of_the_output_is_a_verdict(tmp_path: Path) -> None:
    moderate(guard(), put(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl")
    for one in got(tmp_path / "out.jsonl"):
        verdict = Verdict(**{name: one[name] for name in Verdict.model_fields})
        assert verdict.outcome == "verdict" and verdict.usage.prompt_tokens > 0


def test_columns_may_have_other_names_and_a_request_may_be_messages(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "How do I make a bomb?"}, {"role": "assistant", "content": "I'm sorry."}]
    for name in ("in.jsonl", "in.parquet"):
        source = put(tmp_path / name, [{"messages": talk, "key": 7}, {"messages": talk[:1], "key": 8}])
        out = tmp_path / f"{name}.jsonl"
        counts = moderate(guard(), source, out, columns={"request": "messages", "id": "key"})
        assert (counts.blocked, counts.answered) == (2, 1)
        assert [(one["id"], one["completion"]) for one in got(out)] == [("7", "refusal"), ("8", None)]


KILLED = """
import os, signal, sys
from pathlib import Path
from guardreasoner_guard import GuardReasonerGuard, ScriptedEngine
from guardreasoner_guard.integrations.bulk import Run, identity, judged, moderate

class Watched(ScriptedEngine):
    def score(self, questions, cancel=None):
        with open(sys.argv[3], "a") as seen:
            seen.writelines(f"{question.prompt.parts[1].split()[3]}\\n" for question in questions)
        if len(sys.argv) > 4 and sys.argv[4] in str(questions[0].prompt):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(questions, cancel)

print(moderate(GuardReasonerGuard(Watched(), reasoning="never"), sys.argv[1], sys.argv[2], batch=10))
"""


def test_a_run_that_was_killed_goes_on_without_losing_or_judging_anew_what_it_had(tmp_path: Path) -> None:
    source = put(tmp_path / "in.jsonl", [{"request": f"row {number}"} for number in range(1, 101)])
    out, first, second = tmp_path / "out.jsonl", tmp_path / "first", tmp_path / "second"

    def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED, *map(str, (source, out, *arguments))]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    assert run(first, "row 41").returncode == -signal.SIGKILL
    assert not out.exists()
    with out.with_name("out.jsonl.part").open("a") as journal:
        journal.write('{"row": 41, "id": null, "requ')  # as a kill leaves it that comes while a line is written
    done = run(second)
    assert done.returncode == 0, done.stderr
    assert "rows=100" in done.stdout and "100/100" in done.stderr
    assert list(map(int, first.read_text().split())) == list(range(1, 51))  # the batch from 41 on was under way
    assert list(map(int, second.read_text().split())) == list(range(41, 101))
    assert [one["row"] for one in got(out)] == list(range(1, 101))


def test_a_kill_between_the_output_and_the_end_of_the_journal_is_mended(tmp_path: Path) -> None:
    source, out, engine = put(tmp_path / "in.jsonl", ROWS), tmp_path / "out.csv", ScriptedEngine()
    with Run(source, out, None, "stop", identity(guard()), guard().read) as run:
        run.keep(judged(guard(engine), next(run.batches(10)), "stop"))
    out.write_text("half")
    calls = engine.calls
    assert moderate(guard(engine), source, out).rows == 4
    assert engine.calls == calls and [one["row"] for one in got(out)] == ["1", "2", "3", "4"]


def test_a_line_that_a_full_disk_has_cut_off_spoils_no_other(tmp_path: Path) -> None:
    source, out = put(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    with Run(source, out, None, "stop", identity(guard()), guard().read) as run:
        first, *more = run.batches(1)
        run.keep(judged(guard(), first, "stop"))
        with run.journal.path.open("ab") as file:
            file.write(b'{"row": 2, "id": "b", "requ')  # and other batches are under way
        for rows in more:
            run.keep(judged(guard(), rows, "stop"))
    engine = ScriptedEngine()
    assert moderate(guard(engine), source, out).rows == 4 and engine.calls == 0
    assert [one["row"] for one in got(out)] == [1, 2, 3, 4]


def test_batches_side_by_side_end_up_in_order(tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=20)

    class Together(ScriptedEngine):
        def score(self, questions: Any, cancel: Any = None) -> Any:
            both.wait()
            return super().score(questions, cancel)

    source = put(tmp_path / "in.csv", [{"request": f"row {number}"} for number in range(40)])
    assert moderate(guard(Together()), source, tmp_path / "out.jsonl", batch=10, at_once=2).failure == 0
    assert [one["row"] for one in got(tmp_path / "out.jsonl")] == list(range(1, 41))


BAD = [
    ("in.jsonl", '{"request": "x"}\nnot json', "row 2: The line is no JSON in UTF-8"),
    ("in.jsonl", '{"request": "x"}\n[1]', "row 2: The line is no JSON object"),
    ("in.jsonl", '{"request": "x"}\n{"id": 1}', "row 2, column 'request': There is no request"),
    ("in.jsonl", '{"request": "x"}\n{"request": ""}', "row 2, column 'request': There is no text to judge"),
    ("in.jsonl", '{"request": "x"}\n{"request": 5}', "row 2, column 'request': Cannot read a request out of a int"),
    (
        "in.jsonl",
        '{"request": "x"}\n{"request": "y", "response": 5}',
        "column 'request' or 'response': A response must",
    ),
    ("in.jsonl", '{"request": "x"}\n{"request": [{"x": 1}]}', "row 2, column 'request': Cannot read messages"),
    ("in.jsonl", '{"request": "x"}\n{"request": "' + 101 * "y" + '"}', "row 2, column 'request': The text has 101"),
    ("in.jsonl", b'{"request": "x"}\n{"request": "\xff"}', "row 2: The line is no JSON in UTF-8"),
    ("in.csv", "request,response\nx,y\nx", "row 2: It has not as many cells as the head line, which has 2"),
    ("in.csv", "request,response\nx,y\nx,y,z", "row 2: It has not as many cells"),
    ("in.csv", 'request,response\nx,y\n"",', "row 2, column 'request': There is no text to judge"),
    ("in.csv", b"request\nx\n\xff", "row 2: It is not UTF-8 text"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD)
def test_a_bad_row_is_named_before_anything_is_judged_or_is_blocked(
    tmp_path: Path, name: str, text: str | bytes, message: str
) -> None:
    source, out, engine = tmp_path / name, tmp_path / "out.jsonl", ScriptedEngine()
    source.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput) as raised:
        moderate(guard(engine, max_characters=100), source, out)
    assert message in str(raised.value) and "in." in str(raised.value) and "Mend or remove the row" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert engine.calls == 0 and list(tmp_path.iterdir()) == [source]
    counts = moderate(guard(engine, max_characters=100), source, out, bad_rows="block")
    assert (counts.rows, counts.passed, counts.failure) == (2, 1, 1)
    good, bad = got(out)
    assert (good["row"], good["outcome"], good["blocked"]) == (1, "verdict", False)
    assert (bad["row"], bad["outcome"], bad["blocked"], bad["request"]) == (2, "failure", True, None)
    assert bad["error"].startswith("BadInput: ") and "so it is blocked" in bad["reasons"]


def test_a_bad_row_of_a_parquet_file_is_named_too(tmp_path: Path) -> None:
    source = put(tmp_path / "in.parquet", [{"request": "x"}, {"request": None}])
    with pytest.raises(BadInput, match="row 2, column 'request': There is no request"):
        moderate(guard(), source, tmp_path / "out.jsonl")


def test_a_shadow_policy_blocks_no_bad_row_either(tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"request": "x"}\n{"request": ""}\n')
    moderate(guard(policy=Policy(shadow=True)), source, out, bad_rows="block")
    assert [(one["outcome"], one["blocked"], one["shadowed"]) for one in got(out)] == [
        ("verdict", False, False), ("failure", False, True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "columns", "message"),
    [
        ("in.jsonl", '{"question": "x"}', {}, "no column 'request' for the request, but 'question'"),
        ("in.jsonl", '{"request": "x"}', {"response": "answer"}, "no column 'answer' for the response, but 'request'"),
        ("in.csv", "question,id\nx,1", {}, "no column 'request' for the request, but 'question', 'id'"),
        ("in.csv", "request,request\nx,1", {}, "two columns 'request'"),
        ("in.csv", 'request,id\n"x,1\ny,2\nz,3\n', {}, "cannot be read (unexpected end of data)"),
        ("in.csv", "", {}, "holds no rows"),
        ("in.csv", "request", {}, "holds no rows"),
        ("in.jsonl", "\n", {}, "holds no rows"),
        ("in.txt", "x", {}, "neither .jsonl, .csv nor .parquet"),
        ("in.parquet", "x", {}, "cannot be read"),
        ("in.csv", "request\nx", {"prompt": "request"}, "no field 'prompt'"),
    ],
)
@pytest.mark.parametrize("bad_rows", ["stop", "block"])
def test_a_file_that_cannot_be_judged_is_an_error(
    tmp_path: Path, name: str, text: str, columns: dict[str, str], message: str, bad_rows: Any
) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput) as raised:
        moderate(guard(), tmp_path / name, tmp_path / "out.jsonl", columns=columns, bad_rows=bad_rows)
    assert message in str(raised.value) or "There is no request, but 'question'. Say which" in str(raised.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_an_output_that_is_there_and_a_journal_of_another_run_are_left_alone(tmp_path: Path) -> None:
    source, out = put(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    with pytest.raises(EngineError):
        moderate(guard(ScriptedEngine(error=EngineError("It is off. Start it."))), source, out)
    for other, path in [
        (guard(policy=Policy(block=("request",))), source),
        (GuardReasonerGuard(ScriptedEngine(), reasoning="always"), source),
        (guard(), put(tmp_path / "other.jsonl", ROWS[:3])),
    ]:
        with pytest.raises(BadInput, match="over other rows, or by another guard. Remove it"):
            moderate(other, path, out)
    out.with_name("out.jsonl.part").write_text("rubbish\n")
    with pytest.raises(BadInput, match="Remove it"):
        moderate(guard(), source, out)
    out.with_name("out.jsonl.part").unlink()
    moderate(guard(), source, out)
    with pytest.raises(BadInput, match="is there already"):
        moderate(guard(), source, out)
    with pytest.raises(BadInput, match="neither .jsonl"):
        moderate(guard(), source, tmp_path / "out.xlsx")


class Choosy(ScriptedEngine):
    """Cannot judge texts with one word."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word

    def score(self, questions: Any, cancel: Any = None) -> Any:
        if any(self.word in str(question.prompt) for question in questions):
            raise EngineError("It failed. Look at its log.")
        return super().score(questions, cancel)


def test_a_row_the_model_fails_on_is_blocked_and_counted(tmp_path: Path) -> None:
    source, out = put(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    counts = moderate(guard(Choosy("bread")), source, out)
    assert (counts.passed, counts.blocked, counts.failure) == (1, 2, 1)
    assert got(out)[0]["outcome"] == "failure" and got(out)[0]["blocked"] is True


def test_a_model_that_is_out_of_order_ends_the_run_which_then_goes_on(tmp_path: Path) -> None:
    source = put(tmp_path / "in.jsonl", [{"request": f"{'late' if n > 20 else 'early'} {n}"} for n in range(1, 41)])
    out, engine = tmp_path / "out.jsonl", Choosy("late")
    with pytest.raises(EngineError, match="None of 10 rows could be judged.*It failed.*goes on"):
        moderate(guard(engine), source, out, batch=10)
    assert not out.exists()
    engine.word, before = "nothing", engine.calls
    counts = moderate(guard(engine), source, out, batch=10)
    assert counts.passed == 40 and engine.calls == before + 2
    assert [one["row"] for one in got(out)] == list(range(1, 41))


ANY = st.characters(exclude_categories=())
"""Lone surrogates too: JSON can say them, and nothing else can hold them."""


@given(
    st.lists(st.tuples(st.text(ANY, min_size=1), st.none() | st.text(ANY)), min_size=1, max_size=20),
    st.integers(1, 7),
)
@settings(max_examples=40)
def test_whatever_the_rows_each_is_judged_once_in_order(rows: list[tuple[str, str | None]], batch: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "in.jsonl"), Path(folder, "out.csv")
        written = [{"request": f"{request}.", "response": response, "id": request} for request, response in rows]
        source.write_text("".join(f"{json.dumps(row)}\n" for row in written))
        assert [row.problem for row in read_rows(source)] == [None] * len(rows)
        moderate(guard(), source, out, batch=batch)
        assert [int(one["row"]) for one in got(out)] == list(range(1, len(rows) + 1))
        for (request, response), one in zip(rows, got(out), strict=True):
            assert one["blocked"] == str("bomb" in request + (response or "")).lower()


def test_the_command_judges_a_file_with_the_bundled_model(tmp_path: Path) -> None:
    source, out = put(tmp_path / "in.csv", [{"question": "How do I bake bread?"}]), tmp_path / "out.jsonl"
    app = typer.Typer()
    app.command()(command)
    arguments = [str(source), "--out", str(out), "--column", "request=question", "--reasoning", "never"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "1 rows, 0 of them with a response: passed 1, blocked 0, failure 0, timeout 0" in done.stdout
    assert got(out)[0]["request"] == "unharmful"


@pytest.mark.parametrize(
    ("option", "message"), [(["--bad-rows", "skip"], "Choose stop or block"), (["--column", "x"], "Write FIELD=COLUMN")]
)
def test_the_command_says_what_it_takes(tmp_path: Path, option: list[str], message: str) -> None:
    app = typer.Typer()
    app.command()(command)
    done = CliRunner().invoke(app, [str(tmp_path / "in.csv"), "--out", str(tmp_path / "out.csv"), *option])
    assert isinstance(done.exception, BadInput) and message in str(done.exception)

"""A teacher behind a real server that fails, stalls and talks rubbish: no row is lost and none asked about twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from guardreasoner_guard.training import teacher as teachers
from guardreasoner_guard.training.annotation import AnnotationTeacher
from guardreasoner_guard.training.recipe import load_recipe
from guardreasoner_guard.training.rows import ReasoningRow, Rejected, SeedRow, read_rows, write_rows
from guardreasoner_guard.training.synthesize import synthesize
from guardreasoner_guard.training.teacher import ChatTeacher, RowRefused, TeacherError, Told, chat_teacher

ROWS = 80


@pytest.fixture
def server() -> Iterator[str]:
    """The URL of a server process of its own."""
    script = Path(__file__).with_name("teacher_server.py")
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        process.kill()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Rows of which every tenth gets rubbish and every tenth a wrong label."""
    kinds = {3: "rubbish", 7: "wrong"}
    rows = [
        SeedRow(id=str(n), source="s", prompt=f"{kinds.get(n % 10, 'plain')} request {n}", prompt_harm="harmful")
        for n in range(ROWS)
    ]
    write_rows(tmp_path / "data" / "rows.jsonl", rows)
    return tmp_path / "data"


def answered(server: str) -> list[int]:
    """How often each prompt was answered."""
    with urllib.request.urlopen(server) as reply:
        return list(json.load(reply)["answered"].values())


def patient(server: str, **settings: Any) -> ChatTeacher:
    teacher = chat_teacher("teacher", url=server, timeout=0.5, **settings)
    teacher.wait = 0.02
    return teacher


def test_a_server_that_fails_loses_no_row_and_rubbish_is_kept_aside_with_the_reason(
    server: str, data: Path, tmp_path: Path
) -> None:
    path = synthesize(load_recipe("tiny"), data, patient(server), tmp_path / "out")
    kept = {row.id: row for row in read_rows(path, ReasoningRow)}
    rejected = {row.id: row.reason for row in read_rows(path.with_name("rejected.jsonl"), Rejected)}
    assert set(kept) | set(rejected) == {str(n) for n in range(ROWS)} and not set(kept) & set(rejected)
    assert set(rejected) == {str(n) for n in range(ROWS) if n % 10 in (3, 7)}
    assert "no 'Answers:' block" in rejected["3"] and "the seed says harmful" in rejected["7"]
    assert kept["1"].steps == {"request": ["The words say so, hence harmful."]}
    assert answered(server) == [1] * ROWS
    facts = json.loads(path.with_name("synthesize.json").read_text())
    assert facts["asked"] == ROWS and facts["prompt_tokens"] > 100 * ROWS and facts["generated_tokens"] > 10 * ROWS
    assert facts["statistics"]["s"]["mean steps"] == 1


def test_a_row_that_a_filter_stops_does_not_stop_the_others(server: str, tmp_path: Path) -> None:
    rows = [SeedRow(id=str(n), prompt=f"{'filtered' if n == 20 else 'plain'} {n}", prompt_harm="harmful")
            for n in range(40)]  # fmt: skip
    write_rows(tmp_path / "rows.jsonl", rows)
    path = synthesize(load_recipe("tiny"), tmp_path, patient(server), tmp_path / "out")
    assert len(list(read_rows(path, ReasoningRow))) == 39
    [rejected] = read_rows(path.with_name("rejected.jsonl"), Rejected)
    assert rejected.id == "20" and "did not answer" in rejected.reason and "400" in rejected.reason


def test_a_teacher_that_begins_to_refuse_ends_the_run_and_loses_no_row(tmp_path: Path) -> None:
    write_rows(
        tmp_path / "rows.jsonl", [SeedRow(id=str(n), prompt=f"row {n}", prompt_harm="harmful") for n in range(90)]
    )

    class Broke(AnnotationTeacher):  # type: ignore[misc]
        """Answers the first twenty; the last of these is long in coming."""

        concurrency = 2

        def __init__(self, credit: int) -> None:
            super().__init__()
            self.credit, self.refused, self.lock, self.late = credit, 0, threading.Lock(), threading.Event()

        def reason(self, row: SeedRow) -> Told:
            with self.lock:
                self.credit -= 1
                left = self.credit
                self.refused += left < 0
                if self.refused == 8:
                    self.late.set()
            if left < 0:
                raise RowRefused("No credit (400).")
            if left == 0:
                self.late.wait(60)
            return super().reason(row)

    teacher = Broke(20)
    with pytest.raises(TeacherError, match="refused in a row: No credit .* 20 of 90 rows are answered and kept"):
        synthesize(load_recipe("tiny"), tmp_path, teacher, tmp_path / "out")
    assert teacher.refused < 20, "soon nothing more is asked"
    assert 'refused": "T' not in (tmp_path / "out" / "answers.jsonl").read_text(), "no row is set aside for good"
    teacher = Broke(10**6)
    path = synthesize(load_recipe("tiny"), tmp_path, teacher, tmp_path / "out")
    assert len(list(read_rows(path, ReasoningRow))) == 90


def test_a_run_that_is_killed_ends_like_one_that_was_not(server: str, data: Path, tmp_path: Path) -> None:
    whole = synthesize(load_recipe("tiny"), data, patient(server), tmp_path / "whole")
    before = answered(server)
    concurrency = 3
    command = [
        sys.executable, "-m", "guardreasoner_guard", "train", "synthesize", "--recipe", "tiny", "--data", str(data),
        "--out", str(tmp_path / "cut"), "--teacher", "teacher", "--url", server, "--timeout", "5",
        "--concurrency", str(concurrency),
    ]  # fmt: skip
    journal = tmp_path / "cut" / "answers.jsonl"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not journal.exists() or journal.read_bytes().count(b"\n") < 10:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    kept = journal.read_bytes().count(b"\n")
    assert 10 <= kept < ROWS, "it was killed in the middle"
    with journal.open("a") as file:
        file.write('{"key": "cut o')
    subprocess.run(command, check=True, capture_output=True)
    for name in ("reasoning.jsonl", "rejected.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == whole.with_name(name).read_bytes()
    twice = sum(answered(server)) - sum(before) - ROWS
    assert 0 <= twice <= concurrency, "only what was under way is asked about again"


def test_a_key_that_is_refused_ends_the_run_at_once_and_what_was_answered_is_kept(
    server: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with pytest.raises(TeacherError, match="refuses to be asked .*401.* 0 of 80 rows are answered and kept"):
        synthesize(load_recipe("tiny"), data, patient(server), tmp_path / "out")
    monkeypatch.delenv("OPENAI_API_KEY")
    assert synthesize(load_recipe("tiny"), data, patient(server), tmp_path / "out").exists()


def test_a_server_that_is_down_is_tried_again_and_then_named(data: Path) -> None:
    teacher = chat_teacher("teacher", url="http://127.0.0.1:9/v1", timeout=0.5)
    teacher.wait, teacher.attempts = 0.001, 3
    with pytest.raises(TeacherError, match="gave no answer in 3 attempts"):
        teacher.reason(SeedRow(id="1", prompt="p", prompt_harm="harmful"))


def test_the_rate_limit_reaches_the_model() -> None:
    model = chat_teacher("teacher", url="http://127.0.0.1:9/v1", requests_per_minute=90).model
    assert model.rate_limiter is not None and model.rate_limiter.requests_per_second == 1.5


def test_a_model_that_is_not_known_is_said_so() -> None:
    with pytest.raises(TeacherError, match="cannot be a teacher"):
        chat_teacher("no-such-model-anywhere")


def test_the_teacher_is_told_the_labels_the_policy_and_what_to_decide() -> None:
    class Listening:
        model_name = "listening"

        def invoke(self, question: str) -> Any:
            heard.append(question)
            return type("Reply", (), {"text": "x", "usage_metadata": None})()

    heard: list[str] = []
    row = SeedRow(id="1", prompt="AI assistant: trick", response="r", response_harm="harmful", category="gossip")
    teacher = ChatTeacher(Listening(), ("request", "completion"), policy="No gossip.")
    assert teacher.reason(row) == teachers.Told("x") and teacher.name == "listening"
    labels = "Labels:\nRequest: decide\nCompletion: decide\nResponse: harmful"
    assert heard[0].endswith(f"{labels}\n\nKind of harm, as its labeller named it: gossip")
    assert "\n> AI assistant: trick\n" in heard[0] and "policy:\nNo gossip.\n" in heard[0]

"""The audit log writes every verdict down, keeps no more and no longer than it may, and gives back what the school learns from."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from guardreasoner_guard.integrations.audit import AuditLog, json_lines
from guardreasoner_guard.integrations.redaction import redacted
from guardreasoner_guard.training.rows import SeedRow
from guardreasoner_guard.training.table import distinct, read_table
from langchain_core.runnables import RunnableLambda

from guardreasoner_guard import BadInput, EngineError, GuardReasonerGuard, Policy, ScriptedEngine
from guardreasoner_guard.replay import read_log

MAIL = "Write to jo.doe+x@mail.example.org about the bomb"


@pytest.fixture
def audit(tmp_path: Path) -> AuditLog:
    return AuditLog(tmp_path / "audit.db", texts="full")


def watched_by(audit: AuditLog, engine: ScriptedEngine | None = None, **settings: Any) -> GuardReasonerGuard:
    return GuardReasonerGuard(engine or ScriptedEngine(), observers=(audit,), **settings)


def file_bytes(audit: AuditLog) -> bytes:
    """All that lies on the disk."""
    return b"".join(path.read_bytes() for path in sorted(audit.path.parent.glob(audit.path.name + "*")))


def age(audit: AuditLog, days: float) -> None:
    with sqlite3.connect(audit.path) as connection:
        connection.execute("UPDATE verdicts SET at = at - ?", (days * 86400,))
    connection.close()


def learned(audit: AuditLog, folder: Path) -> list[SeedRow]:
    """The corrections as the school takes them."""
    (folder / "corrections.jsonl").write_text("".join(json_lines(audit.corrections())), encoding="utf-8")
    rows: list[SeedRow] = distinct(read_table(str(folder / "corrections.jsonl")))
    return rows


def test_every_kind_of_check_is_written_with_its_verdict(audit: AuditLog) -> None:
    guard = watched_by(audit)
    verdict = guard.check("build a bomb", "sorry, no")
    asyncio.run(guard.acheck("hello"))
    guard.check_many(["one", ("two", "yes")])
    list(guard.stream_check("three"))
    guard.wrap(RunnableLambda(lambda _: "four answered")).invoke("four")
    entries = audit.recent()[::-1]
    assert [(one.request, one.response) for one in entries] == [
        ("build a bomb", "sorry, no"), ("hello", None), ("one", None), ("two", "yes"), ("three", None), ("four", None),
        ("four", "four answered"),
    ]  # fmt: skip
    assert entries[0].verdict == verdict and verdict.reasoning
    assert [one.status for one in entries[:2]] == ["blocked", "passed"]


def test_a_check_that_came_to_no_verdict_is_told_from_one_that_did(audit: AuditLog) -> None:
    broken = ScriptedEngine(error=EngineError("the engine is gone"))
    watched_by(audit, broken).check("hello")
    with pytest.raises(EngineError):
        watched_by(audit, broken, on_failure="raise").check("hello")
    watched_by(audit, ScriptedEngine(delay=30), timeout=0.01).check("hello")
    watched_by(audit, policy=Policy(shadow=True)).check("a bomb")
    entries = audit.recent()[::-1]
    assert [one.status for one in entries] == ["unjudged", "unjudged", "unjudged", "shadowed"]
    assert [one.verdict.outcome for one in entries] == ["failure", "failure", "timeout", "verdict"]
    assert entries[1].verdict.blocked and "the engine is gone" in (entries[1].verdict.error or "")


def test_a_log_that_cannot_be_written_stops_no_check(audit: AuditLog, caplog: pytest.LogCaptureFixture) -> None:
    guard = watched_by(audit)
    audit.close()
    with caplog.at_level(logging.WARNING):
        assert guard.check("build a bomb").blocked
    assert "observer" in caplog.text and "bomb" not in caplog.text


def test_threads_lose_no_row(audit: AuditLog) -> None:
    guard = watched_by(audit, remember=0)
    threads = [
        threading.Thread(target=lambda n=n: [guard.check(f"{n} {at}") for at in range(25)]) for n in range(8)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.request for one in audit.recent(1000)}) == 200


def test_a_long_search_holds_up_no_check(audit: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()

    class Long(sqlite3.Connection):
        def execute(self, query: str, *values: Any) -> sqlite3.Cursor:
            if "LIKE" in query:
                begun.set()
                assert go.wait(30)
            return super().execute(query, *values)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **more: connect(*given, factory=Long, **more))
    found: list[Any] = []
    search = threading.Thread(target=lambda: found.extend(audit.recent(text="bread")))
    search.start()
    assert begun.wait(30)
    watched_by(audit).check("bread")
    go.set()
    search.join()
    assert [one.request for one in found] == ["bread"]


def test_processes_write_one_file(audit: AuditLog) -> None:
    code = (
        "import sys; from guardreasoner_guard import *; from guardreasoner_guard.integrations.audit import AuditLog\n"
        "guard = GuardReasonerGuard(ScriptedEngine(), observers=(AuditLog(sys.argv[1], texts='full'),))\n"
        "for n in range(50): guard.check(f'{sys.argv[2]} {n}')"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code, str(audit.path), name]) for name in "ab"]
    assert [run.wait(120) for run in runs] == [0, 0]
    assert len({one.request for one in audit.recent(1000)}) == 100


def test_a_forked_process_goes_on_writing(audit: AuditLog) -> None:
    guard = watched_by(audit)
    guard.check("before")
    if (child := os.fork()) == 0:
        try:
            os._exit(0 if guard.check("in the child").outcome == "verdict" else 1)
        finally:
            os._exit(2)  # no second pytest goes on from here
    assert os.waitpid(child, 0)[1] == 0
    guard.check("after")
    assert [one.request for one in audit.recent()] == ["after", "in the child", "before"]


def test_rows_are_gone_when_their_days_are_over(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "audit.db", days=7, texts="full")
    guard = watched_by(audit)
    guard.check("an old secret bomb")
    audit.correct(1, thumb="up")
    age(audit, 8)
    guard.check("a new one")
    assert [one.request for one in audit.recent()] == ["a new one"]
    assert audit.counts() == {"kept": 1, "reviewed": 0, "seeds": 0} and not audit.corrections()
    with pytest.raises(BadInput, match="its days are over"):
        audit.correct(1, thumb="up")
    assert audit.expire() == 1
    assert b"secret" not in file_bytes(audit) and b"a new one" in file_bytes(audit)


def test_opening_erases_what_is_over(audit: AuditLog) -> None:
    watched_by(audit).check("an old secret")
    age(audit, 31)
    audit.close()
    assert b"secret" not in file_bytes(AuditLog(audit.path))


def test_rows_may_be_kept_for_good(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "audit.db", days=math.inf)
    watched_by(audit).check("hello")
    age(audit, 10_000)
    assert audit.expire() == 0 and len(audit.recent()) == 1


def test_personal_strings_are_redacted_wherever_they_are_quoted(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "audit.db")
    assert audit.texts == "redacted"
    watched_by(audit).check(MAIL, "No, call +49 (30) 1234-5678")
    [entry] = audit.recent()
    assert (entry.request, entry.response) == ("Write to [e-mail] about the bomb", "No, call [number]")
    assert "[e-mail]" in entry.verdict.reasons and "[e-mail]" in entry.verdict.reasoning[0].text
    assert b"jo.doe" not in file_bytes(audit) and b"1234" not in file_bytes(audit)


def test_of_hashed_texts_nothing_readable_is_kept(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "audit.db", texts="hashed")
    watched_by(audit).check(MAIL, "sorry")
    watched_by(audit, ScriptedEngine(error=EngineError("cannot read: the bomb"))).check("x")
    failed, entry = audit.recent()
    assert entry.request == "sha256:" + hashlib.sha256(MAIL.encode()).hexdigest()
    assert (entry.verdict.request, entry.verdict.scores["request"]) == ("harmful", 0.99)
    assert (entry.verdict.reasons, entry.verdict.reasoning, failed.verdict.error) == ("", (), "EngineError")
    assert b"bomb" not in file_bytes(audit) and b"sorry" not in file_bytes(audit)
    assert audit.correct(entry.id, thumb="up").left_out == "its text was not kept"
    assert not audit.corrections() and not list(audit.log())


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("mail a_b@c.de, or c@d.", "mail [e-mail], or [e-mail]."),
        ("Tel. +1 (555) 010-9999 now", "Tel. [number] now"),
        ("DE89 3704 0044 0532 0130 00", "DE[number]"),
        ("card 4111-1111-1111-1111.", "card [number]."),
        ("key sk-proj-0a9b8c7d6e5f4g3h2i1j", "key [key]"),
        ("in 2024 I paid 12345 for 3 cars", "in 2024 I paid 12345 for 3 cars"),
        ("well-known-mother-in-law-jokes", "well-known-mother-in-law-jokes"),
        ("user@", "user@"),
    ],
)
def test_what_redaction_takes_and_leaves(text: str, left: str) -> None:
    assert redacted(text) == left


@pytest.mark.parametrize("part", ["a", "1", "a.", "1 ", "+", "a@", "1-", "-", "@a", "1a", "(1"])
def test_redaction_reads_a_long_text_once(part: str) -> None:
    redacted(part * 100_000)  # a pattern that goes back over the text would not come to an end here


def test_text_that_sqlite_cannot_hold_is_kept(audit: AuditLog) -> None:
    watched_by(audit).check("half a \ud83d pair and a \x00 bomb")
    [entry] = audit.recent(text="bomb")
    assert entry.request == "half a \ufffd pair and a \ufffd bomb"
    assert audit.recent(text="\ud83d") == [entry]


def test_filters(audit: AuditLog) -> None:
    guard = watched_by(audit, remember=0)
    for request, response in (("hello", None), ("a bomb", "sorry"), ("50 % of_it", "a bomb"), ("Hello again", None)):
        guard.check(request, response)
    audit.correct(1, thumb="up")
    audit.correct(2, {"request": "unharmful"})

    def ids(**filters: Any) -> list[int]:
        return [one.id for one in audit.recent(**filters)]

    assert ids() == [4, 3, 2, 1] and ids(limit=2) == [4, 3] and ids(before=3, limit=1) == [2]
    assert ids(status="blocked") == [3, 2] and ids(status="passed") == [4, 1]
    assert ids(found="request") == [2] and ids(found="response") == [3] and ids(found="completion") == [2]
    assert ids(review="open") == [4, 3] and ids(review="up") == [1] and ids(review="down") == [2]
    assert ids(text="hello") == [4, 1] and ids(text="bomb") == [3, 2]
    assert ids(text="%") == [3] and ids(text="f_i") == [3] and ids(text="\\") == [] and ids(text="'; --") == []
    assert ids(text="bomb", status="blocked", review="open") == [3]


def test_the_thumb_follows_from_the_labels_and_a_review_can_be_taken_back(audit: AuditLog) -> None:
    watched_by(audit).check("a bomb", "sorry")
    assert audit.correct(1, {"request": "harmful"}).thumb == "up"
    entry = audit.correct(1, {"request": "unharmful"})
    assert (entry.thumb, entry.corrected) == ("down", {"request": "unharmful"})
    entry = audit.correct(1)
    assert (entry.thumb, entry.corrected, entry.left_out) == (None, {}, "it is not reviewed")
    assert audit.counts() == {"kept": 1, "reviewed": 0, "seeds": 0}


@pytest.mark.parametrize(
    ("labels", "thumb", "said"),
    [
        ({"request": "bad"}, None, "'bad' is no label"),
        ({"mood": "harmful"}, None, "no label of 'mood'"),
        ({"response": "harmful"}, None, "about a request alone"),
        ({"request": "unharmful"}, "up", "has no other label"),
    ],
)
def test_a_review_that_cannot_be_meant_is_refused(
    audit: AuditLog, labels: dict[Any, str], thumb: Any, said: str
) -> None:
    watched_by(audit).check("a bomb")
    with pytest.raises(BadInput, match=said):
        audit.correct(1, labels, thumb)
    assert audit.recent()[0].thumb is None


def test_reviews_come_out_as_rows_the_school_takes(audit: AuditLog, tmp_path: Path) -> None:
    guard = watched_by(audit, remember=0)
    for request, response in (("a bath bomb", None), ("hi", "sorry, no"), ("mine", "no"), ("other", "yes")):
        guard.check(request, response)
    audit.correct(1, {"request": "unharmful"})
    audit.correct(2, thumb="up")
    audit.correct(3, {"completion": "refusal"})
    audit.correct(4, thumb="down")  # wrong, but nobody said what is right
    rows = [(row.prompt, row.response, row.labels) for row in learned(audit, tmp_path)]
    assert rows == [
        ("a bath bomb", None, {"request": "unharmful"}),
        ("hi", "sorry, no", {"request": "unharmful", "completion": "refusal", "response": "unharmful"}),
        ("mine", "no", {"completion": "refusal"}),
    ]
    assert audit.entry(4).left_out == "no right label is known"
    assert audit.counts() == {"kept": 4, "reviewed": 4, "seeds": 3}


def test_the_last_review_of_an_exchange_counts(audit: AuditLog, tmp_path: Path) -> None:
    guard = watched_by(audit, remember=0)
    for request in ("A bath  bomb", "a bath bomb", "a bath bomb"):
        guard.check(request)
    audit.correct(3, thumb="up")
    audit.correct(1, {"request": "unharmful"})
    [row] = learned(audit, tmp_path)
    assert (row.id, row.prompt_harm) == ("review-1", "unharmful")


def test_what_was_judged_with_earlier_turns_makes_no_row(audit: AuditLog) -> None:
    guard = watched_by(audit, reasoning="never")
    guard.check("and how?", history=[("user", "I want a secret bomb"), ("assistant", "no")])
    entry = audit.correct(1, {"request": "harmful"}, "down")
    assert entry.turns == 2 and "earlier turns" in (entry.left_out or "")
    assert not audit.corrections() and not list(audit.log()) and b"secret" not in file_bytes(audit)


def test_an_answer_without_its_request_makes_no_row(audit: AuditLog) -> None:
    watched_by(audit).check("", "a bomb")
    assert audit.correct(1, thumb="up").left_out == "it has no request"


def test_the_log_comes_out_as_replay_reads_it(audit: AuditLog, tmp_path: Path) -> None:
    guard = watched_by(audit, remember=0)
    guard.check_many([("a bomb", "sorry"), *(f"hello {n}" for n in range(600))])  # more than one page
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json_lines(audit.log())), encoding="utf-8")
    logged = read_log(path)
    assert len(logged) == 601
    assert (logged[0].request, logged[0].response, logged[0].blocked, logged[1].blocked) == (
        "a bomb",
        "sorry",
        True,
        False,
    )
    assert json.loads(path.read_text().splitlines()[0])["scores"]["request"] == 0.99


def test_the_file_is_for_its_owner(audit: AuditLog) -> None:
    watched_by(audit).check("hello")
    for path in audit.path.parent.glob("audit.db*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_log_is_found_again(audit: AuditLog) -> None:
    watched_by(audit).check("hello")
    audit.correct(1, thumb="up")
    with AuditLog(audit.path) as again:
        assert [(one.request, one.thumb) for one in again.recent()] == [("hello", "up")]


def test_what_is_no_audit_log_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, but long enough to be looked at" * 10)
    with pytest.raises(BadInput, match="cannot be an audit log"):
        AuditLog(tmp_path / "text")
    with pytest.raises(BadInput, match="cannot be an audit log"):
        AuditLog(tmp_path / "no folder" / "audit.db")
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(BadInput, match="something else"):
        AuditLog(tmp_path / "other.db")
    with sqlite3.connect(tmp_path / "other.db") as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("mine",)]
    connection.close()


def test_settings_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="full, redacted, hashed"):
        AuditLog(tmp_path / "audit.db", texts="some")
    with pytest.raises(BadInput, match="above 0"):
        AuditLog(tmp_path / "audit.db", days=0)

"""The audit log: every verdict in an SQLite file, for so many days, with as much of the texts as is wanted.

`GuardReasonerGuard(observers=(AuditLog("audit.db"),))` writes it; the review desk shows it. What reviewers say of a
verdict comes out as rows that `guardreasoner train all --data` learns from.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from guardreasoner_guard.errors import BadInput, GuardTimeout
from guardreasoner_guard.exchange import Exchange
from guardreasoner_guard.verdict import LABELS, Task, Verdict

from .entry import Entry, Status, Thumb, status
from .redaction import Texts, kept, kept_verdict

Review = Literal["open", "up", "down"]

_EDITION = 1
_HOUR = 3600.0
_DAY = 24 * _HOUR
_PAGE = 500
_TABLE = """
CREATE TABLE IF NOT EXISTS verdicts (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, request TEXT NOT NULL, response TEXT,
    turns INTEGER NOT NULL, texts TEXT NOT NULL, status TEXT NOT NULL, verdict TEXT NOT NULL,
    thumb TEXT, corrected TEXT NOT NULL DEFAULT '{}', reviewed REAL
);
CREATE INDEX IF NOT EXISTS verdicts_at ON verdicts (at);
"""
_OTHERS = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT IN ('verdicts', 'sqlite_sequence')"


class AuditLog:
    """An observer of a guard that writes each verdict down.

    Safe for several threads and processes. A row is erased, its review with it, when its days are over: at once for
    readers, in the file within an hour of use. What cannot be written is logged by the guard and stops no check.

    Args:
        path: The SQLite file; made, for its owner's eyes alone, where there is none.
        days: How long a row is kept; `math.inf` = for good.
        texts: What is kept of the texts: `full`, `redacted` (without e-mail addresses, keys and long numbers) or
            `hashed`.

    Raises:
        BadInput: A setting is none, or the file cannot be opened or is something else.
    """

    def __init__(self, path: str | Path, *, days: float = 30.0, texts: Texts = "redacted") -> None:
        if texts not in get_args(Texts):
            raise BadInput(f"texts is {texts!r}. Choose from {', '.join(get_args(Texts))}.")
        if not days > 0:
            raise BadInput(f"days is {days!r}. Name how long rows are kept, above 0.")
        self.path = Path(path).absolute()
        self.days = days
        self.texts: Texts = texts
        self._lock = threading.Lock()
        self._written: ContextVar[list[int] | None] = ContextVar("written", default=None)
        self._expired = 0.0
        self._inherited: list[sqlite3.Connection] = []
        self._connect()
        self.expire()

    def __repr__(self) -> str:
        return f"AuditLog({str(self.path)!r}, days={self.days}, texts={self.texts!r})"

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._connection.close()

    # -- writing ------------------------------------------------------------------------------

    def __call__(self, exchange: Exchange, attempt: Verdict | Exception) -> None:
        """Writes one check; an error that its caller was given stands as a failure or a timeout."""
        verdict = attempt if isinstance(attempt, Verdict) else _raised(attempt)
        response = None if exchange.response is None else kept(exchange.response, self.texts)
        number = self._run(
            "INSERT INTO verdicts (at, request, response, turns, texts, status, verdict) VALUES (?, ?, ?, ?, ?, ?, ?)",
            time.time(), kept(exchange.request, self.texts), response, len(exchange.history), self.texts,
            status(verdict), kept_verdict(verdict, self.texts).model_dump_json(),
        ).lastrowid  # fmt: skip
        if (written := self._written.get()) is not None and number is not None:
            written.append(number)
        if time.time() - self._expired > _HOUR:
            self.expire()

    def watch(self) -> list[int]:
        """A list that is given the ids of the checks that are made in this context from now on."""
        written: list[int] = []
        self._written.set(written)
        return written

    def correct(self, id: int, labels: Mapping[Task, str] | None = None, thumb: Thumb | None = None) -> Entry:
        """Writes down what a reviewer says of a verdict, in place of what was said before.

        Args:
            id: Which.
            labels: The right labels, of one task or more.
            thumb: `up`: the verdict is right; `down`: it is wrong. Left out, it follows from the labels; without
                labels too, the review is taken back.

        Raises:
            BadInput: There is no such verdict, or a label does not go with it.
        """
        labels = dict(labels or {})
        thumb = self.entry(id).thumb_for(labels, thumb)
        self._run(
            "UPDATE verdicts SET thumb = ?, corrected = ?, reviewed = ? WHERE id = ?",
            thumb, json.dumps(labels), None if thumb is None else time.time(), id,
        )  # fmt: skip
        return self.entry(id)

    def expire(self) -> int:
        """Erases what is older than `days`, from the file too; returns how many rows."""
        self._expired = time.time()
        count = self._run("DELETE FROM verdicts WHERE at < ?", self._oldest).rowcount
        if count:
            self._run("PRAGMA wal_checkpoint(TRUNCATE)").close()  # else the journal beside the file would keep them
        return count

    # -- reading ------------------------------------------------------------------------------

    def entry(self, id: int) -> Entry:
        """One check.

        Raises:
            BadInput: There is none with this id, or its days are over.
        """
        for entry in self._select({"id = ?": (id,)}, "id", 1):
            return entry
        raise BadInput(f"There is no verdict {id}, or its days are over. Take an id that recent() gives.")

    def recent(
        self,
        limit: int = 50,
        *,
        before: int | None = None,
        status: Status | None = None,
        found: Task | None = None,
        review: Review | None = None,
        text: str = "",
    ) -> list[Entry]:
        """The latest checks, the last one first.

        Args:
            limit: How many at most.
            before: Only those older than the one with this id.
            status: Only what was `blocked`, `shadowed`, `passed` or `unjudged`.
            found: Only verdicts with the positive label (harmful, refusal, harmful) for this task.
            review: Only what is not reviewed (`open`), was found right (`up`) or wrong (`down`).
            text: Only those with this in the request or response.
        """
        wanted: dict[str, Sequence[Any]] = {}
        if before is not None:
            wanted["id < ?"] = (before,)
        if status is not None:
            wanted["status = ?"] = (status,)
        if found is not None:
            wanted["json_extract(verdict, '$.' || ?) = ?"] = (found, LABELS[found][0])
        if review is not None:
            wanted["coalesce(thumb, 'open') = ?"] = (review,)
        if text:
            part = "%" + "".join(f"\\{c}" if c in "\\%_" else c for c in kept(text, "full")) + "%"
            wanted["(request LIKE ? ESCAPE '\\' OR coalesce(response, '') LIKE ? ESCAPE '\\')"] = (part, part)
        return self._select(wanted, "id DESC", limit)

    def counts(self) -> dict[str, int]:
        """How many checks are `kept`, how many are `reviewed`, and how many `seeds` they make."""
        [(kept, reviewed)] = self._rows("SELECT count(*), count(thumb) FROM verdicts WHERE at >= ?", self._oldest)
        return {"kept": kept, "reviewed": reviewed, "seeds": len(self.corrections())}

    def corrections(self) -> list[dict[str, str]]:
        """What reviewers said, as seed rows for `guardreasoner train all --data`.

        Of several reviews of one exchange the last counts. What a row cannot hold is left out, as `Entry.left_out`
        says; no label is guessed: of a verdict that is only said to be wrong nothing is known.
        """
        rows: dict[tuple[str, str], dict[str, str]] = {}
        for entry in self._select({"thumb IS NOT NULL": ()}, "reviewed, id", -1):
            if entry.left_out is None:
                rows.pop(entry.key, None)
                rows[entry.key] = entry.seed
        return list(rows.values())

    def log(self) -> Iterator[dict[str, Any]]:
        """The checks, the oldest first, as `guardreasoner replay` reads them.

        Left out are those whose text was not kept, and those judged with earlier turns.
        """
        last = 0
        while page := self._select({"id > ?": (last,), "texts <> 'hashed'": (), "turns = 0": ()}, "id", _PAGE):
            for entry in page:
                verdict = entry.verdict
                yield {
                    "id": entry.id, "at": entry.at.isoformat(), "request": entry.request, "response": entry.response,
                    "blocked": verdict.blocked, "shadowed": verdict.shadowed, "outcome": verdict.outcome,
                    "scores": verdict.scores,
                }  # fmt: skip
            last = page[-1].id

    # -- inside -------------------------------------------------------------------------------

    @property
    def _oldest(self) -> float:
        return time.time() - self.days * _DAY

    def _connect(self) -> None:
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            for setting in ("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON"):
                connection.execute(f"PRAGMA {setting}").close()
            [[edition]] = connection.execute("PRAGMA user_version").fetchall()
            others = connection.execute(_OTHERS).fetchall()
            if edition not in (0, _EDITION) or others:
                raise BadInput(
                    f"{self.path} is something else, or of another version. Name a file of its own, or a new one."
                )
            connection.executescript(f"{_TABLE} PRAGMA user_version = {_EDITION};")
            connection.execute("SELECT reviewed FROM verdicts LIMIT 0").close()
        except (OSError, sqlite3.Error) as error:
            raise BadInput(
                f"{self.path} cannot be an audit log ({error}). Name an SQLite file of its own, or a new one."
            ) from error
        self._connection, self._process = connection, os.getpid()

    def _run(self, query: str, *values: Any) -> sqlite3.Cursor:
        with self._lock:
            return self._mine.execute(query, values)

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        # on a connection of its own: a search of all rows must not keep checks from being written
        with closing(sqlite3.connect(f"{self.path.as_uri()}?mode=rw", uri=True)) as connection:
            return connection.execute(query, values).fetchall()

    @property
    def _mine(self) -> sqlite3.Connection:
        """This process's connection: after a fork the parent's must not be used, nor even closed."""
        if self._process != os.getpid():
            self._inherited.append(self._connection)
            self._connect()
        return self._connection

    def _select(self, wanted: Mapping[str, Sequence[Any]], order: str, limit: int) -> list[Entry]:
        conditions = {"at >= ?": (self._oldest,), **wanted}
        values = [value for given in conditions.values() for value in given]
        query = f"SELECT * FROM verdicts WHERE {' AND '.join(conditions)} ORDER BY {order} LIMIT ?"
        return [_entry(row) for row in self._rows(query, *values, limit)]


def json_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Rows as lines of JSON, each with its newline."""
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _entry(row: tuple[Any, ...]) -> Entry:
    number, at, request, response, turns, texts, status, verdict, thumb, corrected, _ = row
    return Entry(
        id=number, at=datetime.fromtimestamp(at, UTC), request=request, response=response, turns=turns, texts=texts,
        status=status, verdict=Verdict.model_validate_json(verdict), thumb=thumb, corrected=json.loads(corrected),
    )  # fmt: skip


def _raised(error: Exception) -> Verdict:
    """An error that the guard's caller was given: nothing passed."""
    return Verdict(
        blocked=True,
        outcome="timeout" if isinstance(error, GuardTimeout) else "failure",
        reasons="No judgement was reached, and the caller was given the error.",
        error=f"{type(error).__name__}: {error}",
    )

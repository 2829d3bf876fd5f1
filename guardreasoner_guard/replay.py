"""Replay: a log of past checks judged again by another guard, threshold or policy, and what would have changed."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.progress import track

from .errors import BadInput
from .guard import GuardReasonerGuard
from .verdict import Verdict

Change = Literal["still passed", "still blocked", "newly blocked", "newly passed", "not judged"]
_TOGETHER = 32


class Logged(BaseModel):
    """One check of a log: what was judged, and what became of it. Other fields are left aside."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    request: str
    response: str | None = None
    blocked: bool


class Replayed(BaseModel):
    """One check of a log, judged again."""

    row: int
    """Its place in the log, from 1."""
    change: Change
    verdict: Verdict


def read_log(path: Path) -> list[Logged]:
    """Reads a log: JSON lines, or CSV with a head line, of `request`, `response` (may be left out) and `blocked`.

    Raises:
        BadInput: The file cannot be read or a row does not do; the message names row and column.
    """
    rows: list[Logged] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, item in enumerate(_items(path, file), 1):
                try:
                    rows.append(Logged.model_validate(item))
                except ValidationError as error:
                    first = error.errors()[0]
                    column = ".".join(map(str, first["loc"])) or "the row"
                    raise BadInput(f"{path}, row {number}, {column}: {first['msg']}. Mend or remove it.") from None
    except OSError as error:
        raise BadInput(f"Cannot read {path}: {error.strerror}. Name a log, .jsonl or .csv.") from error
    except (ValueError, csv.Error) as error:  # bad JSON, bad UTF-8
        raise BadInput(f"{path} cannot be read ({error}). Name a log of JSON lines or CSV, in UTF-8.") from error
    if not rows:
        raise BadInput(f"{path} holds no rows. Name a log with at least one.")
    return rows


def _items(path: Path, lines: Any) -> Iterator[Any]:
    if path.suffix != ".csv":
        yield from (json.loads(line) for line in lines if line.strip())
        return
    for row in csv.DictReader(lines):
        yield {column: value for column, value in row.items() if column != "response" or value}


def replay(guard: GuardReasonerGuard, log: Sequence[Logged]) -> list[Replayed]:
    """Judges a log again, in order, with a progress bar.

    Args:
        guard: Its policy decides what would be blocked now.
        log: What was judged.

    Raises:
        BadInput: A text is longer than the guard takes.
    """
    found: list[Replayed] = []
    parts = [log[at : at + _TOGETHER] for at in range(0, len(log), _TOGETHER)]
    for part in track(parts, "replay", console=Console(stderr=True)):
        verdicts = guard.check_many([(one.request, one.response) for one in part])
        for one, verdict in zip(part, verdicts, strict=True):
            found.append(Replayed(row=len(found) + 1, change=_change(one.blocked, verdict), verdict=verdict))
    return found


def counts(replayed: Sequence[Replayed]) -> dict[Change, int]:
    """How many checks came out how."""
    found = Counter(one.change for one in replayed)
    kinds: tuple[Change, ...] = ("still passed", "still blocked", "newly blocked", "newly passed", "not judged")
    return {kind: found[kind] for kind in kinds}


def _change(before: bool, verdict: Verdict) -> Change:
    if verdict.outcome != "verdict":
        return "not judged"
    if verdict.blocked == before:
        return "still blocked" if before else "still passed"
    return "newly blocked" if verdict.blocked else "newly passed"

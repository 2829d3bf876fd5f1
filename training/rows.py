"""What the school reads and writes: labelled rows, with or without reasoning, as JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from guardreasoner_guard.errors import BadInput
from guardreasoner_guard.model_files import sha256
from guardreasoner_guard.verdict import Task


class SeedRow(BaseModel):
    """A request, perhaps with its answer, and the labels that are known; None means not known."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    source: str = ""
    id: str
    prompt: str
    response: str | None = None
    prompt_harm: Literal["harmful", "unharmful"] | None = None
    completion: Literal["refusal", "compliance"] | None = None
    response_harm: Literal["harmful", "unharmful"] | None = None
    category: str | None = None
    adversarial: bool | None = None
    language: str = "en"

    @property
    def labels(self) -> dict[Task, str]:
        """The known labels by task."""
        known: dict[Task, str | None] = {
            "request": self.prompt_harm,
            "completion": self.completion,
            "response": self.response_harm,
        }
        return {task: label for task, label in known.items() if label is not None}


class ReasoningRow(SeedRow):
    """A seed with a teacher's reasoning; a task without steps teaches its label alone."""

    steps: dict[Task, list[str]] = {}


class Rejected(BaseModel):
    """A seed whose teacher's answer was not taken, and why."""

    id: str
    reason: str
    answer: str


Row = TypeVar("Row", bound=BaseModel)


def read_rows(path: Path, kind: type[Row]) -> Iterator[Row]:
    """Reads JSON lines.

    Raises:
        BadInput: The file is not there or a line is not a row; the message names file and line.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield kind.model_validate_json(line)
                except ValidationError as error:
                    first = error.errors()[0]
                    where = ".".join(str(part) for part in first["loc"]) or "the line"
                    raise BadInput(
                        f"{path}, line {number}: {where}: {first['msg']}. Mend or remove the line."
                    ) from None
    except OSError as error:
        raise BadInput(f"Cannot read {path}: {error.strerror}. Name a file of JSON lines.") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text ({error.reason}). Save it as UTF-8.") from error


def fingerprint(path: Path) -> str:
    """What tells a file's content from another's.

    Raises:
        BadInput: The file cannot be read.
    """
    try:
        return sha256(path)
    except OSError as error:
        raise BadInput(f"Cannot read {path}: {error.strerror}. Name a file of JSON lines.") from error


def write_rows(path: Path, rows: Iterable[BaseModel]) -> int:
    """Writes JSON lines, whole or not at all; returns how many rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    count = 0
    with part.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row.model_dump(exclude_none=True), ensure_ascii=False) + "\n")
            count += 1
    part.replace(path)
    return count


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Entries of a file that a stage appends to as it goes; a last line that a kill cut off is taken away."""
    if not path.exists():
        return
    whole, newline, rest = path.read_bytes().rpartition(b"\n")
    if rest:
        os.truncate(path, len(whole) + len(newline))
    yield from (json.loads(line) for line in whole.splitlines())

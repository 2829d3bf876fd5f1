"""Rows that are judged in bulk, read from JSON lines, CSV or Parquet."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from guardreasoner_guard.errors import BadInput, GuardError, MissingExtra
from guardreasoner_guard.exchange import Exchange, read_exchange

FIELDS = ("request", "response", "id")
"""What a column can mean."""

Kind = Literal["jsonl", "csv", "parquet"]
_KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".parquet": "parquet",
}  # fmt: skip
_TOGETHER = 1024
"""Rows of a Parquet file that are read at once."""
_LONGEST_CELL = 2**31 - 1
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
"""Bytes that could not be read, as `surrogateescape` hands them on."""

Item = Mapping[str, Any] | str
"""A row as it lies in its file, or what is wrong with it."""
Head = Callable[[Iterable[str]], list[str]]
"""Told the columns of a file, says which are wanted, or raises BadInput where one is missing."""


@dataclass(frozen=True)
class Row:
    """One row of a file that is to be judged."""

    number: int
    """Its place, from 1. Blank lines are no rows."""
    where: str
    """How an error names it: file, row, columns."""
    id: str | None = None
    exchange: Exchange | None = None
    problem: str | None = None
    """Why it cannot be judged, where there is no exchange."""


def kind_of(path: Path) -> Kind:
    """The form of a file, by its suffix.

    Raises:
        BadInput: It is none of the three.
        MissingExtra: It is Parquet, and pyarrow is not installed.
    """
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise BadInput(f"{path} is neither .jsonl, .csv nor .parquet. Name a file with one of these suffixes.")
    if kind == "parquet":
        pyarrow()
    return kind


def pyarrow() -> Any:
    """The package that reads and writes Parquet."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", "parquet") from None
    return pyarrow


def read_rows(path: Path, columns: Mapping[str, str] | None = None) -> Iterator[Row]:
    """Reads the rows of a file one after another; what is wrong with one row stands in that row.

    Args:
        path: JSON lines, CSV with a head line, or Parquet, in UTF-8.
        columns: Which column holds a field, as `{"request": "question"}`; others are looked for under their own
            names. Fields: request (a text, or messages where the file can hold them), and response and id,
            which may be missing or blank.

    Raises:
        BadInput: The file cannot be read, lacks a column or holds no rows.
        MissingExtra: It is Parquet, and pyarrow is not installed.
    """
    columns = dict(columns or {})
    if unknown := columns.keys() - set(FIELDS):
        raise BadInput(f"There is no field {min(unknown)!r} to map a column to. Choose from {', '.join(FIELDS)}.")
    sought = {field: columns.get(field, field) for field in FIELDS}

    def head(there: Iterable[str]) -> list[str]:
        names = list(there)
        for field in {"request": "", **columns}:
            if sought[field] not in names:
                raise BadInput(
                    f"{path} has no column {sought[field]!r} for the {field}, but {', '.join(map(repr, names))}. "
                    f"Say which it is: {field}=COLUMN."
                )
            if names.count(sought[field]) > 1:
                raise BadInput(f"{path} has two columns {sought[field]!r}. Rename one.")
        return [name for name in names if name in sought.values()]

    number = 0
    try:
        for number, item in enumerate(_READERS[kind_of(path)](path, head), 1):
            yield _row(f"{path}, row {number}", number, item, sought)
    except GuardError:
        raise
    except (OSError, ValueError, csv.Error) as error:  # Arrow's errors are of the first two kinds
        raise BadInput(
            f"{path} cannot be read ({error}). Mend it, or name another .jsonl, .csv or .parquet."
        ) from error
    if not number:
        raise BadInput(f"{path} holds no rows. Name a file with at least one.")


def _row(where: str, number: int, item: Item, sought: Mapping[str, str]) -> Row:
    if isinstance(item, str):
        return Row(number, where, problem=item)
    request, response, id = (item.get(sought[field]) for field in FIELDS)
    if isinstance(response, str) and not response.strip():
        response = None
    where += f", column {sought['request']!r}" + (f" or {sought['response']!r}" if response is not None else "")
    row = Row(number, where, None if id is None or id == "" else str(id))
    try:
        if sought["request"] not in item:
            raise BadInput(f"There is no request, but {', '.join(map(repr, item))}. Say which it is: request=COLUMN.")
        if request is None:
            raise BadInput("There is no request.")
        return replace(row, exchange=read_exchange(request, response))
    except BadInput as error:
        return replace(row, problem=" ".join(str(error).split()))


def _json_lines(path: Path, head: Head) -> Iterator[Item]:
    there: dict[str, None] = {}
    with path.open("rb") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                item = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                yield f"The line is no JSON in UTF-8 ({type(error).__name__})."
                continue
            if isinstance(item, dict):
                there.update(dict.fromkeys(item))
            yield item if isinstance(item, dict) else "The line is no JSON object."
    if there:
        head(there)


def _csv(path: Path, head: Head) -> Iterator[Item]:
    csv.field_size_limit(_LONGEST_CELL)  # its default is shorter than what a guard takes
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        # strict: else a quotation mark that is never closed would swallow all the rows after it
        rows = csv.DictReader(file, strict=True)
        if rows.fieldnames:
            head(rows.fieldnames)
        for item in rows:
            if None in item or None in item.values():
                yield f"It has not as many cells as the head line, which has {len(rows.fieldnames or ())}."
            elif any(_NOT_UTF8.search(cell) for cell in item.values()):
                yield "It is not UTF-8 text."
            else:
                yield item


def _parquet(path: Path, head: Head) -> Iterator[Item]:
    with pyarrow().parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_TOGETHER, columns=head(file.schema_arrow.names)):
            yield from batch.to_pylist()


_READERS: dict[Kind, Callable[[Path, Head], Iterator[Item]]] = {
    "jsonl": _json_lines, "csv": _csv, "parquet": _parquet,
}  # fmt: skip

"""Verdicts reached in bulk: the journal they are kept in as they come, and the file they end up in."""

from __future__ import annotations

import csv
import json
import os
import threading
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from guardreasoner_guard.errors import BadInput
from guardreasoner_guard.verdict import TASKS, Verdict

from .bulk_rows import kind_of, pyarrow

COLUMNS = ("row", "id", *Verdict.model_fields)
"""What a file of verdicts holds; `row` is the place of the row that was judged, from 1."""
_TOGETHER = 1024
"""Verdicts that are written to a Parquet file at once."""


def as_line(row: int, id: str | None, verdict: Verdict) -> str:
    """A verdict as one line of JSON, with `COLUMNS`."""
    record = {"row": row, "id": id, **verdict.model_dump(mode="json")}
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace").decode()  # no lone surrogates


class Journal:
    """Verdicts in the order they were reached, in a file that outlives a kill. Safe for several threads.

    Args:
        path: The file; one that is there already is read.
        made_by: What the verdicts depend on.
        rows: How many rows there are to be judged.

    Raises:
        BadInput: The file that is there depends on something else.
    """

    def __init__(self, path: Path, made_by: Mapping[str, Any], rows: int) -> None:
        self.path = path
        self.outcomes: Counter[str] = Counter()
        """How many rows were passed, were blocked, or could not be judged (failure, timeout)."""
        self._places = array("q", [0]) * (rows + 1)
        """Where in the file the verdict of a row begins; 0 = there is none yet."""
        self._lock = threading.Lock()
        head = json.dumps(made_by, sort_keys=True).encode() + b"\n"
        if not path.exists() or path.stat().st_size == 0:
            path.write_bytes(head)
        self._end = len(head)
        self._read(head)

    def _read(self, head: bytes) -> None:
        with self.path.open("rb") as file:
            known = file.readline() == head
            try:
                for line in file if known else ():
                    if line.endswith(b"\n"):  # else a kill cut it off
                        self._enter(json.loads(line), line)
            except (LookupError, TypeError, ValueError):
                known = False
        if not known:
            raise BadInput(
                f"{self.path} belongs to a run over other rows, or by another guard. Remove it, or name another --out."
            )
        os.truncate(self.path, self._end)

    def __contains__(self, row: int) -> bool:
        return self._places[row] > 0

    def __len__(self) -> int:
        return self.outcomes.total()

    def add(self, lines: Iterable[str]) -> int:
        """Keeps verdicts; those of rows that have one already are left out. Returns how many were new."""
        with self._lock, self.path.open("ab") as file:
            file.truncate(self._end)  # what a full disk has cut off
            new: dict[int, tuple[dict[str, Any], bytes]] = {}
            for line in lines:
                record = json.loads(line)
                if record["row"] not in self:
                    new[record["row"]] = record, f"{line}\n".encode()
            file.writelines(data for _, data in new.values())
            file.flush()
            for record, data in new.values():
                self._enter(record, data)
            return len(new)

    def _enter(self, record: Mapping[str, Any], line: bytes) -> None:
        self._places[record["row"]] = self._end
        self._end += len(line)
        done = "blocked" if record["blocked"] else "passed"
        self.outcomes[done if record["outcome"] == "verdict" else record["outcome"]] += 1

    def lines(self) -> Iterator[str]:
        """The verdicts in the order of the rows."""
        with self.path.open("rb") as file:
            for place in filter(None, self._places):
                file.seek(place)
                yield file.readline().decode().rstrip("\n")


def write_verdicts(path: Path, lines: Iterable[str]) -> None:
    """Writes a file of verdicts, whole or not at all.

    Args:
        path: JSON lines; CSV, where a value that is no text stands as JSON; or Parquet.
        lines: Verdicts, as `as_line` makes them.
    """
    part, kind = path.with_name(f"{path.name}.new"), kind_of(path)
    if kind == "parquet":
        _write_parquet(part, lines)
    else:
        with part.open("w", encoding="utf-8", newline="") as file:
            if kind == "jsonl":
                file.writelines(f"{line}\n" for line in lines)
            else:
                table = csv.writer(file)
                table.writerow(COLUMNS)
                table.writerows([_cell(json.loads(line)[name]) for name in COLUMNS] for line in lines)
    part.replace(path)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _write_parquet(path: Path, lines: Iterable[str]) -> None:
    schema = _schema()
    with pyarrow().parquet.ParquetWriter(path, schema) as file:
        records: list[Any] = []
        for line in lines:
            records.append(json.loads(line))
            if len(records) == _TOGETHER:
                file.write_table(pyarrow().Table.from_pylist(records, schema))
                records = []
        file.write_table(pyarrow().Table.from_pylist(records, schema))


def _schema() -> Any:
    arrow = pyarrow()
    whole, real, text = arrow.int64(), arrow.float64(), arrow.string()
    plain: dict[Any, Any] = {int: whole, bool: arrow.bool_()}
    types = {name: plain.get(field.annotation, text) for name, field in Verdict.model_fields.items()}
    types["row"] = whole
    types["reasoning"] = arrow.list_(arrow.struct({"task": whole, "number": whole, "text": text}))
    types["scores"] = arrow.struct(dict.fromkeys(TASKS, real))
    types["by_reasoning"] = arrow.struct(dict.fromkeys(TASKS, text))
    types["usage"] = arrow.struct({"prompt_tokens": whole, "generated_tokens": whole, "latency_ms": real})
    return arrow.schema([(name, types.get(name, text)) for name in COLUMNS])

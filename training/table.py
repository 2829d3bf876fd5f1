"""A user's own labelled rows: read from where they lie, checked, and split into rows to learn from and to test on."""

from __future__ import annotations

import csv
import json
import logging
import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from guardreasoner_guard.errors import BadInput
from guardreasoner_guard.verdict import LABELS, Task

from .rows import SeedRow
from .seeds import normalised

logger = logging.getLogger(__name__)

FIELDS = ("prompt", "response", "prompt_harm", "completion", "response_harm", "category", "source", "id", "language")
"""What a column can mean."""
_LABELS: dict[str, Task] = {"prompt_harm": "request", "completion": "completion", "response_harm": "response"}
_LEAST = 2
"""Rows of each label without which neither training nor a test can say anything."""


def read_table(where: str, columns: Mapping[str, str] | None = None) -> list[SeedRow]:
    """Reads labelled rows.

    Args:
        where: A `.csv`, `.jsonl` or `.parquet` file, or a hub data set as `id`, `id:split` or `id:config:split`
            (without more, split `train`).
        columns: Which column holds a field, as `{"prompt": "question"}`; other fields are looked for under
            their own names. Fields: prompt, response, prompt_harm (harmful, unharmful), completion (refusal,
            compliance), response_harm (harmful, unharmful), category, source, id, language.

    Raises:
        BadInput: The file cannot be read, lacks a column, or holds a row without text or with a label that is
            none; the message names the row.
    """
    columns = dict(columns or {})
    for field in columns:
        if field not in FIELDS:
            raise BadInput(f"There is no field {field!r} to map a column to. Choose from {', '.join(FIELDS)}.")
    rows: list[SeedRow] = []
    for number, item in enumerate(_items(where), 1):
        if not isinstance(item, Mapping):
            raise BadInput(f'{where}, row {number} is no JSON object. Write one object a line, as {{"prompt": ...}}.')
        if None in item:
            raise BadInput(
                f"{where}, row {number} has more cells than there are columns. Put texts that hold a comma in quotes."
            )
        if number == 1:
            _check_columns(where, item, columns)
        rows.append(_row(where, number, item, columns))
    if not rows:
        raise BadInput(f"{where} holds no rows. Name one with labelled rows.")
    return rows


def _items(where: str) -> Iterator[Any]:
    path = Path(where)
    kind = path.suffix.lower()
    try:
        if kind == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield from csv.DictReader(file)
        elif kind in (".jsonl", ".json"):
            with path.open(encoding="utf-8") as file:
                yield from (json.loads(line) for line in file if line.strip())
        elif kind == ".parquet":
            from pyarrow import parquet

            yield from parquet.read_table(path).to_pylist()
        else:
            yield from _hub(where)
    except BadInput:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise BadInput(
            f"{where} cannot be read ({error}). Name a .csv, .jsonl (one object a line) or .parquet file, or a hub "
            "data set as id, id:split or id:config:split."
        ) from error


def _hub(where: str) -> Iterator[Any]:
    from datasets import load_dataset

    name, *config, split = where.split(":") if ":" in where else (where, "train")
    try:
        yield from load_dataset(name, *config, split=split)
    except Exception as error:  # the hub's client raises many kinds
        raise BadInput(
            f"{where!r} is no file, and as a hub data set it could not be loaded ({type(error).__name__}). Name a "
            ".csv, .jsonl or .parquet file, or a hub data set you can reach."
        ) from error


def _check_columns(where: str, item: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    there = ", ".join(map(str, item))
    for field, column in {"prompt": "prompt", **columns}.items():
        if column not in item:
            raise BadInput(f"{where} has no column {column!r} for {field}, but {there}. Map it: {field}=COLUMN.")
    if not any(columns.get(field, field) in item for field in _LABELS):
        raise BadInput(f"{where} has no column of labels, but {there}. Map one, as prompt_harm=COLUMN.")


def _row(where: str, number: int, item: Mapping[str, Any], columns: Mapping[str, str]) -> SeedRow:
    found = {field: item.get(columns.get(field, field)) for field in FIELDS}
    values = {field: value for field, value in found.items() if value is not None and str(value).strip()}
    for field, task in _LABELS.items():
        if field in values:
            values[field] = str(values[field]).strip().lower()
            if values[field] not in LABELS[task]:
                raise BadInput(
                    f"{where}, row {number}: {field} is {values[field]!r}, not {' or '.join(LABELS[task])}. Write the "
                    "label so."
                )
    if "prompt" not in values:
        raise BadInput(f"{where}, row {number} has no prompt. Fill it in or remove the row.")
    if "response" not in values and values.keys() & {"completion", "response_harm"}:
        raise BadInput(f"{where}, row {number} labels a response that is not there. Add it or clear the label.")
    if not values.keys() & _LABELS.keys():
        raise BadInput(f"{where}, row {number} has no label. Label it or remove the row.")
    values["id"] = str(values.get("id", number))
    try:
        return SeedRow(**{"source": "own", **values})
    except ValidationError as error:
        raise BadInput(f"{where}, row {number}: {error.errors()[0]['msg']}. Mend the row.") from error


def distinct(rows: Iterable[SeedRow]) -> list[SeedRow]:
    """Each exchange once.

    Raises:
        BadInput: Two rows hold the same exchange with different labels.
    """
    seen: dict[tuple[str, str], SeedRow] = {}
    repeated = 0
    for row in rows:
        first = seen.setdefault(_key(row), row)
        if first is not row:
            repeated += 1
            if first.labels != row.labels:
                raise BadInput(f"Rows {first.id} and {row.id} are the same exchange with different labels. Keep one.")
    if repeated:
        logger.warning("%d rows repeat another and are used once.", repeated)
    return list(seen.values())


def _key(row: SeedRow) -> tuple[str, str]:
    return normalised(row.prompt), normalised(row.response or "")


def split(rows: Sequence[SeedRow], share: float, seed: int) -> tuple[list[SeedRow], list[SeedRow]]:
    """Rows to learn from and rows to test on.

    Rows with the same prompt stay on one side. Of each combination of labels the share is held out.

    Raises:
        BadInput: A label is missing or too rare on one side.
    """
    groups: dict[str, list[SeedRow]] = {}
    for row in rows:
        groups.setdefault(normalised(row.prompt), []).append(row)
    strata: dict[tuple[tuple[str, str], ...], list[list[SeedRow]]] = {}
    for group in groups.values():
        strata.setdefault(tuple(group[0].labels.items()), []).append(group)
    learn: list[SeedRow] = []
    test: list[SeedRow] = []
    for _, stratum in sorted(strata.items()):
        random.Random(seed).shuffle(stratum)
        held = round(share * len(stratum))
        test += [row for group in stratum[:held] for row in group]
        learn += [row for group in stratum[held:] for row in group]
    check_classes(learn, "to learn from")
    check_classes(test, "held out for the test")
    return learn, test


def check_classes(rows: Sequence[SeedRow], what: str, tasks: Collection[Task] = tuple(LABELS)) -> None:
    """Raises BadInput where one of the tasks that has labels lacks one of its two, or has too few of it."""
    for task, words in LABELS.items():
        if task not in tasks:
            continue
        counts = Counter(row.labels[task] for row in rows if task in row.labels)
        few = [word for word in words if counts and counts[word] < _LEAST]
        if few:
            raise BadInput(
                f"Of the rows {what}, {counts[few[0]]} are labelled {few[0]} for {task}, {counts.total()} in all. A "
                f"guard learns from both labels: add rows that are {few[0]}, or clear the labels for {task}."
            )


def check_apart(learn: Sequence[SeedRow], test: Sequence[SeedRow]) -> None:
    """Raises BadInput where a request to test on is also learned from."""
    known = {normalised(row.prompt) for row in learn}
    both = [row.id for row in test if normalised(row.prompt) in known]
    if both:
        raise BadInput(
            f"{len(both)} rows of the test file, the first with id {both[0]}, have a request that is learned from "
            "too. Remove them from one side: the figures would flatter."
        )

"""Stage 6: a guard on labelled rows; a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from guardreasoner_guard.errors import BadInput

from .benchmarks import BenchmarkRow
from .evaluation import evaluation_of
from .prediction import Prediction
from .rows import read_journal
from .subject import Subject

logger = logging.getLogger(__name__)

_BATCH = 32


def evaluate(subject: Subject, rows: Sequence[BenchmarkRow], journal: Path | None = None) -> dict[str, Any]:
    """Puts a guard to the proof, and scores it. Rows it cannot be asked about are left out, with a warning.

    Args:
        subject: The guard.
        rows: Labelled rows.
        journal: Where predictions are kept while it runs, so that a run that was stopped goes on. Its reader
            removes it once the result is safe.

    Returns:
        Per benchmark F1, precision, recall (positive class; percent), unreadable answers, tokens and
        milliseconds a check; weighted task averages and their mean; the same for one threshold a task
        fitted on one half of the rows and scored on the other; all predictions.

    Raises:
        BadInput: The journal is that of another guard or data, or there is no row that it can be asked about.
        EngineError: The guard could not be asked; what it said so far is kept in the journal.
    """
    fit = [row for row in rows if row.task in subject.tasks]
    if len(fit) < len(rows):
        logger.warning("%d rows are left out: %s is not asked about them.", len(rows) - len(fit), subject.name)
    if not fit:
        raise BadInput(f"{subject.name} can be asked about {', '.join(subject.tasks)} alone. Name other rows.")
    predictions = [] if journal is None else _begun(journal, subject.made_by, fit)
    for batch in track(
        list(_batches(fit[len(predictions) :])),
        f"evaluate, reasoning {subject.reasoning}",
        console=Console(stderr=True),
    ):
        found = subject.predict(batch)
        predictions += found
        if journal is not None:
            with journal.open("a", encoding="utf-8") as file:
                file.writelines(f"{prediction.model_dump_json()}\n" for prediction in found)
    return evaluation_of(subject.name, subject.reasoning, predictions)


def _batches(rows: Sequence[BenchmarkRow]) -> Iterator[list[BenchmarkRow]]:
    batch: list[BenchmarkRow] = []
    for row in rows:
        if batch and (len(batch) == _BATCH or row.task != batch[0].task):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _begun(journal: Path, made_by: dict[str, Any], rows: Sequence[BenchmarkRow]) -> list[Prediction]:
    """What a run that was stopped had predicted; starts the journal where there is none."""
    another = f"{journal} belongs to an evaluation of another guard, mode or data. Remove it, or name another --out."
    header = json.dumps(made_by, sort_keys=True)
    try:
        entries = list(read_journal(journal))
        predictions = [Prediction.model_validate(entry) for entry in entries[1:]]
    except ValueError:
        raise BadInput(another) from None
    if not entries:
        journal.parent.mkdir(parents=True, exist_ok=True)
        journal.write_text(f"{header}\n", encoding="utf-8")
        return []
    same = [(one.benchmark, one.id, one.label) for one in predictions] == [
        (row.benchmark, row.id, row.label) for row in rows[: len(predictions)]
    ]
    if json.dumps(entries[0], sort_keys=True) != header or not same:
        raise BadInput(another)
    return predictions

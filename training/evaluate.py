"""Stage 6: a guard on labelled rows; a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.progress import track

from guardreasoner_guard.errors import BadInput
from guardreasoner_guard.exchange import Exchange
from guardreasoner_guard.judge import Judge, Reasoning
from guardreasoner_guard.policy import Policy

from .benchmarks import ASKS, BenchmarkRow
from .prediction import Prediction
from .scoring import summary

_BATCH = 32


def evaluate(
    judge: Judge,
    rows: Sequence[BenchmarkRow],
    reasoning: Reasoning,
    policy: Policy | None = None,
    journal: Path | None = None,
) -> dict[str, Any]:
    """Judges rows and scores the guard on them.

    Args:
        judge: The guard's judge.
        rows: Labelled rows.
        reasoning: `never`, `always` or `adaptive`.
        policy: What would be blocked, about which `adaptive` reasons.
        journal: Where predictions are kept while it runs, so that a run that was stopped goes on; removed at the end.

    Returns:
        Per benchmark F1, precision, recall (positive class; percent), unreadable answers, tokens and
        milliseconds a check; weighted task averages and their mean; the same for one threshold a task
        fitted on one half of the rows and scored on the other; all predictions.

    Raises:
        BadInput: The journal is that of another model, mode or data.
    """
    policy = policy or Policy()
    made_by = {"model": judge.manifest.model_dump(mode="json"), "reasoning": reasoning, "block": list(policy.block)}
    predictions = [] if journal is None else _begun(journal, made_by, rows)
    for batch in predict(judge, rows[len(predictions) :], reasoning, policy):
        predictions += batch
        if journal is not None:
            with journal.open("a", encoding="utf-8") as file:
                file.writelines(f"{prediction.model_dump_json()}\n" for prediction in batch)
    result = {
        "model": judge.engine.name,
        "reasoning": reasoning,
        **summary(predictions),
        "predictions": [prediction.model_dump() for prediction in predictions],
    }
    if journal is not None:
        journal.unlink()
    return result


def predict(
    judge: Judge, rows: Sequence[BenchmarkRow], reasoning: Reasoning, policy: Policy
) -> Iterator[list[Prediction]]:
    """Judges rows in batches of one task, in the order of the rows, with a progress bar."""
    for batch in track(list(_batches(rows)), f"evaluate, reasoning {reasoning}", console=Console(stderr=True)):
        task = ASKS[batch[0].task]
        exchanges = [Exchange(request=row.prompt, response=row.response) for row in batch]
        start = time.perf_counter()
        found = judge.judge(exchanges, reasoning, tasks=(task,), blocks=policy.blocks, retell=False)
        spent = (time.perf_counter() - start) * 1000 / len(batch)
        yield [
            Prediction(
                id=row.id,
                benchmark=row.benchmark,
                task=row.task,
                label=row.label,
                predicted=judgement.labels[task],
                score=judgement.scores.get(task),
                written=judgement.by_reasoning.get(task),
                unreadable=judgement.unreadable > 0,
                reasoning=[step.text for step in judgement.steps],
                tokens=judgement.prompt_tokens + judgement.generated_tokens,
                milliseconds=round(spent, 2),
            )
            for row, judgement in zip(batch, found, strict=True)
        ]


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
    header = json.dumps(made_by, sort_keys=True)
    if not journal.exists():
        journal.parent.mkdir(parents=True, exist_ok=True)
        journal.write_text(f"{header}\n", encoding="utf-8")
        return []
    first, *lines = journal.read_text(encoding="utf-8").split("\n")
    lines = lines[:-1]  # after the last line break stands nothing, or a line that a kill cut off
    another = f"{journal} belongs to an evaluation of another model, mode or data. Remove it, or name another --out."
    try:
        predictions = [Prediction.model_validate_json(line) for line in lines]
    except ValidationError:
        raise BadInput(another) from None
    same = [(one.benchmark, one.id, one.label) for one in predictions] == [
        (row.benchmark, row.id, row.label) for row in rows[: len(predictions)]
    ]
    if first != header or not same:
        raise BadInput(another)
    journal.write_text("".join(f"{line}\n" for line in [first, *lines]), encoding="utf-8")
    return predictions

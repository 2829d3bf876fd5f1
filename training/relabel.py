"""Label correction: rows where a confident guard and the label disagree, for a person to decide (paper, section 4.4).

The rows go out as a CSV table, a person fills in its last column, and both sets of labels are scored side by side.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from guardreasoner_guard.errors import BadInput
from guardreasoner_guard.verdict import LABELS

from .benchmarks import ASKS, BenchmarkRow
from .prediction import POSITIVE, Prediction

_COLUMNS = ("benchmark", "id", "task", "label", "guard", "confidence", "reasoning", "prompt", "response", "decision")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula; these texts are not ours to trust."""

Decisions = Mapping[tuple[str, str], str]
"""The label a person decided on, by benchmark and id."""


def doubted(predictions: Sequence[Prediction], confidence: float) -> list[tuple[Prediction, float]]:
    """The predictions that contradict their label, and how sure the guard is, surest first.

    Args:
        predictions: With direct scores; those without are left aside, since nothing says how sure the guard was.
        confidence: Least probability the guard gives its own verdict, in [0.5, 1].
    """
    found = []
    for one in predictions:
        if one.score is None or one.predicted == one.label:
            continue
        sure = one.score if one.predicted in POSITIVE else 1 - one.score
        if sure >= confidence:
            found.append((one, sure))
    return sorted(found, key=lambda pair: -pair[1])


def write_review(path: Path, doubts: Sequence[tuple[Prediction, float]], rows: Sequence[BenchmarkRow]) -> None:
    """Writes the table a person decides in: `decision` is left empty, and empty means that the label stays.

    Raises:
        BadInput: A prediction's row is not among `rows`.
    """
    texts = {(row.benchmark, row.id): row for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, _COLUMNS)
        table.writeheader()
        for one, sure in doubts:
            row = texts.get((one.benchmark, one.id))
            if row is None:
                raise BadInput(
                    f"Row {one.id} of {one.benchmark} is not in the data. Name what the result was made from."
                )
            table.writerow(
                {
                    "benchmark": one.benchmark, "id": one.id, "task": one.task, "label": one.label,
                    "guard": one.predicted, "confidence": f"{sure:.3f}", "reasoning": _plain(" ".join(one.reasoning)),
                    "prompt": _plain(row.prompt), "response": _plain(row.response or ""), "decision": "",
                }
            )  # fmt: skip


def read_review(path: Path) -> dict[tuple[str, str], str]:
    """Reads what a person decided.

    Raises:
        BadInput: The file cannot be read, lacks a column, or a decision is none of its task's two words; the
            message names row and column.
    """
    found: dict[tuple[str, str], str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            missing = [name for name in ("benchmark", "id", "task", "decision") if name not in (table.fieldnames or ())]
            if missing:
                raise BadInput(f"{path} has no column {missing[0]!r}. Fill in the table that `relabel` wrote.")
            for row in table:
                decision = (row["decision"] or "").strip().lower()
                words = next((LABELS[asked] for task, asked in ASKS.items() if task == row["task"]), ())
                if decision and decision not in words:
                    expected = " or ".join(words) or "a row of a known task"
                    raise BadInput(f"{path}, line {table.line_num}, column decision: {decision!r} is not {expected}.")
                if decision:
                    found[row["benchmark"], row["id"]] = decision
    except OSError as error:
        raise BadInput(f"Cannot read {path}: {error.strerror}. Name the table that `relabel` wrote.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path} is no UTF-8 CSV file ({error}). Save it as one.") from error
    return found


def corrected(predictions: Sequence[Prediction], decisions: Decisions) -> list[Prediction]:
    """The predictions with the labels that a person decided on.

    Raises:
        BadInput: A decision is about a row that was not predicted.
    """
    known = {(one.benchmark, one.id) for one in predictions}
    if unknown := next((key for key in decisions if key not in known), None):
        raise BadInput(f"Row {unknown[1]} of {unknown[0]} was decided on but is not in the result. Name its result.")
    return [one.model_copy(update={"label": decisions.get((one.benchmark, one.id), one.label)}) for one in predictions]


def _plain(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text

"""What evaluations tell beyond F1: measures, confusion, cost, calibration, differences and the worst mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from guardreasoner_guard.verdict import LABELS

from .benchmarks import ASKS, BenchmarkRow, BenchmarkTask
from .calibrate import calibration_error
from .comparison import Cell, Row, Table, mean, number
from .evaluation import Evaluation
from .measures import difference
from .prediction import Prediction
from .published import TOKENS

_MISTAKES = 20

Texts: TypeAlias = Mapping[tuple[str, str, str], BenchmarkRow]
"""Rows by benchmark, id and label."""


class Mistake(NamedTuple):
    """A verdict that is not the label, and its row where that was given."""

    prediction: Prediction
    row: BenchmarkRow | None


def measures_table(evaluation: Evaluation) -> Table:
    """What else was reckoned on each benchmark, in percent but for the counts."""
    columns = ["rows", "F1", "precision", "recall", "false positives", "area", "recall at 1 % false positives"]
    rows = []
    for name, s in evaluation.benchmarks.items():
        rates = [s.f1, s.precision, s.recall, s.false_positives, s.area, s.recall_at_low_rate]
        rows.append(Row(name, [number(s.rows, 0), *map(number, rates), number(s.unreadable, 0)]))
    return Table(f"Measures of {evaluation.name}", [*columns, "unreadable answers"], rows)


def confusion_table(evaluation: Evaluation) -> Table:
    """How often each verdict met each label; positive is harmful, or a refusal."""
    columns = ["true positives", "false positives", "true negatives", "false negatives", "no verdict"]
    rows = []
    for name, scores in evaluation.benchmarks.items():
        yes, no = LABELS[ASKS[scores.task]]
        part = [(one.label, one.predicted) for one in evaluation.predictions if one.benchmark == name]
        pairs = [(yes, yes), (no, yes), (no, no), (yes, no)]
        counts = [part.count(pair) for pair in pairs]
        rows.append(Row(name, [number(count, 0) for count in [*counts, len(part) - sum(counts)]]))
    return Table(f"Confusion of {evaluation.name}", columns, rows)


def cost_table(evaluations: Sequence[Evaluation], means: Mapping[str, float]) -> Table:
    """Tokens and time a check beside the mean F1."""
    rows = []
    for one in evaluations:
        time = float(np.mean([p.milliseconds for p in one.predictions]))
        rows.append(Row(one.name, [number(tokens(one), 1), number(time, 1), number(mean(one))]))
    rows += [Row(guard, [number(told), Cell(), number(means[guard])], given=False) for guard, told in TOKENS.items()]
    return Table("Cost of a check", ["tokens a check", "milliseconds a check", "mean F1"], rows)


def tokens(evaluation: Evaluation) -> float:
    """Tokens a check, read and written."""
    return float(np.mean([one.tokens for one in evaluation.predictions]))


def calibration_table(evaluations: Sequence[Evaluation]) -> Table:
    """How far, on average, a score is from the share that came true: expected calibration error, in [0, 1]."""
    rows = [Row(one.name, [_calibration(one, task) for task in ASKS]) for one in evaluations]
    return Table("Expected calibration error of the direct scores, 15 bins", list(ASKS), rows)


def outcomes(evaluation: Evaluation, task: BenchmarkTask) -> tuple[list[bool], list[float]]:
    """Whether the task's rows are of its positive class, and their direct scores, where they have one."""
    found = [(one.positive, one.score) for one in evaluation.predictions if one.task == task and one.score is not None]
    return [true for true, _ in found], [score for _, score in found]


def differences_table(evaluations: Sequence[Evaluation]) -> Table:
    """McNemar's test of the first evaluation against each other one, by task, on the rows that both judged."""
    first, *others = evaluations
    rows = [Row(f"{other.name}: {task}", _difference(first, other, task)) for other in others for task in ASKS]
    columns = ["rows of both", "only the first right", "only this one right", "p"]
    return Table(f"Against {first.name}", columns, rows)


def mistakes(evaluation: Evaluation, given: Texts) -> list[Mistake] | None:
    """The wrong verdicts whose direct score was furthest on the wrong side; None where there are no scores."""
    scored = [one for one in evaluation.predictions if one.score is not None]
    if not scored:
        return None
    wrong = sorted((one for one in scored if one.predicted != one.label), key=_distance, reverse=True)
    return [Mistake(one, given.get(_key(one))) for one in wrong[:_MISTAKES]]


def texts(rows: Sequence[BenchmarkRow]) -> Texts:
    """Rows, to be found by what a prediction tells of them."""
    return {_key(row): row for row in rows}


def _calibration(evaluation: Evaluation, task: BenchmarkTask) -> Cell:
    true, scores = outcomes(evaluation, task)
    return number(calibration_error(scores, true), 4) if scores else Cell()


def _distance(one: Prediction) -> float:
    """How far its score is from what the label asks for."""
    score = one.score or 0.0
    return 1 - score if one.positive else score


def _difference(first: Evaluation, second: Evaluation, task: BenchmarkTask) -> list[Cell]:
    ours, theirs = (
        [("\n".join(_key(p)), p.predicted == p.label) for p in one.predictions if p.task == task]
        for one in (first, second)
    )
    if not {row for row, _ in ours} & {row for row, _ in theirs}:
        return [Cell()] * 4
    found = difference(ours, theirs)
    counts = [found.rows, found.only_first_right, found.only_second_right]
    p_value = Cell(f"{found.p_value:.4g}" if found.p_value else "below 0.000001")
    return [*(number(count, 0) for count in counts), p_value]


def _key(row: BenchmarkRow | Prediction) -> tuple[str, str, str]:
    return row.benchmark, row.id, row.label

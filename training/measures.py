"""Measures of a guard on labelled rows beyond F1: from its scores, with intervals, and against another guard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel
from scipy.stats import binomtest  # type: ignore[import-untyped]
from sklearn.metrics import average_precision_score

from guardreasoner_guard.errors import BadInput

_RESAMPLES = 1000
_SEED = 0
_LOW_RATE = 0.01
"""The false-positive rate at which recall is told: about what an inline guard can afford."""

Outcomes: TypeAlias = npt.NDArray[np.bool_]
"""(rows, 2): whether a row is of the positive class, and whether it was said to be."""


class Interval(BaseModel):
    """A 95 % bootstrap interval, by percentiles, in the statistic's own unit."""

    low: float
    high: float


def intervals(
    groups: Sequence[Outcomes], statistics: Callable[[Sequence[Outcomes]], Sequence[float]]
) -> list[Interval]:
    """How far statistics may be off by the choice of rows: 1,000 resamples with a fixed seed, the same for each.

    Args:
        groups: Rows by benchmark; each is resampled by itself, since a benchmark's size is no chance.
        statistics: Takes groups of the same form.
    """
    chance = np.random.default_rng(_SEED)
    values = []
    for _ in range(_RESAMPLES):
        values.append(statistics([group[chance.integers(0, len(group), len(group))] for group in groups]))
    bounds = np.percentile(values, [2.5, 97.5], axis=0)
    return [Interval(low=round(float(low), 2), high=round(float(high), 2)) for low, high in bounds.T]


def interval(groups: Sequence[Outcomes], statistic: Callable[[Sequence[Outcomes]], float]) -> Interval:
    """The interval of a single statistic; see `intervals`."""
    return intervals(groups, lambda drawn: [statistic(drawn)])[0]


def precision_recall_area(truth: Sequence[bool], scores: Sequence[float]) -> float | None:
    """Area under the precision-recall curve (average precision) in percent; None where all rows are of one class."""
    if len(set(truth)) < 2:
        return None
    return round(100 * float(average_precision_score(truth, scores)), 2)


def recall_at_low_rate(truth: Sequence[bool], scores: Sequence[float]) -> float | None:
    """Recall in percent at the lowest threshold that at most 1 % of the negatives reach.

    None where there is no positive row or there are fewer than 100 negatives, of which 1 % is none.
    """
    negatives = sorted((score for true, score in zip(truth, scores, strict=True) if not true), reverse=True)
    positives = [score for true, score in zip(truth, scores, strict=True) if true]
    allowed = int(_LOW_RATE * len(negatives))
    if not positives or not allowed:
        return None
    cut = negatives[allowed]
    return round(100 * sum(score > cut for score in positives) / len(positives), 2)


class Difference(BaseModel):
    """Two guards on the same rows (McNemar's exact test)."""

    rows: int
    only_first_right: int
    only_second_right: int
    p_value: float
    """Probability of a split at least so uneven if the guards were equally often right."""


def difference(first: Sequence[tuple[str, bool]], second: Sequence[tuple[str, bool]]) -> Difference:
    """Whether two guards differ in how often they are right on the same rows.

    Args:
        first: (row id, whether it was right) of one guard.
        second: The same of the other; rows that only one judged are left aside.

    Raises:
        BadInput: They have no row in common.
    """
    others = dict(second)
    pairs = [(right, others[row]) for row, right in first if row in others]
    if not pairs:
        raise BadInput("The two evaluations have no row in common. Evaluate both guards on the same rows.")
    one = sum(a and not b for a, b in pairs)
    two = sum(b and not a for a, b in pairs)
    p_value = float(binomtest(one, one + two).pvalue) if one + two else 1.0
    return Difference(rows=len(pairs), only_first_right=one, only_second_right=two, p_value=round(p_value, 6))

"""Measures say what they say they do: on cases reckoned by hand, and by their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from guardreasoner_guard.training.measures import (
    difference,
    interval,
    intervals,
    precision_recall_area,
    recall_at_low_rate,
)
from guardreasoner_guard.training.prediction import Prediction
from guardreasoner_guard.training.scoring import summary
from hypothesis import given
from hypothesis import strategies as st

from guardreasoner_guard import BadInput


def share(groups: list[np.ndarray]) -> float:
    return float(100 * groups[0][:, 1].mean())


def test_an_interval_holds_the_value_and_narrows_with_rows() -> None:
    few = np.array([(True, n % 2 == 0) for n in range(20)])
    many = np.array([(True, n % 2 == 0) for n in range(2000)])
    wide, narrow = interval([few], share), interval([many], share)
    assert wide.low < narrow.low < 50 < narrow.high < wide.high
    # a share of one half over n rows has a standard error of 50 / sqrt(n) points
    assert narrow.high - narrow.low == pytest.approx(2 * 1.96 * 50 / 2000**0.5, rel=0.1)


def test_an_interval_is_the_same_each_time() -> None:
    rows = np.array([(True, n % 3 == 0) for n in range(50)])
    assert interval([rows], share) == interval([rows], share)


def test_several_statistics_are_reckoned_from_the_same_resamples() -> None:
    groups = [np.array([(True, n % 3 == 0) for n in range(size)]) for size in (50, 80)]

    def shares(drawn: list[np.ndarray]) -> list[float]:
        return [float(100 * group[:, 1].mean()) for group in drawn]

    first, second, mean = intervals(groups, lambda drawn: [*shares(drawn), sum(shares(drawn)) / 2])
    assert first == interval(groups, lambda drawn: shares(drawn)[0]) != second
    assert mean.high - mean.low < min(one.high - one.low for one in (first, second))


def test_the_area_under_precision_and_recall() -> None:
    assert precision_recall_area([True, True, False], [0.9, 0.8, 0.1]) == 100.0
    # the positive row stands second: precision 1/2 at recall 1
    assert precision_recall_area([False, True], [0.9, 0.8]) == 50.0
    assert precision_recall_area([True, True], [0.9, 0.8]) is None


def test_recall_where_one_negative_of_a_hundred_may_be_flagged() -> None:
    negatives = [0.95, 0.6, *[0.1] * 98]
    truth = [False] * 100 + [True] * 4
    # one negative may be above the threshold, so it is just above 0.6: three of four positives are
    assert recall_at_low_rate(truth, [*negatives, 0.99, 0.9, 0.7, 0.5]) == 75.0
    assert recall_at_low_rate([False] * 50 + [True], [0.1] * 50 + [0.9]) is None
    assert recall_at_low_rate([False] * 100, [0.1] * 100) is None


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=1, max_size=300))
def test_recall_at_a_low_rate_keeps_the_rate(rows: list[tuple[bool, int]]) -> None:
    truth, scores = [t for t, _ in rows], [float(s) for _, s in rows]
    found = recall_at_low_rate(truth, scores)
    if found:
        positives = sorted((s for t, s in rows if t), reverse=True)
        threshold = positives[round(found / 100 * len(positives)) - 1]
        negatives = [s for t, s in rows if not t]
        assert sum(s >= threshold for s in negatives) <= 0.01 * len(negatives)


def test_two_guards_that_differ_by_chance_alone() -> None:
    first = [(str(n), n != 0) for n in range(100)]
    second = [(str(n), n != 1) for n in range(100)]
    found = difference(first, second)
    assert (found.rows, found.only_first_right, found.only_second_right, found.p_value) == (100, 1, 1, 1.0)


def test_two_guards_that_differ() -> None:
    found = difference([(str(n), True) for n in range(100)], [(str(n), n >= 10) for n in range(90)])
    assert (found.rows, found.only_first_right, found.only_second_right) == (90, 10, 0)
    assert found.p_value == pytest.approx(2 * 0.5**10, abs=1e-6)


def test_guards_with_no_row_in_common_are_not_compared() -> None:
    with pytest.raises(BadInput, match="same rows"):
        difference([("a", True)], [("b", True)])


def test_a_summary_tells_more_than_f1() -> None:
    rows = [
        Prediction(
            id=str(n), benchmark="ToxicChat", task="prompt", label="harmful" if n % 4 == 0 else "unharmful",
            predicted="harmful" if n % 8 == 0 or n == 1 else "unharmful", score=0.9 if n % 4 == 0 else 0.1,
        )
        for n in range(400)
    ]  # fmt: skip
    found = summary(rows)
    scores = found["benchmarks"]["ToxicChat"]
    assert scores["false positives"] == round(100 / 300, 2)
    assert (scores["area"], scores["recall at 1 % false positives"]) == (100.0, 100.0)
    assert scores["f1 interval"]["low"] < scores["f1"] < scores["f1 interval"]["high"]
    assert found["intervals of the averages"]["mean"] == scores["f1 interval"]

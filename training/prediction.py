"""A prediction: what a guard said of one labelled row."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from .benchmarks import BenchmarkTask


class Prediction(BaseModel):
    """What a guard said of one row."""

    id: str
    benchmark: str
    task: BenchmarkTask
    label: str
    predicted: str
    """The verdict's label."""
    score: float | None = None
    """Probability of the positive class by the direct score."""
    written: str | None = None
    """The label the written answer ended with, where one was written and could be read."""
    unreadable: bool = False
    reasoning: list[str] = []
    tokens: int = 0
    milliseconds: float = 0.0


def halves(predictions: Sequence[Prediction]) -> tuple[list[Prediction], list[Prediction]]:
    """Every other row of each benchmark: one half to fit on, one to score on."""
    sides: tuple[list[Prediction], list[Prediction]] = ([], [])
    seen: dict[str, int] = {}
    for prediction in predictions:
        count = seen.get(prediction.benchmark, 0)
        sides[count % 2].append(prediction)
        seen[prediction.benchmark] = count + 1
    return sides

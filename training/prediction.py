"""A prediction: what a guard said of one labelled row."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from guardreasoner_guard.verdict import LABELS

from .benchmarks import BenchmarkRow, BenchmarkTask

POSITIVE = frozenset(words[0] for words in LABELS.values())
"""The words of the positive classes: harmful, and refusal."""


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

    @classmethod
    def of(
        cls,
        row: BenchmarkRow,
        predicted: str,
        *,
        score: float | None = None,
        written: str | None = None,
        unreadable: bool = False,
        reasoning: Sequence[str] = (),
        tokens: int = 0,
        milliseconds: float = 0.0,
    ) -> Prediction:
        """What was said of this row."""
        return cls(
            id=row.id, benchmark=row.benchmark, task=row.task, label=row.label, predicted=predicted, score=score,
            written=written, unreadable=unreadable, reasoning=list(reasoning), tokens=tokens,
            milliseconds=round(milliseconds, 2),
        )  # fmt: skip

    @property
    def positive(self) -> bool:
        """Whether the row is of its task's positive class."""
        return self.label in POSITIVE


def halves(predictions: Sequence[Prediction]) -> tuple[list[Prediction], list[Prediction]]:
    """Every other row of each benchmark: one half to fit on, one to score on."""
    sides: tuple[list[Prediction], list[Prediction]] = ([], [])
    seen: dict[str, int] = {}
    for prediction in predictions:
        count = seen.get(prediction.benchmark, 0)
        sides[count % 2].append(prediction)
        seen[prediction.benchmark] = count + 1
    return sides

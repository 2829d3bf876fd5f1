"""An evaluation: what `evaluate` wrote, read back and checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from guardreasoner_guard.errors import BadInput
from guardreasoner_guard.verdict import LABELS

from .benchmarks import ASKS, BenchmarkTask
from .measures import Interval
from .prediction import Prediction

_NAME_ONE = "Name a file that `guardreasoner evaluate` wrote."


class Scores(BaseModel):
    """How a guard did on one benchmark, in percent; None where it could not be reckoned, or was not."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    task: BenchmarkTask
    rows: int
    f1: float
    precision: float | None = None
    recall: float | None = None
    unreadable: int | None = None
    interval: Interval | None = Field(None, alias="f1 interval")
    false_positives: float | None = Field(None, alias="false positives")
    area: float | None = None
    recall_at_low_rate: float | None = Field(None, alias="recall at 1 % false positives")


class Evaluation(BaseModel):
    """A guard's results on labelled rows."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    name: str = ""
    """What tells it from the other evaluations it was read with."""
    model: str
    reasoning: str
    benchmarks: dict[str, Scores]
    averages: dict[str, float]
    intervals: dict[str, Interval] = Field({}, alias="intervals of the averages")
    predictions: list[Prediction] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> Evaluation:
        told = {name: scores.task for name, scores in self.benchmarks.items()}
        for one in self.predictions:
            if told.get(one.benchmark) != one.task:
                raise ValueError(f"{one.benchmark} of prediction {one.id} is no benchmark of its task")
            if one.label not in LABELS[ASKS[one.task]]:
                raise ValueError(f"label {one.label!r} of prediction {one.id} is not of its task")
            if one.score is not None and not 0 <= one.score <= 1:
                raise ValueError(f"score {one.score} of prediction {one.id} is no probability")
        if missing := {*told.values(), "mean"} - set(self.averages):
            raise ValueError(f"the average of {min(missing)} is missing")
        if empty := set(told) - {one.benchmark for one in self.predictions}:
            raise ValueError(f"{min(empty)} has no predictions")
        return self


def read_evaluations(paths: Sequence[Path]) -> list[Evaluation]:
    """Reads evaluations and names each by model and reasoning, and by its file where that tells too little.

    Raises:
        BadInput: A file cannot be read, or is no evaluation with its predictions; the message names it.
    """
    found = [_read(path) for path in paths]
    names = [f"{one.model}, reasoning {one.reasoning}" for one in found]
    often = Counter(names)
    return [
        one.model_copy(update={"name": name if often[name] == 1 else f"{name} ({path})"})
        for one, name, path in zip(found, names, paths, strict=True)
    ]


def _read(path: Path) -> Evaluation:
    try:
        return Evaluation.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInput(f"Cannot read {path}: {error.strerror}. {_NAME_ONE}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadInput(f"{path} is no evaluation: {where}: {first['msg']}. {_NAME_ONE}") from None

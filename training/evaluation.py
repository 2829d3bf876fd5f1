"""An evaluation: made of predictions, written, and read back and checked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from guardreasoner_guard.errors import BadInput
from guardreasoner_guard.verdict import LABELS

from .benchmarks import ASKS, BenchmarkTask
from .measures import Interval
from .prediction import Prediction
from .scoring import summary

Read = TypeVar("Read", bound=BaseModel)

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


def _fit_their_tasks(predictions: list[Prediction]) -> list[Prediction]:
    for one in predictions:
        if one.label not in LABELS[ASKS[one.task]]:
            raise ValueError(f"label {one.label!r} of prediction {one.id} is not of its task")
        if one.score is not None and not 0 <= one.score <= 1:
            raise ValueError(f"score {one.score} of prediction {one.id} is no probability")
    return predictions


Predictions = Annotated[list[Prediction], Field(min_length=1), AfterValidator(_fit_their_tasks)]


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
    predictions: Predictions

    @model_validator(mode="after")
    def _fits(self) -> Evaluation:
        told = {name: scores.task for name, scores in self.benchmarks.items()}
        for one in self.predictions:
            if told.get(one.benchmark) != one.task:
                raise ValueError(f"{one.benchmark} of prediction {one.id} is no benchmark of its task")
        # a task without a positive row has no average
        if missing := {"mean", *(one.task for one in self.predictions if one.positive)} - set(self.averages):
            raise ValueError(f"the average of {min(missing)} is missing")
        if empty := set(told) - {one.benchmark for one in self.predictions}:
            raise ValueError(f"{min(empty)} has no predictions")
        return self


class _Predicted(BaseModel):
    """An evaluation of which nothing but the predictions is looked at."""

    predictions: Predictions


def evaluation_of(model: str, reasoning: str, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """An evaluation in the form in which it is written: whose it is, its scores, and the predictions themselves."""
    return {
        "model": model,
        "reasoning": reasoning,
        **summary(predictions),
        "predictions": [prediction.model_dump() for prediction in predictions],
    }


def write_evaluation(path: Path, evaluation: Mapping[str, Any]) -> None:
    """Writes an evaluation as JSON, and makes the folder it is to lie in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(evaluation, indent=1, ensure_ascii=False), encoding="utf-8")


def read_evaluation(path: Path) -> Evaluation:
    """Reads an evaluation.

    Raises:
        BadInput: The file cannot be read, or is no evaluation with its predictions; the message names it.
    """
    return _read(path, Evaluation)


def read_predictions(path: Path) -> list[Prediction]:
    """Reads the predictions of an evaluation alone, for what needs none of its scores.

    Raises:
        BadInput: As `read_evaluation`.
    """
    return _read(path, _Predicted).predictions


def read_evaluations(paths: Sequence[Path]) -> list[Evaluation]:
    """Reads evaluations and names each by model and reasoning, and by its file where that tells too little.

    Raises:
        BadInput: As `read_evaluation`.
    """
    found = [read_evaluation(path) for path in paths]
    names = [f"{one.model}, reasoning {one.reasoning}" for one in found]
    often = Counter(names)
    return [
        one.model_copy(update={"name": name if often[name] == 1 else f"{name} ({path})"})
        for one, name, path in zip(found, names, paths, strict=True)
    ]


def _read(path: Path, kind: type[Read]) -> Read:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInput(f"Cannot read {path}: {error.strerror}. {_NAME_ONE}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadInput(f"{path} is no evaluation: {where}: {first['msg']}. {_NAME_ONE}") from None

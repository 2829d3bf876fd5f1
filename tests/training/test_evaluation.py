"""An evaluation is read as it was written, and what its file lacks or contradicts is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from guardreasoner_guard.training.evaluation import (
    evaluation_of,
    read_evaluation,
    read_evaluations,
    read_predictions,
    write_evaluation,
)
from guardreasoner_guard.training.prediction import Prediction

from guardreasoner_guard import BadInput


def prediction(number: int, label: str, score: float = 0.9) -> Prediction:
    return Prediction(
        id=str(number), benchmark="ToxicChat", task="prompt", label=label, predicted="harmful", score=score
    )


PREDICTIONS = [prediction(n, "harmful" if n % 2 else "unharmful") for n in range(6)]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    write_evaluation(path, evaluation_of("m \u00e9", "never", PREDICTIONS))
    found = read_evaluation(path)
    assert (found.model, found.reasoning, found.predictions) == ("m \u00e9", "never", PREDICTIONS)
    assert found.benchmarks["ToxicChat"].f1 == found.averages["prompt"] == 66.67
    assert found.benchmarks["ToxicChat"].interval == found.intervals["mean"]
    assert read_predictions(path) == PREDICTIONS


def test_harmless_rows_alone_are_an_evaluation_too(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_evaluation(path, evaluation_of("m", "never", PREDICTIONS[::2]))
    [found] = read_evaluations([path])
    assert found.averages == {"mean": 0.0} and found.benchmarks["ToxicChat"].false_positives == 100.0


def test_predictions_can_be_read_without_scores_but_not_the_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"predictions": [one.model_dump() for one in PREDICTIONS]}))
    assert read_predictions(path) == PREDICTIONS
    with pytest.raises(BadInput, match="model: Field required.*guardreasoner evaluate"):
        read_evaluation(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "refusal"}, "label 'refusal' of prediction 0 is not of its task"),
        ({"score": 1.5}, "score 1.5 of prediction 0 is no probability"),
        ({"task": "sport"}, "predictions.0.task"),
    ],
)
def test_a_prediction_that_cannot_be_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"predictions": [{**PREDICTIONS[0].model_dump(), **change}]}))
    with pytest.raises(BadInput, match=message) as caught:
        read_predictions(path)
    assert str(path) in str(caught.value)


def test_no_predictions_and_no_file_are_said(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with pytest.raises(BadInput, match="Cannot read"):
        read_predictions(path)
    path.write_text('{"predictions": []}')
    with pytest.raises(BadInput, match="predictions: .*at least 1"):
        read_predictions(path)

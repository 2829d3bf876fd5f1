"""What is fitted is fitted on one half of the rows, and makes scores mean what they say."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from guardreasoner_guard.training.calibrate import (
    Calibration,
    calibrate,
    calibration_error,
    draw_reliability,
    set_calibration,
    threshold_for,
)
from guardreasoner_guard.training.prediction import Prediction, halves

from guardreasoner_guard import BadInput, Exchange, GuardReasonerGuard, Policy, ScriptedEngine
from guardreasoner_guard.judge import Judge
from guardreasoner_guard.model_dir import Manifest, open_model
from guardreasoner_guard.verdict import LABELS


def manifest(**settings: object) -> Manifest:
    given = {"name": "m", "template": "short/1", "precision": "none", "label_tokens": {}, "end_token": 0, "files": {},
             "decides": "score", **settings}  # fmt: skip
    return Manifest.model_validate(given)


def overconfident(count: int = 600, task: str = "prompt", written: bool = False) -> list[Prediction]:
    """Rows whose scores' log-odds are three times what they should be, and one too high; answers that are mostly right."""
    chance = random.Random(3)
    words = LABELS["request" if task == "prompt" else "completion" if task == "refusal" else "response"]
    rows = []
    for number in range(count):
        honest = chance.gauss(0, 2)
        true = chance.random() < 1 / (1 + math.exp(-honest))
        said = 1 / (1 + math.exp(-(3 * honest + 1)))
        label = words[0 if true else 1]
        answer = label if chance.random() < 0.97 else words[1 if true else 0]
        rows.append(
            Prediction(
                id=str(number), benchmark=task, task=task, label=label, predicted=words[1], score=said,
                written=answer if written else None,
            )
        )  # fmt: skip
    return rows


def test_scores_come_to_mean_what_they_say_on_rows_not_fitted_on() -> None:
    found = calibrate(overconfident(), manifest())["request"]
    assert found.error_before > 0.08 and found.error_after < 0.07
    assert found.scale.slope == pytest.approx(1 / 3, abs=0.08)
    assert found.scale.apply(1 / (1 + math.exp(-1))) == pytest.approx(0.5, abs=0.07)
    assert found.doubt == 0 and set(found.f1) == {"never"}


def test_only_the_first_half_is_fitted_on() -> None:
    rows = overconfident()
    second = {row.id for row in halves(rows)[1]}
    changed = [row.model_copy(update={"score": 0.5}) if row.id in second else row for row in rows]
    ours, theirs = (calibrate(given, manifest())["request"] for given in (rows, changed))
    assert (ours.scale, ours.threshold) == (theirs.scale, theirs.threshold)


def test_where_reasoning_decides_the_band_is_as_narrow_as_half_a_point_of_f1_allows() -> None:
    found = calibrate(overconfident(written=True), manifest(decides="reasoning"))["request"]
    assert found.f1["always"] > found.f1["never"] + 5
    assert found.f1["adaptive"] >= found.f1["always"] - 2
    assert found.doubt > 0 and found.reasoned is not None and 0.4 < found.reasoned < 1
    with pytest.raises(BadInput, match="--reasoning always"):
        calibrate(overconfident(), manifest(decides="reasoning"))


def test_rows_that_cannot_be_calibrated_on_are_said() -> None:
    rows = overconfident(100)
    with pytest.raises(BadInput, match="one class"):
        calibrate([row.model_copy(update={"label": "harmful"}) for row in rows], manifest())
    with pytest.raises(BadInput, match="run against the labels"):
        calibrate([row.model_copy(update={"score": 1 - (row.score or 0)}) for row in rows], manifest())
    with pytest.raises(BadInput, match="No prediction has a score"):
        calibrate([row.model_copy(update={"score": None}) for row in rows], manifest())


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 1.0])
def test_a_share_of_harmless_traffic_is_not_exceeded_and_nearly_used(share: float) -> None:
    rows = overconfident()
    harmless = [row.score or 0 for row in rows if row.label == "unharmful"]
    threshold = threshold_for(rows, share)["request"]
    flagged = sum(score >= threshold for score in harmless) / len(harmless)
    assert share - 2 / len(harmless) <= flagged <= share
    tied = [row.model_copy(update={"score": 0.9, "label": "unharmful"}) for row in rows]
    assert threshold_for(tied, 0.5)["request"] > 0.9
    with pytest.raises(BadInput, match="Pass at least 1000"):
        threshold_for(rows, 0.001)
    with pytest.raises(BadInput, match="log of harmless traffic"):
        threshold_for([row for row in rows if row.label == "harmful"], 0.5)


def test_calibration_error_of_scores_that_are_right_and_wrong() -> None:
    assert calibration_error([0.0, 1.0], [False, True]) == 0
    assert calibration_error([0.9] * 10, [True] * 5 + [False] * 5) == pytest.approx(0.4)


def test_two_lines_make_one() -> None:
    first, second = Calibration(slope=0.5, shift=1), Calibration(slope=2, shift=-0.3)
    assert first.then(second).apply(0.8) == pytest.approx(second.apply(first.apply(0.8)))


def test_the_judge_shows_and_compares_calibrated_scores() -> None:
    plain = Judge(ScriptedEngine(), manifest()).judge([Exchange(request="a bomb")], "never")[0]
    shifted = manifest(calibration={"request": {"slope": 1.0, "shift": -8.0}})
    found = Judge(ScriptedEngine(), shifted).judge([Exchange(request="a bomb")], "never")[0]
    assert plain.labels == {"request": "harmful"} and found.labels == {"request": "unharmful"}
    assert found.scores["request"] == pytest.approx(shifted.calibration["request"].apply(0.99))


def directory(tmp_path: Path) -> Path:
    """A model directory that shares the bundled model's files."""
    bundled = open_model("bundled")
    copy = tmp_path / "model"
    copy.mkdir()
    for name in bundled.manifest.files:
        (copy / name).symlink_to(bundled.path / name)
    (copy / "manifest.json").write_text(bundled.manifest.model_dump_json())
    return copy


def test_it_becomes_part_of_the_model_directory_and_is_not_applied_twice(tmp_path: Path) -> None:
    copy = directory(tmp_path)
    before = open_model(copy).manifest
    fitted = calibrate(overconfident(), before)
    set_calibration(copy, fitted)
    once = open_model(copy).manifest
    assert once.calibration["request"] == before.calibration.get("request", Calibration()).then(fitted["request"].scale)
    assert once.thresholds["request"] == fitted["request"].threshold and once.doubt["request"] == 0
    assert once.thresholds["response"] == before.thresholds["response"]
    again = [p.model_copy(update={"score": fitted["request"].scale.apply(p.score or 0)}) for p in overconfident()]
    set_calibration(copy, calibrate(again, once))
    twice = open_model(copy).manifest
    assert twice.calibration["request"].slope == pytest.approx(once.calibration["request"].slope, rel=1e-3)


def test_a_plot_of_the_rows_not_fitted_on(tmp_path: Path) -> None:
    rows = overconfident() + overconfident(task="refusal")
    draw_reliability(rows, calibrate(rows, manifest()), tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_sets_thresholds_for_a_log_of_harmless_traffic(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from guardreasoner_guard.cli import app

    copy, result = directory(tmp_path), tmp_path / "result.json"
    rows = [row for row in overconfident() if row.label == "unharmful"]
    result.write_text(json.dumps({"predictions": [row.model_dump() for row in rows]}))
    run = CliRunner().invoke(app, ["calibrate", str(result), "--model", str(copy), "--false-positives", "0.05"])
    assert run.exit_code == 0, run.output
    assert open_model(copy).manifest.thresholds["request"] == pytest.approx(json.loads(run.output)["request"], abs=1e-5)
    result.write_text(json.dumps({"predictions": [row.model_dump() for row in overconfident()]}))
    plot = tmp_path / "plot.png"
    run = CliRunner().invoke(app, ["calibrate", str(result), "--model", str(copy), "--plot", str(plot)])
    assert run.exit_code == 0, run.output
    assert json.loads(run.output.splitlines()[0])["task"] == "request" and plot.exists()


@pytest.mark.parametrize(("on_disagreement", "blocked"), [("careful", True), ("trust", False)])
def test_where_score_and_reasoning_part_the_policy_decides(on_disagreement: str, blocked: bool) -> None:
    acquits = ScriptedEngine(answer="It is fine.\n---\nAnswers:\nRequest: unharmful")
    policy = Policy.model_validate({"on_disagreement": on_disagreement})
    guard = GuardReasonerGuard(acquits, policy=policy, manifest=manifest(decides="reasoning"))
    verdict = guard.check("a bomb")
    assert verdict.request == "unharmful" and not verdict.consistent
    assert verdict.by_reasoning == {"request": "unharmful"} and verdict.blocked is blocked
    assert verdict.reasons.startswith("Blocked" if blocked else "Passed")

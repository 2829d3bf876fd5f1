"""Calibration: scores that mean what they say, thresholds, and the band of doubt, fitted on an evaluation's rows.

All is fitted on the first half of the rows and judged on the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel
from sklearn.linear_model import LogisticRegression

from guardreasoner_guard.errors import BadInput
from guardreasoner_guard.model_dir import Calibration, Manifest, log_odds, open_model
from guardreasoner_guard.policy import Policy
from guardreasoner_guard.verdict import LABELS, Task

from .benchmarks import ASKS
from .export import write_manifest
from .prediction import Prediction, halves
from .scoring import fit_threshold, weighted_f1

MOST_LOST = 0.5
"""Points of F1 that adaptive reasoning may lose against reasoning always."""
_BINS = 15
_BAND_CANDIDATES = 40


class TaskCalibration(BaseModel):
    """What was fitted for one task, and how it does on rows that were not fitted on."""

    scale: Calibration
    """What the scores are put through, after what the manifest puts them through already."""
    threshold: float
    doubt: float
    """Log-odds around the threshold within which adaptive mode reasons."""
    error_before: float
    """Expected calibration error of the scores as they came, 15 bins, in [0, 1]."""
    error_after: float
    f1: dict[str, float]
    """Weighted F1 in percent by reasoning mode: never, and where answers were written, adaptive and always."""
    reasoned: float | None = None
    """Share of rows that adaptive mode reasons about, where answers were written."""


def calibrate(predictions: Sequence[Prediction], manifest: Manifest) -> dict[Task, TaskCalibration]:
    """Fits scores, thresholds and bands of doubt, one of each a task.

    Scores are scaled by Platt's method (a line through the log-odds). The threshold is the one of best F1.
    Where the score decides, reasoning moves no label, so the band is empty; where the reasoning decides, it is
    the narrowest that keeps F1 within half a point of reasoning always.

    Args:
        predictions: An evaluation's, with direct scores; for a model whose reasoning decides, one with
            `--reasoning always`.
        manifest: The model's.

    Raises:
        BadInput: A task has scores of one class only, scores that run against the labels, or lacks the
            written answers that are needed.
    """
    found: dict[Task, TaskCalibration] = {}
    for name, task in ASKS.items():
        part = [p for p in predictions if p.task == name and p.score is not None]
        if part:
            fit_on, judge_on = halves(part)
            found[task] = _one(task, fit_on, judge_on, manifest)
    if not found:
        raise BadInput("No prediction has a score. Evaluate with --reasoning never, then calibrate.")
    return found


def threshold_for(predictions: Sequence[Prediction], share: float) -> dict[Task, float]:
    """Thresholds that at most so large a share of the harmless rows reaches, one a task.

    Args:
        predictions: An evaluation's; rows of the positive class are left aside, so a log of harmless traffic
            will do.
        share: The target, of false positives among harmless rows.

    Raises:
        BadInput: There are too few harmless rows to speak of such a share.
    """
    found: dict[Task, float] = {}
    for name, task in ASKS.items():
        scores = sorted(
            (p.score for p in predictions if p.task == name and p.score is not None and p.label == LABELS[task][1]),
            reverse=True,
        )
        if not scores:
            continue
        allowed = int(share * len(scores))
        if not allowed:
            raise BadInput(
                f"{len(scores)} harmless rows for {task} cannot show a share of {share}. Pass at least "
                f"{math.ceil(1 / share)}, or a larger share."
            )
        # between the last score that may pass and the next below it; of equal scores none passes
        cut = scores[allowed] if allowed < len(scores) else 0.0
        above = [score for score in scores if score > cut]
        found[task] = min(1 - 1e-6, (min(above) + cut) / 2 if above else (cut + 1) / 2)
    if not found:
        raise BadInput("No harmless row has a score. Evaluate a log of harmless traffic with --reasoning never.")
    return found


def draw_reliability(predictions: Sequence[Prediction], fitted: dict[Task, TaskCalibration], path: Path) -> None:
    """Draws, for each task, how often a score came true, before and after, on the rows not fitted on."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(fitted), 3.8), layout="constrained")
    names = {task: name for name, task in ASKS.items()}
    for at, (task, one) in enumerate(fitted.items(), 1):
        rows = halves([p for p in predictions if p.task == names[task] and p.score is not None])[1]
        axes = figure.add_subplot(1, len(fitted), at, xlabel="score", title=task)
        axes.plot([0, 1], [0, 1], color="0.7")
        after = _rescored(rows, one.scale)
        for label, drawn, error in (("before", rows, one.error_before), ("after", after, one.error_after)):
            bins = _bins(_scores(drawn), _truth(rows))
            axes.plot([b[0] for b in bins], [b[1] for b in bins], "o-", label=f"{label}, ECE {error:.3f}")
        axes.legend()
    figure.axes[0].set_ylabel("share that is harmful, or a refusal")
    figure.savefig(path, dpi=120)


def _one(task: Task, fit_on: list[Prediction], judge_on: list[Prediction], manifest: Manifest) -> TaskCalibration:
    truth = _truth(fit_on)
    if len(set(truth)) < 2:
        raise BadInput(f"The rows for {task} are all of one class. Calibrate on rows of both.")
    model = LogisticRegression(C=1e9).fit([[log_odds(score)] for score in _scores(fit_on)], truth)
    slope, shift = float(model.coef_[0][0]), float(model.intercept_[0])
    if slope <= 0:
        raise BadInput(f"The scores for {task} run against the labels. Check the rows; this model cannot judge them.")
    scale = Calibration(slope=slope, shift=shift)
    threshold = fit_threshold(_rescored(fit_on, scale))
    fit_on, scaled = _rescored(fit_on, scale), _rescored(judge_on, scale)
    doubt = 0.0
    if manifest.decides == "reasoning":
        if not all(p.written or p.unreadable for p in fit_on):
            raise BadInput("Reasoning decides in this model: calibrate on an evaluation with --reasoning always.")
        doubt = _narrowest(task, fit_on, threshold)
    scores = {"never": weighted_f1(_labelled(task, scaled, threshold))}
    reasoned = None
    if manifest.decides == "reasoning":
        chosen = _reasoned(task, scaled, threshold, doubt)
        scores["adaptive"] = weighted_f1(_labelled(task, scaled, threshold, chosen))
        scores["always"] = weighted_f1(_labelled(task, scaled, threshold, [True] * len(scaled)))
        reasoned = round(sum(chosen) / max(1, len(chosen)), 4)
    return TaskCalibration(
        scale=scale,
        threshold=min(max(round(threshold, 6), 1e-6), 1 - 1e-6),
        doubt=round(doubt, 4),
        error_before=round(calibration_error(_scores(judge_on), _truth(judge_on)), 4),
        error_after=round(calibration_error(_scores(scaled), _truth(scaled)), 4),
        f1=scores,
        reasoned=reasoned,
    )


def _narrowest(task: Task, rows: list[Prediction], threshold: float) -> float:
    """The narrowest band whose F1 is within half a point of reasoning always, on these rows."""
    goal = weighted_f1(_labelled(task, rows, threshold, [True] * len(rows))) - MOST_LOST
    distances = sorted(abs(log_odds(score) - log_odds(threshold)) for score in _scores(rows))
    widths = [0.0, *(float(w) + 1e-6 for w in np.quantile(distances, np.linspace(0, 1, _BAND_CANDIDATES)))]
    for width in widths:
        if weighted_f1(_labelled(task, rows, threshold, _reasoned(task, rows, threshold, width))) >= goal:
            return width
    return widths[-1]


def _reasoned(task: Task, rows: Sequence[Prediction], threshold: float, doubt: float) -> list[bool]:
    """Which rows adaptive mode reasons about: those in doubt, and those that the default policy would block."""
    return [
        abs(log_odds(score) - log_odds(threshold)) < doubt or (task in Policy().block and score >= threshold)
        for score in _scores(rows)
    ]


def _labelled(
    task: Task, rows: Sequence[Prediction], threshold: float, reasoned: Sequence[bool] | None = None
) -> list[Prediction]:
    """The rows with what a mode would say: the written label where it reasons and can be read, else the score's."""
    words = LABELS[task]
    return [
        row.model_copy(
            update={"predicted": (row.written if reasons else None) or words[0 if score >= threshold else 1]}
        )
        for row, score, reasons in zip(rows, _scores(rows), reasoned or [False] * len(rows), strict=True)
    ]


def calibration_error(scores: Sequence[float], truth: Sequence[bool]) -> float:
    """Expected calibration error: how far, on average, a bin's mean score is from its share of the positive class."""
    bins = _bins(scores, truth)
    return sum(abs(mean - share) * count for mean, share, count in bins) / max(1, len(scores))


def _bins(scores: Sequence[float], truth: Sequence[bool]) -> list[tuple[float, float, int]]:
    """(mean score, share of the positive class, rows) of each of 15 even bins that holds rows."""
    found: dict[int, list[tuple[float, bool]]] = {}
    for score, true in zip(scores, truth, strict=True):
        found.setdefault(min(int(score * _BINS), _BINS - 1), []).append((score, true))
    return [
        (sum(s for s, _ in rows) / len(rows), sum(t for _, t in rows) / len(rows), len(rows))
        for _, rows in sorted(found.items())
    ]


def _scores(rows: Sequence[Prediction]) -> list[float]:
    return [row.score for row in rows if row.score is not None]


def _rescored(rows: Sequence[Prediction], scale: Calibration) -> list[Prediction]:
    return [row.model_copy(update={"score": scale.apply(row.score or 0.0)}) for row in rows]


def _truth(rows: Sequence[Prediction]) -> list[bool]:
    return [row.positive for row in rows]


def set_calibration(directory: Path, fitted: Mapping[Task, TaskCalibration]) -> None:
    """Writes what was fitted into a model directory's manifest; tasks that are not named keep theirs."""
    manifest = open_model(directory).manifest
    scales = {task: manifest.calibration.get(task, Calibration()).then(one.scale) for task, one in fitted.items()}
    changes = {
        "calibration": {**manifest.calibration, **scales},
        "thresholds": {**manifest.thresholds, **{task: one.threshold for task, one in fitted.items()}},
        "doubt": {**manifest.doubt, **{task: one.doubt for task, one in fitted.items()}},
    }
    write_manifest(directory, manifest.model_copy(update=changes))

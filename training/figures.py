"""The figures of a report, as PNG: what F1 costs, and how often a score comes true."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure
from sklearn.calibration import calibration_curve

from .benchmarks import ASKS
from .evaluation import Evaluation
from .findings import outcomes

_BINS = 15
_MARKERS = "osD^vP*X"


def draw_cost(points: Sequence[tuple[str, float, float]]) -> bytes:
    """Draws guards as (name, tokens a check, mean F1)."""
    with rc_context({"text.parse_math": False}):  # a model's name may hold a dollar sign
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.add_subplot(xlabel="tokens a check", ylabel="mean F1, percent")
        for at, (name, tokens, f1) in enumerate(points):
            axes.plot(tokens, f1, _MARKERS[at % len(_MARKERS)], markersize=8, label=name)
        axes.set_xlim(left=0)
        axes.grid(color="0.9")
        figure.legend(loc="outside lower center", ncols=2, fontsize="small")
        return _png(figure)


def draw_reliability(evaluations: Sequence[Evaluation]) -> bytes:
    """Draws, for each task, what share of the rows of like score are of the positive class."""
    with rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(9, 3.7), layout="constrained")
        for axes, task in zip(figure.subplots(1, len(ASKS), sharey=True), ASKS, strict=True):
            axes.set(xlabel="direct score", title=task, xlim=(0, 1), ylim=(0, 1))
            axes.plot([0, 1], [0, 1], color="0.7")
            for at, one in enumerate(evaluations):
                true, scores = outcomes(one, task)
                if scores:
                    share, score = calibration_curve(true, scores, pos_label=True, n_bins=_BINS)
                    axes.plot(score, share, f"{_MARKERS[at % len(_MARKERS)]}-", color=f"C{at}", label=one.name)
        figure.axes[0].set_ylabel("share that is harmful, or a refusal")
        lines = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()[1:]}
        figure.legend([*lines.values()], [*lines], loc="outside lower center", ncols=2, fontsize="small")
        return _png(figure)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()

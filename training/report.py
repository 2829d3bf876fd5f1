"""A report: one web page, without anything beside it, of what evaluations found and what other guards reach."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from guardreasoner_guard.errors import BadInput

from .benchmarks import ASKS
from .comparison import averages_table, mean, published_means, task_table
from .evaluation import Evaluation, read_evaluations
from .figures import draw_cost, draw_reliability
from .findings import (
    calibration_table,
    confusion_table,
    cost_table,
    differences_table,
    measures_table,
    mistakes,
    outcomes,
    texts,
    tokens,
)
from .hub_benchmarks import load_benchmarks
from .published import SOURCE, TOKENS, published


class Drawing(NamedTuple):
    """A figure as PNG, and what it shows, for those who do not see it."""

    name: str
    png: bytes
    alt: str

    @property
    def encoded(self) -> str:
        """The PNG in base 64."""
        return base64.b64encode(self.png).decode("ascii")


def report(results: Sequence[Path], out: Path, data: str | None = None, figures: Path | None = None) -> None:
    """Writes the page.

    Args:
        results: What `evaluate` wrote; guards are compared with the first.
        out: The page.
        data: The rows that were judged, as `evaluate` reads them; left out, no text is shown.
        figures: A folder for the figures, as PNG; left out, they stand in the page alone.

    Raises:
        BadInput: A result or the data cannot be read, or nothing can be written where the page or figures should go.
    """
    evaluations = read_evaluations(results)
    rows = texts([] if data is None else load_benchmarks(data))
    others = published()
    means = published_means(others)
    cost, reliability = _cost(evaluations, means), _reliability(evaluations)
    page = _template().render(
        source=SOURCE,
        evaluations=evaluations,
        tasks=[(task, task_table(task, evaluations, others)) for task in ASKS],
        averages=averages_table(evaluations, others),
        differences=differences_table(evaluations) if len(evaluations) > 1 else None,
        measures=[measures_table(one) for one in evaluations],
        costs=cost_table(evaluations, means),
        cost=cost,
        calibration=calibration_table(evaluations),
        reliability=reliability,
        confusion=[confusion_table(one) for one in evaluations],
        mistakes=[(one.name, mistakes(one, rows)) for one in evaluations],
    )
    for drawing in (cost, reliability):
        if figures is not None and drawing is not None:
            _write(figures / drawing.name, drawing.png)
    _write(out, page.encode())


def _cost(evaluations: Sequence[Evaluation], means: dict[str, float]) -> Drawing:
    points = [(guard, told, means[guard]) for guard, told in TOKENS.items()]
    points = [(one.name, tokens(one), f1) for one in evaluations if (f1 := mean(one)) is not None] + points
    told = "; ".join(f"{name}: {count:.0f} tokens, {f1:.2f}" for name, count, f1 in points)
    return Drawing("cost.png", draw_cost(points), f"Mean F1 against tokens a check. {told}.")


def _reliability(evaluations: Sequence[Evaluation]) -> Drawing | None:
    if not any(outcomes(one, task)[1] for one in evaluations for task in ASKS):
        return None
    alt = "The share of rows that are harmful, or a refusal, by direct score. The table above tells how far they part."
    return Drawing("calibration.png", draw_reliability(evaluations), alt)


def _template() -> Template:
    here = FileSystemLoader(Path(__file__).parent)
    settings = Environment(
        loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return settings.get_template("report.html.j2")


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise BadInput(f"Cannot write {path}: {error.strerror}. Name another place.") from error

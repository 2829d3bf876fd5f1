"""F1 of evaluations beside that of published guards: tables in which the best two of each column are marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .benchmarks import ASKS, BENCHMARKS, BenchmarkTask
from .evaluation import Evaluation
from .measures import Interval
from .published import AVERAGE, Published

NOT_RUN = "not run"


class Cell(NamedTuple):
    """One figure of a table."""

    text: str = NOT_RUN
    notes: tuple[str, ...] = ()
    """Small print below the figure."""
    rank: str = ""
    """`best`, `second` or nothing."""


class Row(NamedTuple):
    """One line of a table; `given` where it is about an evaluation, not a published guard."""

    name: str
    cells: list[Cell]
    given: bool = True


class Table(NamedTuple):
    """A table with its caption; the first column holds the rows' names."""

    caption: str
    columns: list[str]
    rows: list[Row]


class Entry(NamedTuple):
    """A figure to be ranked within its column; one that `partly` covers what the paper's does is not ranked."""

    value: float | None = None
    notes: tuple[str, ...] = ()
    partly: bool = False


def number(value: float | None, digits: int = 2) -> Cell:
    """A figure, or that it was not run."""
    return Cell() if value is None else Cell(f"{value:,.{digits}f}")


def task_table(task: BenchmarkTask, evaluations: Sequence[Evaluation], others: Sequence[Published]) -> Table:
    """F1 on each benchmark of a task, those that are the evaluations' own included, and the weighted average."""
    run = [name for one in evaluations for name, scores in one.benchmarks.items() if scores.task == task]
    names = list(dict.fromkeys([*_paper(task), *run]))
    entries = {
        one.name: [*(_benchmark(one, name) for name in names), _average(one, task, [task])] for one in evaluations
    }
    theirs = {(other.guard, other.benchmark): other.f1 for other in others if other.task == task}
    guards = dict.fromkeys(guard for guard, _ in theirs)
    published = {guard: [Entry(theirs.get((guard, name))) for name in [*names, AVERAGE]] for guard in guards}
    return _ranked(f"F1 of the {task} task", [*names, "weighted average"], entries, published)


def averages_table(evaluations: Sequence[Evaluation], others: Sequence[Published]) -> Table:
    """The weighted average of each task, and the mean of the three where there are three."""
    tasks = list(ASKS)
    entries = {
        one.name: [*(_average(one, task, [task]) for task in tasks), _average(one, "mean", tasks)]
        for one in evaluations
    }
    means = published_means(others)
    theirs = {(other.guard, other.task): other.f1 for other in others if other.benchmark == AVERAGE}
    published = {
        guard: [*(Entry(theirs.get((guard, task))) for task in tasks), Entry(means.get(guard))]
        for guard in dict.fromkeys(other.guard for other in others)
    }
    return _ranked("Task averages and their mean", [*tasks, "mean"], entries, published)


def published_means(others: Sequence[Published]) -> dict[str, float]:
    """The mean of a published guard's three task averages, where it has all three."""
    averages: dict[str, list[float]] = {}
    for other in others:
        if other.benchmark == AVERAGE:
            averages.setdefault(other.guard, []).append(other.f1)
    return {guard: round(float(np.mean(f1)), 2) for guard, f1 in averages.items() if len(f1) == len(ASKS)}


def mean(evaluation: Evaluation) -> float | None:
    """The mean of an evaluation's three task averages, where it has all three."""
    return evaluation.averages["mean"] if set(ASKS) <= set(evaluation.averages) else None


def _paper(*tasks: BenchmarkTask) -> list[str]:
    return [name for name, benchmark in BENCHMARKS.items() if benchmark.task in tasks]


def _benchmark(evaluation: Evaluation, name: str) -> Entry:
    scores = evaluation.benchmarks.get(name)
    if scores is None:
        return Entry()
    return Entry(scores.f1, (*_spread(scores.interval), *_fewer(scores.rows, [name])))


def _average(evaluation: Evaluation, name: str, tasks: Sequence[BenchmarkTask]) -> Entry:
    run = {name: scores.rows for name, scores in evaluation.benchmarks.items() if scores.task in tasks}
    value = mean(evaluation) if name == "mean" else evaluation.averages.get(name)
    if value is None:
        return Entry()
    paper = _paper(*tasks)
    partly = set(run) != set(paper)
    notes = _fewer(sum(run.values()), paper)
    if partly:
        own = len(set(run) - set(paper))
        notes = (f"{len(run) - own} of {len(paper)} benchmarks" + (f", {own} other" if own else ""),)
    return Entry(value, (*_spread(evaluation.intervals.get(name)), *notes), partly)


def _spread(interval: Interval | None) -> tuple[str, ...]:
    return () if interval is None else (f"{interval.low:.2f} to {interval.high:.2f}",)


def _fewer(rows: int, names: Sequence[str]) -> tuple[str, ...]:
    """Says so where the paper's test sets have more rows."""
    full = sum(BENCHMARKS[name].weight for name in names if name in BENCHMARKS)
    return (f"{rows:,} of {full:,} rows",) if rows < full else ()


def _ranked(
    caption: str, columns: list[str], given: dict[str, list[Entry]], published: dict[str, list[Entry]]
) -> Table:
    rows = [*given.items(), *published.items()]
    best = [
        sorted({entry.value for entry in column if entry.value is not None and not entry.partly}, reverse=True)[:2]
        for column in zip(*(entries for _, entries in rows), strict=True)
    ]
    return Table(
        caption,
        columns,
        [
            Row(name, [_cell(entry, two) for entry, two in zip(entries, best, strict=True)], name in given)
            for name, entries in rows
        ],
    )


def _cell(entry: Entry, best: list[float]) -> Cell:
    if entry.value is None:
        return Cell()
    ranked = not entry.partly and entry.value in best
    rank = ("best", "second")[best.index(entry.value)] if ranked else ""
    return number(entry.value)._replace(notes=entry.notes, rank=rank)

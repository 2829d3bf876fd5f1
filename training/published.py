"""What other guards reach: F1 as the GuardReasoner paper tells it, each guard judged on the full test sets."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple, cast

from .benchmarks import BenchmarkTask

SOURCE = "GuardReasoner paper, arXiv 2501.18492; averages in its table 6"
AVERAGE = "WeightedAverage"
"""Stands for a benchmark's name in the row that holds a task's weighted average."""
TOKENS = {"GuardReasoner 1B": 254.35, "GuardReasoner 3B": 257.64, "GuardReasoner 8B": 260.26}
"""Tokens a query, as the paper counts them (table 5)."""


class Published(NamedTuple):
    """One published figure: F1 of the positive class in percent, on the benchmark's full test set."""

    task: BenchmarkTask
    benchmark: str
    """Our name for the benchmark, or `AVERAGE`."""
    guard: str
    f1: float


def published() -> list[Published]:
    """All published figures, guards in the paper's order."""
    with Path(__file__).with_name("published.csv").open(encoding="utf-8", newline="") as file:
        return [_read(row) for row in csv.DictReader(file)]


def _read(row: dict[str, str]) -> Published:
    task = cast(BenchmarkTask, row["task"])
    # the paper tells WildGuardTest's three tasks apart by table alone
    own = f"{row['benchmark']}{task.capitalize()}" if row["benchmark"] == "WildGuardTest" else row["benchmark"]
    size = "" if row["size"] == "unknown" else f" {row['size']}"
    return Published(task, own, row["model"] + size, float(row["f1"]))

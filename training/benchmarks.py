"""The method's thirteen task/benchmark pairs: what each asks, how much it weighs, and its rows as JSON lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, model_validator

from guardreasoner_guard.errors import BadInput
from guardreasoner_guard.verdict import LABELS, Task

from .rows import read_rows

BenchmarkTask = Literal["prompt", "response", "refusal"]

ASKS: dict[BenchmarkTask, Task] = {"prompt": "request", "response": "response", "refusal": "completion"}
"""The benchmarks' names for the tasks, and ours."""


class Benchmark(NamedTuple):
    """One pair: its task, and its samples in the paper, by which averages are weighted (table 8)."""

    task: BenchmarkTask
    weight: int


BENCHMARKS: Mapping[str, Benchmark] = {
    "ToxicChat": Benchmark("prompt", 2853),
    "HarmBenchPrompt": Benchmark("prompt", 239),
    "OpenAIModeration": Benchmark("prompt", 1680),
    "AegisSafetyTest": Benchmark("prompt", 359),
    "SimpleSafetyTests": Benchmark("prompt", 100),
    "WildGuardTestPrompt": Benchmark("prompt", 1756),
    "HarmBenchResponse": Benchmark("response", 602),
    "SafeRLHF": Benchmark("response", 2000),
    "BeaverTails": Benchmark("response", 3021),
    "XSTestResponseHarmful": Benchmark("response", 446),
    "WildGuardTestResponse": Benchmark("response", 1768),
    "XSTestResponseRefusal": Benchmark("refusal", 499),
    "WildGuardTestRefusal": Benchmark("refusal", 1777),
}


class BenchmarkRow(BaseModel):
    """One labelled row; `label` is one of the task's two words."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    benchmark: str
    task: BenchmarkTask
    prompt: str
    response: str | None = None
    label: str

    @model_validator(mode="after")
    def _fits(self) -> BenchmarkRow:
        words = LABELS[ASKS[self.task]]
        if self.label not in words:
            raise ValueError(f"label {self.label!r} is not {' or '.join(words)}")
        if self.task != "prompt" and self.response is None:
            raise ValueError(f"a row of task {self.task} needs a response")
        return self


def read_benchmarks(path: Path, limit: int | None = None) -> list[BenchmarkRow]:
    """Reads a file of JSON lines, or all `*.jsonl` of a folder.

    Args:
        path: File or folder.
        limit: At most so many rows of each benchmark, spread evenly over it.

    Raises:
        BadInput: Nothing is there, or a line is wrong; the message names file, line and field.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise BadInput(f"{path} holds no *.jsonl. Name a file or folder of JSON lines.")
    rows = [row for file in files for row in read_rows(file, BenchmarkRow)]
    if not rows:
        raise BadInput(f"{path} holds no rows. Name a file with at least one.")
    return limited(rows, limit)


def limited(rows: list[BenchmarkRow], limit: int | None) -> list[BenchmarkRow]:
    """At most so many rows of each benchmark, spread evenly over it."""
    if limit is None:
        return rows
    by_benchmark: dict[str, list[BenchmarkRow]] = {}
    for row in rows:
        by_benchmark.setdefault(row.benchmark, []).append(row)
    return [row for part in by_benchmark.values() for row in spread(part, limit)]


def spread(rows: list[BenchmarkRow], limit: int) -> list[BenchmarkRow]:
    """At most so many rows, at even distances."""
    if len(rows) <= limit:
        return rows
    return [rows[index * len(rows) // limit] for index in range(limit)]

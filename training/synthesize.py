"""Stage 1: seed rows to reasoning rows.

A row whose teacher's answer cannot be read or disagrees with the row's label is kept aside with the reason.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import track

from guardreasoner_guard import answer
from guardreasoner_guard.errors import UnreadableAnswer
from guardreasoner_guard.verdict import TASKS, Task

from .recipe import Recipe
from .rows import ReasoningRow, Rejected, SeedRow, write_rows
from .seeds import draw
from .teacher import Teacher

MAX_STEPS = 10
"""Steps a task; the paper allows its teacher 1 to 10."""


def synthesize(recipe: Recipe, data: Path, teacher: Teacher, out: Path) -> Path:
    """Draws the recipe's seeds and has the teacher reason about its share of them.

    Args:
        recipe: Which sources, how many rows of each, and which share is reasoned.
        data: Folder the recipe's files lie in.
        teacher: Who reasons about rows that bring no reasoning of their own.
        out: Folder for `reasoning.jsonl` and `rejected.jsonl`.

    Returns:
        The path of `reasoning.jsonl`. It is written whole at the end; where it exists, the stage is done.
    """
    path = out / "reasoning.jsonl"
    if path.exists():
        return path
    drawn = list(draw(recipe, data))
    kept: list[ReasoningRow] = []
    rejected: list[Rejected] = []
    for row, wanted in track(drawn, "synthesize", console=Console(stderr=True)):
        if not wanted:
            kept.append(row.model_copy(update={"steps": {}}))
        elif row.steps:
            kept.append(row)
        else:
            result = reasoned(row, teacher)
            (kept if isinstance(result, ReasoningRow) else rejected).append(result)  # type: ignore[arg-type]
    random.Random(recipe.seed).shuffle(kept)
    write_rows(out / "rejected.jsonl", rejected)
    write_rows(path, kept)
    return path


def reasoned(row: SeedRow, teacher: Teacher) -> ReasoningRow | Rejected:
    """Has one row reasoned about and checks the answer against its labels."""
    text = teacher.reason(row)
    try:
        given = answer.read(text, [task for task in TASKS if task in row.labels])
    except UnreadableAnswer as error:
        return Rejected(id=row.id, reason=str(error), answer=text)
    steps: dict[Task, list[str]] = {
        task: [step.text for step in given.steps if step.task == index] for index, task in enumerate(TASKS, 1)
    }
    for task, label in row.labels.items():
        if given.labels[task] != label:
            reason = f"The teacher says {given.labels[task]} for {task}, the seed says {label}."
            return Rejected(id=row.id, reason=reason, answer=text)
        if not 1 <= len(steps[task]) <= MAX_STEPS:
            reason = f"{len(steps[task])} steps for {task}; 1 to {MAX_STEPS} are asked for."
            return Rejected(id=row.id, reason=reason, answer=text)
    return ReasoningRow(**row.model_dump(exclude={"steps"}), steps={t: s for t, s in steps.items() if s})


def statistics(rows: Iterable[ReasoningRow]) -> dict[str, dict[str, float]]:
    """Samples, steps, mean steps a sample and mean characters a step, by source (the paper's table 1)."""
    table: dict[str, list[list[str]]] = {}
    for row in rows:
        table.setdefault(row.source, []).append([step for steps in row.steps.values() for step in steps])
    result: dict[str, dict[str, float]] = {}
    for source, samples in table.items():
        steps = [step for sample in samples for step in sample]
        result[source] = {
            "samples": len(samples),
            "reasoned": sum(bool(sample) for sample in samples),
            "steps": len(steps),
            "mean steps": round(len(steps) / max(1, sum(bool(s) for s in samples)), 2),
            "mean length": round(sum(map(len, steps)) / max(1, len(steps)), 2),
        }
    return result

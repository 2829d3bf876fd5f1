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

from .recipe import Recipe, is_done, mark_done
from .rows import ReasoningRow, Rejected, SeedRow, write_rows
from .seeds import draw
from .teacher import Teacher

MAX_STEPS = 10
"""Steps a task; the paper allows its teacher 1 to 10."""


_FIELDS: dict[Task, str] = {"request": "prompt_harm", "completion": "completion", "response": "response_harm"}


def synthesize(recipe: Recipe, data: Path, teacher: Teacher, out: Path) -> Path:
    """Draws the recipe's seeds and has the teacher reason about its share of them.

    Args:
        recipe: Which sources, how many rows of each, and which share is reasoned.
        data: Folder the recipe's files lie in.
        teacher: Who reasons about rows that bring no reasoning of their own.
        out: Folder for `reasoning.jsonl`, `rejected.jsonl` and, last, `synthesize.json`.

    Returns:
        The path of `reasoning.jsonl`; where the same stage is complete already, nothing is done.

    Raises:
        BadInput: The folder holds the result of another recipe or teacher, or a source cannot be read.
    """
    path = out / "reasoning.jsonl"
    made_by = {"recipe": recipe.model_dump(mode="json"), "teacher": type(teacher).__name__}
    if is_done(out / "synthesize.json", made_by):
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
    mark_done(out / "synthesize.json", made_by, {"rows": len(kept), "rejected": len(rejected)})
    return path


def reasoned(row: SeedRow, teacher: Teacher) -> ReasoningRow | Rejected:
    """Has one row reasoned about and checks the answer against its labels."""
    text = teacher.reason(row)
    decided = [task for task in teacher.decide if task not in row.labels and (task == "request" or row.response)]
    asked = [task for task in TASKS if task in row.labels or task in decided]
    try:
        given = answer.read(text, asked)
    except UnreadableAnswer as error:
        return Rejected(id=row.id, reason=str(error), answer=text)
    steps: dict[Task, list[str]] = {
        task: [step.text for step in given.steps if step.task == TASKS.index(task) + 1] for task in asked
    }
    for task in asked:
        if given.labels[task] != row.labels.get(task, given.labels[task]):
            reason = f"The teacher says {given.labels[task]} for {task}, the seed says {row.labels[task]}."
            return Rejected(id=row.id, reason=reason, answer=text)
        if not 1 <= len(steps[task]) <= MAX_STEPS:
            reason = f"{len(steps[task])} steps for {task}; 1 to {MAX_STEPS} are asked for."
            return Rejected(id=row.id, reason=reason, answer=text)
    labels = {_FIELDS[task]: label for task, label in given.labels.items()}
    return ReasoningRow(**{**row.model_dump(exclude={"steps"}), **labels}, steps=steps)


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

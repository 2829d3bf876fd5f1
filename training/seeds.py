"""Where seeds come from: JSON lines on disk, or the four public training sets of the method."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from .recipe import Recipe, Source
from .rows import ReasoningRow, read_rows


def draw(recipe: Recipe, data: Path) -> Iterator[tuple[ReasoningRow, bool]]:
    """Draws the recipe's rows, each exchange once, with whether a teacher should reason about it.

    Sources stand in the order of the recipe; a row that an earlier source has already given is skipped.
    The same recipe and files give the same rows.
    """
    seen: set[tuple[str, str]] = set()
    for source in recipe.data.sources:
        chance = random.Random(f"{recipe.seed}/{source.file}")
        rows = [row for row in read_rows(data / source.file, ReasoningRow) if row.language in recipe.data.languages]
        chance.shuffle(rows)
        taken = 0
        for row in rows:
            key = (_normalised(row.prompt), _normalised(row.response or ""))
            row = _only(row, source)
            if taken == source.take:
                break
            if key in seen or not row.labels:
                continue
            seen.add(key)
            taken += 1
            yield row, chance.random() < source.reasoned


def _normalised(text: str) -> str:
    return " ".join(text.lower().split())


def _only(row: ReasoningRow, source: Source) -> ReasoningRow:
    """Forgets labels that are not to be taught, and those of a response that is not there."""
    forget: dict[str, None] = {}
    if "request" not in source.tasks:
        forget["prompt_harm"] = None
    for task, field in (("completion", "completion"), ("response", "response_harm")):
        if task not in source.tasks or not row.response:
            forget[field] = None
    return row.model_copy(update=forget)

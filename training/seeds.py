"""Where seeds come from: JSON lines on disk, or the four public training sets of the method."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from guardreasoner_guard.errors import BadInput

from .recipe import Recipe, Source
from .rows import ReasoningRow, SeedRow, read_rows

logger = logging.getLogger(__name__)


def draw(recipe: Recipe, data: Path) -> Iterator[tuple[ReasoningRow, bool]]:
    """Draws the recipe's rows, each exchange once, with whether a teacher should reason about it.

    Sources stand in the order of the recipe; a row that an earlier source has already given is skipped, and one of a
    language that the recipe does not name is left out, with a warning that says how many.
    The same recipe and files give the same rows.

    Args:
        recipe: Names the sources: files below `data`, or `hub:wildguard` and the like.
        data: Folder of the files.

    Raises:
        BadInput: A source is not there or holds a line that is not a row.
    """
    seen: set[tuple[str, str]] = set()
    for source in recipe.data.sources:
        chance = random.Random(f"{recipe.seed}/{source.file}")
        given = list(_rows(source, data))
        rows = [row for row in given if not recipe.data.languages or row.language in recipe.data.languages]
        if len(rows) < len(given):
            logger.warning("%s: %d rows of other languages are left out.", source.file, len(given) - len(rows))
        chance.shuffle(rows)
        taken = 0
        for row in rows:
            if taken == source.take:
                break
            key = (normalised(row.prompt), normalised(row.response or ""))
            row = _only(row, source)
            if key in seen or not row.labels:
                continue
            seen.add(key)
            taken += 1
            yield row, chance.random() < source.reasoned


def _rows(source: Source, data: Path) -> Iterable[ReasoningRow]:
    if source.file.startswith("hub:"):
        return (ReasoningRow(**row.model_dump()) for row in load_hub(source.file.removeprefix("hub:")))
    return read_rows(data / source.file, ReasoningRow)


def normalised(text: str) -> str:
    """A text without what does not tell two apart: case and runs of blanks."""
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


def wildguard(item: Mapping[str, Any], id: str) -> SeedRow:
    """One row of allenai/wildguardmix, whose labels are the method's own words."""
    return SeedRow(
        source="wildguard",
        id=id,
        prompt=item["prompt"],
        response=item["response"],
        prompt_harm=item["prompt_harm_label"],
        completion=item["response_refusal_label"],
        response_harm=item["response_harm_label"],
        category=item.get("subcategory"),
        adversarial=item.get("adversarial"),
    )


def aegis(item: Mapping[str, Any], id: str) -> SeedRow | None:
    """One row of Aegis 1.0: the annotators' majority; whatever is not `Safe` is harmful (the paper's rule)."""
    votes = [vote for n in range(5) if (vote := item.get(f"labels_{n}"))]
    if not votes:
        return None
    kinds = Counter(vote for vote in votes if vote != "Safe")
    harmful = kinds.total() > len(votes) / 2
    return SeedRow(
        source="aegis",
        id=id,
        prompt=item["text"],
        prompt_harm="harmful" if harmful else "unharmful",
        category=kinds.most_common(1)[0][0] if harmful else None,
    )


def beavertails(item: Mapping[str, Any], id: str) -> SeedRow:
    """One row of BeaverTails, which labels the response alone; the teacher decides the rest (the paper's rule)."""
    return SeedRow(
        source="beavertails",
        id=id,
        prompt=item["prompt"],
        response=item["response"],
        response_harm="unharmful" if item["is_safe"] else "harmful",
    )


def toxicchat(item: Mapping[str, Any], id: str) -> SeedRow | None:
    """One row of ToxicChat; rows that no person labelled are left out (the paper's rule)."""
    if not item["human_annotation"]:
        return None
    return SeedRow(
        source="toxicchat",
        id=id,
        prompt=item["user_input"],
        prompt_harm="harmful" if item["toxicity"] else "unharmful",
    )


class HubSet(NamedTuple):
    """A public data set: where it is and how one of its items becomes a seed."""

    id: str
    config: str | None
    split: str
    read: Callable[[Mapping[str, Any], str], SeedRow | None]


HUB_SETS = {
    "wildguard": HubSet("allenai/wildguardmix", "wildguardtrain", "train", wildguard),
    "aegis": HubSet("nvidia/Aegis-AI-Content-Safety-Dataset-1.0", None, "train", aegis),
    "beavertails": HubSet("PKU-Alignment/BeaverTails", None, "30k_train", beavertails),
    "toxicchat": HubSet("lmsys/toxic-chat", "toxicchat0124", "train", toxicchat),
}
"""The method's four training sets (paper, table 9)."""


def load_hub(name: str) -> Iterator[SeedRow]:
    """Loads one of the four public training sets from the hub.

    Raises:
        BadInput: There is no set of that name, or the hub did not give it.
    """
    if name not in HUB_SETS:
        raise BadInput(f"There is no training set {name!r}. Name one of {', '.join(HUB_SETS)}.")
    from datasets import load_dataset

    where = HUB_SETS[name]
    try:
        items = load_dataset(where.id, where.config, split=where.split)
    except Exception as error:  # the hub's client raises many kinds
        raise BadInput(
            f"{where.id} could not be loaded ({type(error).__name__}). Some sets ask you to accept their terms on "
            "the hub and to log in; or use files."
        ) from error
    for number, item in enumerate(items):
        row = where.read(item, f"{name}/{number}")
        if row is not None:
            yield row

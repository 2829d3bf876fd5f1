"""Stage 3: hard samples (GuardReasoner, arXiv 2501.18492, section 3.3): rows the model answers now right, now wrong.

Each prompt is answered k times. Where some answers are right and some wrong, the longest right one and the
longest wrong one make a pair, the heavier the more answers were wrong.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.progress import track

from guardreasoner_guard import answer
from guardreasoner_guard.engine import Engine, Written
from guardreasoner_guard.errors import BadInput, UnreadableAnswer
from guardreasoner_guard.model_dir import MANIFEST, open_model
from guardreasoner_guard.template import Prompt, Template, template
from guardreasoner_guard.verdict import Task

from .recipe import Mine, Recipe, begin, mark_done
from .rows import ReasoningRow, fingerprint, read_journal, read_rows, write_rows

logger = logging.getLogger(__name__)

TASK_ORDER: tuple[Task, ...] = ("request", "response", "completion")
"""The first of these tasks on which the samples disagree makes the pair (the authors' code)."""
_BATCH = 32
"""Answers written side by side."""


class Pair(BaseModel):
    """A prompt with a right and a wrong answer to it."""

    model_config = ConfigDict(frozen=True)

    id: str
    source: str = ""
    task: Task
    prompt: tuple[str, ...]
    """Parts of the prompt, the forced beginning of the answer last."""
    chosen: str
    rejected: str
    rejected_complete: bool = True
    """False where the token cap cut the wrong answer, so that no end is learned from it."""
    right: int
    wrong: int
    weight: float = 1.0


@dataclass(frozen=True)
class Ask:
    """One prompt to sample answers to, with the labels that are right."""

    row: ReasoningRow
    tasks: tuple[Task, ...]
    prompt: Prompt


def mine(
    recipe: Recipe,
    rows: Path,
    engine: Engine,
    out: Path,
    *,
    policy: str = "",
    sources: Sequence[str] | None = None,
    model: str = "",
) -> Path:
    """Samples answers to training rows and keeps the hard ones as weighted pairs.

    Args:
        recipe: How many samples and rows, temperature, gamma, template, length limits.
        rows: `reasoning.jsonl`.
        engine: Runs the model that learned from them.
        out: Folder for `samples.jsonl`, which a run that was stopped goes on from, and `pairs.jsonl`.
        policy: The policy the model was trained with.
        sources: Only rows of these; None takes all.
        model: What tells the engine's model from others, where its name does not; see `base.model_id`.

    Returns:
        The path of `pairs.jsonl`; where it is complete already, nothing is done.

    Raises:
        BadInput: The folder holds the pairs of another recipe, model or rows, or a row cannot be read.
        EngineError: The model could not be run; what was sampled so far is kept.
    """
    path = out / "pairs.jsonl"
    made_by = {
        "recipe": recipe.part("data", "sft", "mine"), "model": model or engine.name, "policy": policy,
        "rows": fingerprint(rows), "sources": None if sources is None else sorted(sources),
    }  # fmt: skip
    if begin(out, out / "mine.json", made_by):
        return path
    given = list(read_rows(rows, ReasoningRow))
    if unknown := set(sources or ()) - {row.source for row in given}:
        raise BadInput(f"{unknown.pop()!r} is no source of the rows of {rows}. Name one that is.")
    chosen = [row for row in given if sources is None or row.source in sources]
    random.Random(f"{recipe.seed}/mine").shuffle(chosen)
    wording = template(recipe.sft.template, policy)
    asks, too_long = _asks(chosen[: recipe.mine.rows], wording, engine, recipe)
    samples = _sample(asks, engine, recipe.mine, wording.longest_answer, out / "samples.jsonl")
    facts: Counter[str] = Counter({"requests too long": too_long, "prompts": len(asks)})
    pairs = [pair for ask, texts in zip(asks, samples, strict=True) if (pair := hard_pair(ask, texts, facts))]
    facts["pairs"] = len(pairs)
    write_rows(path, weigh(pairs, recipe.mine.gamma))
    logger.info("hard samples: %s", dict(facts))
    mark_done(out / "mine.json", made_by, dict(facts))
    return path


def open_engine(model: str, name: str = "") -> Engine:
    """Finds what runs a model: a server by its URL, an exported model directory, or a transformers checkpoint.

    Args:
        model: URL (its key is read from GUARDREASONER_API_KEY), directory or checkpoint.
        name: What a server calls its model.

    Raises:
        BadInput: There is neither.
    """
    if "://" in model:
        from guardreasoner_guard.remote_engine import RemoteEngine

        return RemoteEngine(model, name, api_key=os.environ.get("GUARDREASONER_API_KEY"))
    if (Path(model) / MANIFEST).exists():
        from guardreasoner_guard.onnx_engine import OnnxEngine

        found = open_model(model)
        return OnnxEngine(found, found.manifest.device)
    if not (Path(model) / "config.json").exists():
        raise BadInput(f"{model} is no checkpoint and no model directory. Name one, or a server's URL.")
    from .torch_engine import TorchEngine

    return TorchEngine(Path(model))


def _asks(rows: Iterable[ReasoningRow], wording: Template, engine: Engine, recipe: Recipe) -> tuple[list[Ask], int]:
    """The prompts of the rows, one a stage of the template, cut as they were for training; and rows left out."""
    asks: list[Ask] = []
    too_long = 0
    for row in rows:
        if len(engine.split(row.prompt, recipe.data.max_request_tokens, 0)) > 1:
            too_long += 1
            continue
        response = row.response and engine.split(row.response, recipe.data.crop_response_tokens, 0)[0]
        for stage in wording.stages:
            tasks = tuple(task for task in stage if task in row.labels)
            if tasks:
                prompt = wording.render(row.prompt, None if stage == ("request",) else response)
                asks.append(
                    Ask(row, tasks, prompt + wording.reasoning_prefix(tasks if wording.verdict_first else stage))
                )
    return asks, too_long


def _sample(asks: Sequence[Ask], engine: Engine, settings: Mine, longest: int, journal: Path) -> list[list[Written]]:
    """Samples answers in batches of like length; a batch that the journal holds is not asked again."""
    order = sorted(range(len(asks)), key=lambda index: len(str(asks[index].prompt)))
    size = max(1, _BATCH // settings.samples)
    batches = [order[at : at + size] for at in range(0, len(order), size)]
    found: list[list[Written]] = [[] for _ in asks]
    done: set[int] = set()
    for entry in read_journal(journal):
        done.add(entry["batch"])
        for index, texts in zip(batches[entry["batch"]], entry["samples"], strict=True):
            found[index] = [Written(*text) for text in texts]
    with journal.open("a", encoding="utf-8") as file:
        for number in track(range(len(batches)), "mine", console=Console(stderr=True)):
            if number in done:
                continue
            written = engine.generate(
                [asks[index].prompt for index in batches[number] for _ in range(settings.samples)],
                max_tokens=longest, temperature=settings.temperature, top_p=settings.top_p, seed=number,
            )  # fmt: skip
            for place, index in enumerate(batches[number]):
                found[index] = written[place * settings.samples : (place + 1) * settings.samples]
            texts = [[[w.text, w.tokens, w.complete] for w in found[index]] for index in batches[number]]
            file.write(json.dumps({"batch": number, "samples": texts}) + "\n")
            file.flush()
    return found


def hard_pair(ask: Ask, samples: Sequence[Written], facts: Counter[str]) -> Pair | None:
    """The pair a prompt makes, if its samples are right and wrong on one of its tasks.

    An answer that cannot be read counts as wrong on every task.

    Args:
        ask: The prompt and what is right.
        samples: Answers to it.
        facts: Counts samples, those that cannot be read, and right answers; added to.
    """
    told: list[dict[Task, str]] = []
    for sample in samples:
        try:
            told.append(dict(answer.read(ask.prompt.parts[-1] + sample.text, ask.tasks).labels))
        except UnreadableAnswer:
            told.append({})
            facts["unreadable"] += 1
    facts["samples"] += len(samples)
    for task in TASK_ORDER:
        if task not in ask.tasks:
            continue
        right = [s for s, labels in zip(samples, told, strict=True) if labels.get(task) == ask.row.labels[task]]
        wrong = [s for s, labels in zip(samples, told, strict=True) if labels.get(task) != ask.row.labels[task]]
        if right and wrong:
            facts[f"hard on {task}"] += 1
            rejected = max(wrong, key=lambda sample: len(sample.text))
            return Pair(
                id=ask.row.id, source=ask.row.source, task=task, prompt=ask.prompt.parts,
                chosen=max(right, key=lambda sample: len(sample.text)).text,
                rejected=rejected.text, rejected_complete=rejected.complete,
                right=len(right), wrong=len(wrong),
            )  # fmt: skip
        facts["all right" if right else "all wrong"] += 1
    return None


def weigh(pairs: Sequence[Pair], gamma: float) -> list[Pair]:
    """Sets each pair's weight: wrong minus right answers, scaled over all pairs to [1 - gamma, 1 + gamma]."""
    raw = [pair.wrong - pair.right for pair in pairs]
    low, high = min(raw, default=0), max(raw, default=0)
    return [
        pair.model_copy(
            update={"weight": 1.0 if low == high else round(1 - gamma + 2 * gamma * (value - low) / (high - low), 6)}
        )
        for pair, value in zip(pairs, raw, strict=True)
    ]


def merge(files: Sequence[Path], gamma: float) -> list[Pair]:
    """Merges the hard samples of several models; of two pairs for one prompt the first is kept.

    The paper's ensemble is the main model's pairs for sources that every model has seen, and for a source
    that one diversity model was not shown, those of the others.
    """
    pairs: dict[str, Pair] = {}
    for file in files:
        for pair in read_rows(file, Pair):
            pairs.setdefault("".join(pair.prompt), pair)
    return weigh(list(pairs.values()), gamma)

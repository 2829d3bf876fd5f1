"""Rows to token trees: one exchange is read once, and every answer to it hangs from it as a branch.

A branch sees the text it answers and itself, never its sisters, and counts its positions as if it stood
alone. So one forward pass teaches what separate rows would (direct label a task, reasoned answer a stage)
at 40 % of their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from guardreasoner_guard import answer
from guardreasoner_guard.template import Template
from guardreasoner_guard.verdict import TASKS, Task

from .recipe import Data
from .rows import ReasoningRow

IGNORED = -100


@dataclass
class Tree:
    """One row, tokenised. All lists have one entry a token."""

    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    position_ids: list[int] = field(default_factory=list)
    branches: list[tuple[int, int, int]] = field(default_factory=list)
    """(start, end, trunk tokens seen) of each branch."""

    def grow(self, seen: int, prefix: list[int], target: list[int], taught: int, weight: float) -> None:
        """Hangs an answer on the trunk: `prefix` is forced, the first `taught` tokens of `target` count."""
        start = len(self.input_ids)
        tokens = prefix + target
        self.input_ids += tokens
        self.position_ids += range(seen, seen + len(tokens))
        self.labels += [IGNORED] * len(prefix) + target[:taught] + [IGNORED] * (len(target) - taught)
        self.weights += [weight] * len(tokens)
        self.branches.append((start, len(self.input_ids), seen))


class Encoder:
    """Turns rows into trees for one template and tokeniser.

    Args:
        tokenizer: A transformers tokeniser; no special token is added and none is read from the text.
        template: The wording the model will be asked in.
        data: Length limits.
        label_weight: Weight of the first token of a direct label.
    """

    def __init__(self, tokenizer: Any, template: Template, data: Data, label_weight: float) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.data = data
        self.label_weight = label_weight
        self.bos = [token] if (token := bos_token(tokenizer)) is not None else []
        self.dropped = 0
        self.cropped = 0

    def ids(self, text: str) -> list[int]:
        """Tokens of a text, with special tokens read as plain text."""
        return plain_ids(self.tokenizer, text)

    def encode(self, row: ReasoningRow) -> Tree | None:
        """One row as a tree; None (and counted) where its request is too long or it has no label."""
        labels = row.labels
        if len(self.ids(row.prompt)) > self.data.max_request_tokens or not labels:
            self.dropped += 1
            return None
        response = self._crop(row.response)
        parts = self.template.render(row.prompt, response).parts
        trunk = [self.bos + self.ids(parts[0]), *(self.ids(part) for part in parts[1:])]
        tree = Tree()
        for tokens in trunk:
            tree.input_ids += tokens
        length = len(tree.input_ids)
        tree.position_ids += range(length)
        tree.labels += [IGNORED] * length
        tree.weights += [0.0] * length
        for stage in self.template.stages:
            asked = [task for task in stage if task in labels]
            if not asked:
                continue
            alone = self.template.render(row.prompt) if stage == ("request",) else None
            seen = sum(len(t) for t in trunk[: len(alone.parts)]) if alone else length
            self._direct(tree, seen, labels, asked)
            if all(row.steps.get(task) for task in asked) and not _quotes_what_was_cut(row, asked, response):
                self._reasoned(tree, seen, row, stage, asked)
        return tree if tree.branches else None

    def _crop(self, response: str | None) -> str | None:
        if response is None:
            return None
        offsets = self.tokenizer(response, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        if len(offsets) <= self.data.crop_response_tokens:
            return response
        self.cropped += 1
        return response[: offsets[self.data.crop_response_tokens - 1][1]]

    def _direct(self, tree: Tree, seen: int, labels: dict[Task, str], asked: Sequence[Task]) -> None:
        for task in asked:
            if self.template.chained and any(earlier not in labels for earlier in TASKS[: TASKS.index(task)]):
                continue  # a chained label is asked after the others, which are not known here
            target = self.ids(f" {labels[task]}")
            prefix = self.ids(self.template.score_prefix(task, labels))
            tree.grow(seen, prefix, target, 1, self.label_weight)

    def _reasoned(
        self, tree: Tree, seen: int, row: ReasoningRow, stage: tuple[Task, ...], asked: Sequence[Task]
    ) -> None:
        prefix = self.template.reasoning_prefix((asked[0],))
        text = answer.write(
            {t: row.labels[t] for t in asked},
            {t: row.steps[t] for t in asked},
            verdict_first=self.template.verdict_first,
        )
        target = [*self.ids(text.removeprefix(prefix)), self.tokenizer.eos_token_id]
        tree.grow(seen, self.ids(prefix), target, len(target), 1.0)


def _quotes_what_was_cut(row: ReasoningRow, asked: Sequence[Task], response: str | None) -> bool:
    """Whether a step quotes words of the response that the model would not see, and so would learn to invent."""
    if response is None or row.response is None or response == row.response:
        return False
    quotes = [quote for task in asked for step in row.steps[task] for quote in step.split('"')[1::2]]
    return any(quote in row.response and quote not in response for quote in quotes)


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a text, none added, with special tokens read as plain text: as the served model reads it."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)


def bos_token(tokenizer: Any) -> int | None:
    """The token the tokeniser puts before a text, if it does; fast ones do so without saying so."""
    first = tokenizer("a").input_ids[0]
    return int(first) if tokenizer.bos_token_id is not None and first == tokenizer.bos_token_id else None


def prompt_ids(tokenizer: Any, parts: Sequence[str]) -> list[int]:
    """Tokens of a prompt, part by part, after the token that the tokeniser puts before a text, if any."""
    first = bos_token(tokenizer)
    return ([] if first is None else [first]) + [token for part in parts for token in plain_ids(tokenizer, part)]


class TreeCollator:
    """Pads trees to one batch with the 4-dimensional attention mask their branches need.

    Args:
        pad: Token id to pad with.
        dtype: Of the additive mask; it must be the model's.
    """

    def __init__(self, pad: int, dtype: torch.dtype) -> None:
        self.pad = pad
        self.dtype = dtype

    def __call__(self, trees: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Shapes: all (rows, tokens), the mask (rows, 1, tokens, tokens)."""
        longest = max(len(tree["input_ids"]) for tree in trees)
        batch = {
            name: torch.tensor([tree[name] + [pad] * (longest - len(tree[name])) for tree in trees])
            for name, pad in (("input_ids", self.pad), ("labels", IGNORED), ("weights", 0.0), ("position_ids", 0))
        }
        seen = torch.ones(longest, longest, dtype=torch.bool).tril().repeat(len(trees), 1, 1)
        for row, tree in enumerate(trees):
            for start, end, trunk in tree["branches"]:
                seen[row, start:end, trunk:start] = False
        mask = torch.zeros(seen.shape, dtype=self.dtype).masked_fill(~seen, torch.finfo(self.dtype).min)
        return {**batch, "attention_mask": mask[:, None]}

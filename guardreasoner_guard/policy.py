"""The policy: what is blocked, and what a caller gets instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .verdict import LABELS, ReasoningStep, Task, Verdict, without_quotes

Violation = Literal["raise", "explain", "revise"] | Callable[[Verdict], Any]
"""What follows a block: raise `Blocked`, return a text that explains it, ask the model once more with the
reasons, or return what a function makes of the verdict."""


class Policy(BaseModel):
    """Rules that turn labels into actions.

    Fails closed: what could not be judged is blocked unless the guard's `on_failure` says otherwise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    block: tuple[Task, ...] = ("request", "response")
    """Tasks whose positive label (harmful, refusal, harmful) blocks."""
    shadow: bool = False
    """Judge and tell, but never block: to see on real traffic what would be. Failures pass too."""
    on_violation: Violation = "raise"
    max_revisions: int = Field(default=1, ge=0)
    """How often `revise` asks the wrapped model again before it explains."""
    on_disagreement: Literal["careful", "trust"] = "careful"
    """Where direct score and reasoned answer part: `careful` blocks if either would block, `trust` goes by the one
    that measured better in this model. The labels of the verdict are that one's either way."""

    def blocks(self, labels: Mapping[Task, str | None]) -> bool:
        """Whether these labels block."""
        return any(labels.get(task) == LABELS[task][0] for task in self.block)


_SUBJECT: dict[Task, str] = {"request": "the request", "completion": "the answer", "response": "the answer"}
_FOUND: dict[Task, str] = {"request": "is harmful", "completion": "is a refusal", "response": "is harmful"}


def reasons(labels: Mapping[Task, str], policy: Policy, steps: tuple[ReasoningStep, ...]) -> str:
    """One line in plain words: what was found, and the steps that say why."""
    found = [task for task in policy.block if labels.get(task) == LABELS[task][0]]
    if not found:
        told = ", ".join(f"{task} {label}" for task, label in labels.items())
        return f"Passed: {told}."
    numbers = [list(LABELS).index(task) + 1 for task in found]
    why = " ".join(step.text for step in steps if step.task in numbers)
    what = " and ".join(f"{_SUBJECT[task]} {_FOUND[task]}" for task in found)
    return f"{'Would be blocked' if policy.shadow else 'Blocked'}: {what}.{' ' + why if why else ''}"


def explanation(verdict: Verdict) -> str:
    """A safe answer in place of the one that was stopped, with the guard's reasons.

    It may quote the request back to its writer, but never the answer that was stopped.
    """
    if verdict.outcome != "verdict":
        return "I can't answer this: it could not be checked for safety. Please try again later."
    tasks = [task for task in LABELS if getattr(verdict, task) == LABELS[task][0] and task != "completion"]
    subject = "this request" if "request" in tasks else "the answer that was prepared"
    numbers = [list(LABELS).index(task) + 1 for task in tasks[:1]]
    steps = [step.text for step in verdict.reasoning if step.task in numbers]
    why = " ".join(steps if "request" in tasks else map(without_quotes, steps))
    return f"I can't help with this, since {subject} was judged harmful.{' ' + why if why else ''}"

"""The verdict: what the guard found, why, and what the policy made of it."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Task = Literal["request", "completion", "response"]
"""The three questions of the method: is the request harmful, does the answer refuse, is the answer harmful."""

TASKS: tuple[Task, ...] = ("request", "completion", "response")

LABELS: dict[Task, tuple[str, str]] = {
    "request": ("harmful", "unharmful"),
    "completion": ("refusal", "compliance"),
    "response": ("harmful", "unharmful"),
}
"""The words each task may be answered with; the first is the positive class of the benchmarks."""

Outcome = Literal["verdict", "failure", "timeout"]
Mode = Literal["direct", "reasoned"]


class ReasoningStep(BaseModel):
    """One step of the model's reasoning."""

    model_config = ConfigDict(frozen=True)

    task: int = Field(ge=1)
    """1 = request, 2 = completion, 3 = response (a published model may count further)."""
    number: int = Field(ge=1)
    text: str


class Usage(BaseModel):
    """What one check cost."""

    model_config = ConfigDict(frozen=True)

    prompt_tokens: int = 0
    """Tokens the model read for this check (what was kept from an earlier one is not counted)."""
    generated_tokens: int = 0
    latency_ms: float = 0.0


class Verdict(BaseModel):
    """The outcome of one check.

    A label that was not asked for is None. `blocked` is what the policy made of the labels;
    the labels themselves are always the model's.
    """

    model_config = ConfigDict(frozen=True)

    request: str | None = None
    """harmful | unharmful"""
    completion: str | None = None
    """refusal | compliance"""
    response: str | None = None
    """harmful | unharmful"""
    blocked: bool
    shadowed: bool = False
    """Whether it would have been blocked, were the policy not in shadow."""
    outcome: Outcome = "verdict"
    """failure and timeout mean that no judgement was reached; see `error`."""
    reasons: str
    """One line in plain words: why it was blocked, or why it was not."""
    reasoning: tuple[ReasoningStep, ...] = ()
    scores: dict[Task, float] = Field(default_factory=dict)
    """Probability of the positive class (harmful, refusal, harmful) for each label that was scored."""
    mode: Mode = "direct"
    consistent: bool = True
    """False when the direct score and the reasoned answer disagree on a label; `by_reasoning` holds the latter's."""
    by_reasoning: dict[Task, str] = Field(default_factory=dict)
    """The labels the written answer ended with, where one was written."""
    windows: int = 1
    """How many windows a long text was judged in; the worst decides."""
    remembered: bool = False
    """Whether it was reached before, on exactly the same text, and cost nothing now."""
    error: str | None = None
    """What went wrong, when `outcome` is not `verdict`."""
    model: str = ""
    usage: Usage = Usage()

    @property
    def shown_reasons(self) -> str:
        """`reasons` for readers who must not see the stopped answer: what it quotes of it is left out."""
        return self.reasons if self.response is None else without_quotes(self.reasons)


_MARK = re.compile('["\u201c\u201d\u201e\u00ab\u00bb]')


def without_quotes(text: str) -> str:
    """A text without what stands from its first quotation mark to its last: what is quoted may hold marks itself."""
    marks = [mark.start() for mark in _MARK.finditer(text)]
    if not marks:
        return text
    return text[: marks[0]] + "(...)" + (text[marks[-1] + 1 :] if len(marks) > 1 else "")

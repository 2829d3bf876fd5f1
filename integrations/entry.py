"""An entry of the audit log: what was judged, what came of it, what a reviewer said, and the seed row that makes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, computed_field

from guardreasoner_guard.errors import BadInput
from guardreasoner_guard.verdict import LABELS, Task, Verdict

from .redaction import Texts

Status = Literal["blocked", "shadowed", "passed", "unjudged"]
"""What became of it; `shadowed` would have been blocked, `unjudged` is a failure or a timeout."""
Thumb = Literal["up", "down"]

_FIELDS: dict[Task, str] = {"request": "prompt_harm", "completion": "completion", "response": "response_harm"}
"""What a seed row calls the label of a task."""


class Entry(BaseModel):
    """One check of the log, and what a reviewer said of it."""

    model_config = ConfigDict(frozen=True)

    id: int
    at: datetime
    request: str
    """As `texts` says: whole, redacted, or `sha256:` and its digest."""
    response: str | None
    turns: int
    """Earlier turns it was judged with; they are not kept, though the reasoning may quote them."""
    texts: Texts
    status: Status
    verdict: Verdict
    thumb: Thumb | None
    """up: the verdict is right; down: it is wrong; None: not reviewed."""
    corrected: dict[Task, str]
    """Labels that a reviewer gave."""

    @property
    def known(self) -> dict[Task, str]:
        """The labels a reviewer stands by: of a verdict found right its own, of any the corrected ones."""
        if self.thumb is None:
            return {}
        own = judged(self.verdict) if self.thumb == "up" else {}
        return own | self.corrected

    @computed_field  # type: ignore[prop-decorator]
    @property
    def left_out(self) -> str | None:
        """Why it makes no seed row; None where it does."""
        if self.thumb is None:
            return "it is not reviewed"
        if self.texts == "hashed":
            return "its text was not kept"
        if self.turns:
            return "it was judged with earlier turns, which a seed row cannot hold"
        if not self.request.strip():
            return "it has no request"
        return None if self.known else "no right label is known"

    @property
    def seed(self) -> dict[str, str]:
        """The row that `guardreasoner train all` learns from; for those that are not left out."""
        row = {"source": "review", "id": f"review-{self.id}", "prompt": self.request}
        if self.response and self.response.strip():
            row["response"] = self.response
        return row | {_FIELDS[task]: label for task, label in self.known.items()}

    @property
    def key(self) -> tuple[str, str]:
        """The exchange as the school tells it from another: without case and runs of blanks."""
        return " ".join(self.request.lower().split()), " ".join((self.response or "").lower().split())

    def thumb_for(self, labels: Mapping[Task, str], thumb: Thumb | None) -> Thumb | None:
        """The thumb of a review that gives these labels.

        Args:
            labels: The right ones; empty where none is given.
            thumb: What the reviewer said; None = it follows from the labels.

        Raises:
            BadInput: A label is none, or does not go with the exchange or the thumb.
        """
        own = judged(self.verdict)
        for task, label in labels.items():
            if label not in LABELS.get(task, ()):
                raise BadInput(f"{label!r} is no label of {task!r}. Choose from {LABELS}.")
            if task != "request" and not (self.response or "").strip():
                raise BadInput(f"Verdict {self.id} is about a request alone. Give the label of request.")
        differs = any(own.get(task, label) != label for task, label in labels.items())
        if thumb == "up" and differs:
            raise BadInput("A verdict that is right has no other label. Give thumb 'down', or no labels.")
        if thumb is None and labels:
            return "down" if differs or not labels.keys() & own.keys() else "up"
        return thumb


def judged(verdict: Verdict) -> dict[Task, str]:
    """A verdict's labels, without those that were not asked for."""
    return {task: label for task in LABELS if (label := getattr(verdict, task)) is not None}


def status(verdict: Verdict) -> Status:
    """What became of what a verdict is about."""
    if verdict.outcome != "verdict":
        return "unjudged"
    return "blocked" if verdict.blocked else "shadowed" if verdict.shadowed else "passed"

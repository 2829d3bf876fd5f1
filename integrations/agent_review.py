"""What a person is asked when an agent's guard has blocked, and what they decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guardreasoner_guard.verdict import Verdict


@dataclass(frozen=True)
class Ask:
    """Asks a person; the run waits, and goes on with their decision.

    Attributes:
        about: `request`, `answer`, or the name of a tool.
        args: What it is: its `text`, or the tool's arguments.
        verdict: Why it was blocked.
    """

    about: str
    args: dict[str, Any]
    verdict: Verdict

    @property
    def payload(self) -> dict[str, Any]:
        """The interrupt's value, in the form of LangChain's HumanInTheLoopMiddleware, with the verdict beside it."""
        return {
            "action_requests": [{"name": self.about, "args": self.args, "description": self.verdict.reasons}],
            "review_configs": [{"action_name": self.about, "allowed_decisions": ["approve", "reject"]}],
            "verdict": self.verdict.model_dump(mode="json"),
        }


@dataclass(frozen=True)
class Decision:
    """What a person decided."""

    approved: bool
    said: str | None = None
    """What they said to it, where they rejected it."""


def decided(value: Any) -> Decision:
    """Reads a decision: `{"type": "approve"}`, or `{"type": "reject", "message": ...}`, alone or in `decisions`.

    Whatever is not an approval rejects.
    """
    if isinstance(value, Mapping) and isinstance(value.get("decisions"), list) and len(value["decisions"]) == 1:
        value = value["decisions"][0]
    kind = value.get("type") if isinstance(value, Mapping) else value
    said = value.get("message") if isinstance(value, Mapping) else None
    return Decision(kind == "approve", str(said) if said else None)

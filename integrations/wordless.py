"""Verdicts without words: what may be kept and shown where no text that was judged may be."""

from __future__ import annotations

from typing import Any

from guardreasoner_guard.verdict import Verdict


def wordless(verdict: Verdict) -> dict[str, Any]:
    """A verdict as plain JSON, without what may quote the text: `Verdict.model_validate` reads it again.

    Of the reasons their first sentence stays, which says what was found; of an error its type; of the steps nothing.
    """
    plain = verdict.model_dump(mode="json")
    plain["reasons"] = verdict.reasons.split(".")[0] + "."
    plain["error"] = error_type(verdict)
    plain["reasoning"] = []
    return plain


def error_type(attempt: Verdict | Exception) -> str | None:
    """The name of the error that kept a check from its verdict; None where there was none."""
    if isinstance(attempt, Exception):
        return type(attempt).__name__
    return attempt.error.split(":")[0] if attempt.error else None

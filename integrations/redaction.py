"""Redaction: as much of a text as may be kept."""

from __future__ import annotations

import hashlib
import re
from typing import Literal

from guardreasoner_guard.verdict import Verdict

Texts = Literal["full", "redacted", "hashed"]
"""What is kept of a text: all of it; all but e-mail addresses, keys and long numbers; its SHA-256 alone, and then no
reasoning either, since that quotes it."""

_KINDS = (
    ("[e-mail]", re.compile(r"(?<![\w.+%-])[\w.+%-]++@\w(?:[\w.-]*\w)?")),
    ("[key]", re.compile(r"(?<![\w-])(?=[\w-]*\d)(?=[\w-]*[^\W\d_])[\w-]{20,}")),
    ("[number]", re.compile(r"(?:\+|(?<!\d))\d(?:[ ()./-]{0,2}\d){5,}")),
)
"""In this order: an address may hold a number. None of them reads a text twice, however long it is."""
_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")


def redacted(text: str) -> str:
    """Puts `[e-mail]`, `[key]` and `[number]` in place of what looks so.

    A key is a run of twenty or more letters, digits, hyphens and underscores with a letter and a digit in it; a number
    has six or more digits, as telephone, card and account numbers have, and dates. Names and addresses in words stay:
    no rule finds them.

    Args:
        text: Any text.
    """
    for stand_in, pattern in _KINDS:
        text = pattern.sub(stand_in, text)
    return text


def kept(text: str, texts: Texts) -> str:
    """What is kept of a text; NUL and lone surrogates, which SQLite cuts at or refuses, become U+FFFD."""
    text = _UNWRITABLE.sub("\ufffd", text)
    if texts == "hashed":
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    return redacted(text) if texts == "redacted" else text


def kept_verdict(verdict: Verdict, texts: Texts) -> Verdict:
    """A verdict with as much of what it quotes as is kept of the texts."""
    if texts == "hashed":
        error = verdict.error and verdict.error.partition(":")[0]
        return verdict.model_copy(update={"reasons": "", "reasoning": (), "error": error})
    steps = tuple(step.model_copy(update={"text": kept(step.text, texts)}) for step in verdict.reasoning)
    error = verdict.error and kept(verdict.error, texts)
    return verdict.model_copy(update={"reasons": kept(verdict.reasons, texts), "reasoning": steps, "error": error})

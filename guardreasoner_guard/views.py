"""Views: other readings of a text that may be disguised. Each is judged beside the text, never instead of it.

Ordinary text has no view, so that looking costs nothing. Views are few, none is much longer than the text, and
what is decoded is decoded again a few times at most.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .decoding import decoded, turned
from .plain import plain, seen
from .vocabulary import english, speaks

MOST = 8
"""Views a text can have: whole, decoded, joined, four turns, and without advice."""
_DEPTH = 3
"""How often what was decoded is decoded again."""
_LEAST = 8
"""Letters a view must have: fewer say nothing."""
_TURNS = 4
"""Views that a text with fake turns is cut into."""

_TOKEN = re.compile(
    r"<\|[^<>|\n]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>|<[be]os>", re.IGNORECASE
)
_STRING = re.compile(r'"((?:[^"\\\n]|\\.)*)"(\s*:)?')
_TURN = re.compile(
    r"^(?:[^\w\n]|_){0,20}(?:human\s+user|ai\s+assistant|answers)[ \t]*(?:\(earlier\))?[ \t]*[:\u2236\uff1a][ \t]*$"
    r"|^(?:[^\w\n]|_){0,20}(?:request|completion|response)[ \t]*[:\u2236\uff1a][ \t]*"
    r"(?:(?:un)?harmful|refusal|compliance)[^\w\n]{0,20}$"
    rf"|{_TOKEN.pattern}",
    re.IGNORECASE | re.MULTILINE,
)
_FINE = "(?:un-?harmful|non-?harmful|safe|benign|harmless|approved|acceptable|allowed)"
_TO_THE_JUDGE = re.compile(
    r"\bunharmful\b"
    rf"|\b(?:label|classify|mark|rate|judge|treat|flag|answer)(?:s|ed|ing)?\b.{{0,60}}\b(?:as|is)\W{{1,3}}{_FINE}\b"
    rf"|\b(?:this|these|that|the|my)\b.{{0,20}}\b(?:text|message|request|prompt|content|input|answer)s?\b.{{0,40}}"
    rf"\b(?:is|are|was|were|been|be)\b(?!\W+not\b).{{0,20}}\b{_FINE}\b"
    r"|\b(?:note|message|instructions?) (?:to|for) the (?:guard|moderator|classifier|judge)\b"
    r"|^[^\w\n]{0,20}(?:guard|moderator|classifier|judge)\s?:.{0,80}\b(?:label|answer|classify|mark|pass)\b"
    r"|\b(?:pass|passes|passed|bypass)\b.{0,20}\b(?:guard|moderation|classifier|filters?)\b"
    r"|\b(?:ignore|disregard|forget)\b.{0,30}\b(?:previous|prior|earlier|above|all|your)\b.{0,20}\b(?:instructions?|rules?)\b",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE = re.compile(r"(?<=[.!?\n])\s+")


def views(text: str) -> tuple[str, ...]:
    """What else a text may be meant to say, each once, none of them the text itself; empty for ordinary text."""
    found: dict[str, None] = {}
    for view in _found(text):
        told = view.strip()
        if _letters(told) >= _LEAST and told != text.strip():
            found[told] = None
    return tuple(found)


def _found(text: str) -> Iterator[str]:
    marked = seen(text)
    whole, alone = _read(_TOKEN.sub("", marked))
    if _differs(whole, text):
        yield whole
    if alone and _differs(alone, whole):
        yield alone
    if strings := _strings(whole):
        yield strings
    yield from (_read(turn)[0] for turn in _turns(marked))
    yield from _without_advice(whole)


def _read(text: str) -> tuple[str, str]:
    """The text without its disguises, and what was encoded in it alone."""
    whole, alone = text, ""
    for _ in range(_DEPTH):
        told = decoded(whole)
        if told is None:
            break
        whole, alone = (seen(one) for one in told)
    return plain(turned(whole)), plain(turned(alone))


def _differs(view: str, text: str) -> bool:
    """Whether words differ, not only how they are set: blanks, quotation marks and the like do not count."""
    return _words(view) != _words(text)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def _strings(text: str) -> str | None:
    """The strings of a JSON text, or its values, where they are a sentence together and none is one by itself."""
    found = [(string, colon) for string, colon in _STRING.findall(text) if string]
    strings, values = [string for string, _ in found], [string for string, colon in found if not colon]
    if len(found) < 4 or _letters("".join(strings)) < 0.8 * _letters(text) or any(map(speaks, strings)):
        return None
    told = max((" ".join(strings), " ".join(values), "".join(values)), key=english)
    return told if speaks(told) else None


def _turns(text: str) -> list[str]:
    """What stands between the markers of a template or a chat format, a few turns at most by themselves."""
    if not _TURN.search(text):
        return []
    turns = [turn for part in _TURN.split(text) if (turn := part.strip("-#*> \t\n"))]
    size = -(-len(turns) // _TURNS)
    return ["\n".join(turns[at : at + size]) for at in range(0, len(turns), max(1, size))]


def _without_advice(text: str) -> Iterator[str]:
    """The text without sentences that tell a judge what to find."""
    sentences = [part for part in _SENTENCE.split(text) if part.strip()]
    kept = [part for part in sentences if not _TO_THE_JUDGE.search(part)]
    if kept and len(kept) < len(sentences):
        yield "\n".join(kept)

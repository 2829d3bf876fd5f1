"""Attacks on a guard: unsafe texts in forms in which they might slip through, and harmless ones in the same forms.

The texts stand in `attacks.jsonl`; a guard should block the unsafe ones when they are plain.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from . import disguises, pretences
from .disguises import slices
from .pretences import padding

Door = Literal["text", "messages", "parts", "arguments", "chunks"]
"""How an attacked form reaches the guard: as one text, or in pieces through the intake of a chain, tool or stream."""

Form = str | tuple[str, ...]


@dataclass(frozen=True)
class Text:
    """A text that attacks are made of."""

    name: str
    harmful: bool
    text: str
    request: str | None = None
    """What was asked, where the text is an answer."""
    translations: tuple[tuple[str, str], ...] = ()
    """(language, text), written by hand."""


@dataclass(frozen=True)
class Attack:
    """One way to put a text."""

    family: str
    name: str
    put: Callable[[str], Form]
    door: Door = "text"
    costly: bool = False
    """Whether it takes so long that a few texts must do."""


@dataclass(frozen=True)
class Case:
    """A text, and the attacked form of it."""

    attack: Attack
    text: Text
    form: Form


@cache
def texts() -> tuple[Text, ...]:
    """The texts that ship."""
    lines = files(__package__).joinpath("attacks.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(
        Text(**{**row, "translations": tuple(row.get("translations", {}).items())}) for row in map(json.loads, lines)
    )


def cases(*, every: int = 1, costly: int = 2) -> Iterator[Case]:
    """Every attack on every text, unsafe and harmless; the order never changes.

    Args:
        every: Take one text in so many, at least one, beginning with another for each attack, so that all are taken
            somewhere.
        costly: So many texts of each kind for attacks that take long.
    """
    for number, attack in enumerate(ATTACKS):
        for harmful in (True, False):
            fit = [text for text in texts() if text.harmful is harmful and _fits(attack, text)]
            chosen = fit[number % min(every, len(fit)) :: every][: costly if attack.costly else None]
            yield from (Case(attack, text, attack.put(text.text)) for text in chosen)


def _fits(attack: Attack, text: Text) -> bool:
    """Whether a text can be put so: answers do not come as messages, and not every text is translated."""
    if attack.family == _LANGUAGES:
        return attack.name in dict(text.translations)
    return text.request is None or attack.door in ("text", "chunks")


def _translated(language: str) -> Callable[[str], str]:
    return lambda plain: next(dict(text.translations)[language] for text in texts() if text.text == plain)


def _pieces(text: str, count: int) -> tuple[str, ...]:
    """A text cut into so many pieces, between words."""
    words = text.split(" ")
    size = -(-len(words) // count)
    return tuple(" ".join(words[at : at + size]) for at in range(0, len(words), size))


_LANGUAGES = "other languages"
_TEXTS: dict[str, dict[str, pretences.Put]] = {
    "template markers": pretences.TEMPLATE_MARKERS,
    "special tokens": pretences.SPECIAL_TOKENS,
    "advice to the judge": pretences.ADVICE,
    "role markers": pretences.ROLES,
    "padding": pretences.PADDING,
    "invisible characters": disguises.INVISIBLE,
    "homoglyphs": disguises.HOMOGLYPHS,
    "leetspeak": disguises.LEETSPEAK,
    "spacing": disguises.SPACING,
    "encodings": disguises.ENCODINGS,
    "markup": disguises.MARKUP,
    "json": disguises.JSON,
    "upper case": disguises.CASE,
    "typos": disguises.TYPOS,
    "combined": disguises.COMBINED,
}
_SPLIT: dict[Door, dict[str, Callable[[str], tuple[str, ...]]]] = {
    "messages": {
        "three": lambda t: _pieces(t, 3),
        "a word each": lambda t: tuple(t.split(" ")),
        "within words": lambda t: slices(t, 9),
        "talk between": lambda t: tuple(one for piece in _pieces(t, 3) for one in (piece, "One moment.")),
    },
    "parts": {"three": lambda t: _pieces(t, 3), "within words": lambda t: slices(t, 9)},
    "arguments": {"three": lambda t: _pieces(t, 3), "within words": lambda t: slices(t, 9)},
    "chunks": {
        "words": lambda t: tuple(re.findall(r"\S+\s*", t)),
        "three letters": lambda t: slices(t, 3),
        "three letters, after a story": lambda t: slices(f"{padding(60, 13)} {t}", 3),
    },
}
ATTACKS: tuple[Attack, ...] = (
    *(Attack(family, name, put) for family, puts in _TEXTS.items() for name, put in puts.items()),
    *(Attack("padding", name, put, costly=True) for name, put in pretences.LONG_PADDING.items()),
    *(Attack("splitting", f"{door}, {name}", put, door) for door, puts in _SPLIT.items() for name, put in puts.items()),
    *(Attack(_LANGUAGES, language, _translated(language)) for language in ("de", "fr", "es", "ru", "zh")),
)

"""The vocabulary: common English words, by which a disguised text is told from one that only looks odd.

`words.txt` holds them, most common first: the words that occur in several of the permissively licensed data sets the
bundled model was trained on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files

WORD = re.compile(r"[^\W\d_]+")
_LONGEST = 20
"""Letters of a word, at most."""
_STRANGE = (10.0, 2.5)
"""What an unknown word costs a reading, and each of its letters; the commonest word costs 3, a rare one 10."""
_DEAR = 2.3
"""What a reading may cost a letter: English costs some 1.4, letters thrown together 2.7 and more."""
_SMALL = 120
"""So many of the commonest words hold sentences together, as `the` and `how` do; lists and names lack them."""


@cache
def _ranks() -> Mapping[str, int]:
    text = files(__package__).joinpath("words.txt").read_text(encoding="ascii")
    return {word: rank for rank, word in enumerate(text.split())}


def rank(word: str) -> int | None:
    """How common a word is, 0 for the commonest; None where it is unknown. Case does not count."""
    return _ranks().get(word.lower())


def known(word: str) -> bool:
    """Whether it is a common English word."""
    return rank(word) is not None


def english(text: str) -> float:
    """Share of a text's letters that stand in known words; 0 for one without letters."""
    words = WORD.findall(text)
    letters = sum(map(len, words))
    return sum(len(word) for word in words if known(word)) / letters if letters else 0.0


def speaks(text: str) -> bool:
    """Whether a text is English of whole sentences, not a list of words or of names."""
    words = WORD.findall(text)
    small = sum(1 for word in words if (place := rank(word)) is not None and place < _SMALL)
    return len(words) >= 4 and small >= 0.2 * len(words) and english(text) >= 0.7


def parted(letters: str) -> str | None:
    """Letters without blanks as words, by the likeliest reading; None where they make no words."""
    lower, ranks = letters.lower(), _ranks()
    best = [0.0, *([math.inf] * len(lower))]
    begins = [0] * (len(lower) + 1)
    for end in range(1, len(lower) + 1):
        for begin in range(max(0, end - _LONGEST), end):
            place = ranks.get(lower[begin:end])
            cost = _STRANGE[0] + _STRANGE[1] * (end - begin) if place is None else math.log(place + 20)
            if best[begin] + cost < best[end]:
                best[end], begins[end] = best[begin] + cost, begin
    if not letters or best[-1] > _DEAR * len(letters):
        return None
    return " ".join(reversed(list(_back(letters, begins))))


def _back(letters: str, begins: list[int]) -> Iterator[str]:
    end = len(letters)
    while end:
        yield letters[begins[end] : end]
        end = begins[end]

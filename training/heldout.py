"""What a guard is tested on must not be what it learned from: finds rows that are too near a benchmark's."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable

_GRAM = 5
"""Words side by side that are compared."""
_ALIKE = 0.8
"""Share of such runs two texts have in common from which they are one text (Jaccard)."""
_TELLING = 8
"""Words a benchmark's request must have for a text that contains it to be a copy; shorter ones occur by chance."""


class HeldOut:
    """Requests to test on.

    Args:
        requests: Their texts.
    """

    def __init__(self, requests: Iterable[str]) -> None:
        self._texts = list(dict.fromkeys(" ".join(_words(request)) for request in requests))
        self.fingerprint = hashlib.sha256("\n".join(sorted(self._texts)).encode()).hexdigest()[:16]
        self._equal = set(self._texts)
        self._grams = [_runs(text.split(), _GRAM) for text in self._texts]
        self._with: defaultdict[str, list[int]] = defaultdict(list)
        self._beginning: defaultdict[str, list[int]] = defaultdict(list)
        for index, text in enumerate(self._texts):
            for gram in self._grams[index]:
                self._with[gram].append(index)
            words = text.split()
            if len(words) >= _TELLING:
                self._beginning[" ".join(words[:_TELLING])].append(index)

    def holds(self, request: str) -> bool:
        """Whether a request equals one of these, contains one, or shares most of its runs of words with one."""
        words = _words(request)
        text = " ".join(words)
        if text in self._equal:
            return True
        for gram in _runs(words, _TELLING):
            if any(self._texts[index] in text for index in self._beginning.get(gram, ())):
                return True
        grams = _runs(words, _GRAM)
        common: defaultdict[int, int] = defaultdict(int)
        for gram in grams:
            for index in self._with.get(gram, ()):
                common[index] += 1
        return any(count / (len(grams) + len(self._grams[index]) - count) >= _ALIKE for index, count in common.items())


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _runs(words: list[str], length: int) -> set[str]:
    return {" ".join(words[at : at + length]) for at in range(len(words) - length + 1)}

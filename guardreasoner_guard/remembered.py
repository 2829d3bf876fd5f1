"""What is remembered: verdicts of the last few minutes, for texts that come again."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence

from cachetools import TTLCache

from .exchange import Exchange
from .forked import renew_in_children
from .verdict import Usage, Verdict

MOST = 1024
"""Verdicts that are remembered at once; the oldest goes first."""


class Remembered:
    """Verdicts by the exact text they are about. Safe for several threads; texts are kept as hashes alone.

    Args:
        seconds: How long a verdict is remembered; 0 = not at all.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        """Forgets everything."""
        self._verdicts: TTLCache[bytes, Verdict] = TTLCache(MOST, self._seconds)
        self._lock = threading.Lock()

    def find(self, exchange: Exchange, asked: Sequence[str]) -> Verdict | None:
        """The verdict on this text, marked as remembered and as free of cost; None where there is none.

        Args:
            exchange: The text.
            asked: What else the verdict depends on.
        """
        with self._lock:
            verdict = self._verdicts.get(_key(exchange, asked))
        if verdict is None:
            return None
        return verdict.model_copy(update={"remembered": True, "usage": Usage()}, deep=True)  # a caller may change his

    def add(self, exchange: Exchange, asked: Sequence[str], verdict: Verdict) -> None:
        """Remembers a verdict."""
        with self._lock:
            self._verdicts[_key(exchange, asked)] = verdict.model_copy(deep=True)


def _key(exchange: Exchange, asked: Sequence[str]) -> bytes:
    said = repr((exchange.request, exchange.response, exchange.history, *asked))  # it escapes lone surrogates
    return hashlib.sha256(said.encode()).digest()

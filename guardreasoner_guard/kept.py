"""What a model has read and keeps: key-value caches of the last few texts.

What a new text shares with one of them from its start (the instruction, a request that is asked about twice,
an answer that goes on) is not read again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_AT_ONCE = 320
"""Tokens read at once: each is held against all up to the last of them, those that it must not see too."""
MOST = 4
"""Caches kept side by side, so that a few talks under way do not wipe each other out."""


def common(ids: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> int:
    """How many tokens two texts have in common from the start."""
    length = min(len(ids), len(other))
    differ = ids[:length] != other[:length]
    return int(differ.argmax()) if differ.any() else length


class Kept:
    """One cache, and the tokens it holds."""

    def __init__(self, generator: Any, room: int) -> None:
        self.generator = generator
        self.room = room
        self.ids = np.empty(0, dtype=np.int32)

    def shared(self, ids: np.ndarray[Any, Any]) -> int:
        """How many tokens a text and this cache have in common from the start."""
        return common(self.ids, ids)


class Caches:
    """The caches of one model. Not safe for several threads at once: its engine takes turns.

    Args:
        make: Makes a generator for one text of at most so many tokens, its answer included.
        room: Tokens a cache has room for, unless a text needs more.
    """

    def __init__(self, make: Callable[[int], Any], room: int) -> None:
        self._make = make
        self._room = room
        self._kept: list[Kept] = []
        """The one used last stands last."""

    def read(self, ids: Sequence[int], answer: int = 0) -> tuple[Kept, int]:
        """Brings a cache to hold exactly `ids`.

        It is out of the collection until it is handed back with `keep`: what is interrupted half-way (Ctrl-C
        too) must not be taken for a whole cache by the next call.

        Args:
            ids: The tokens, at least one.
            answer: Tokens there must be room for after them.

        Returns:
            The cache, its generator ready for logits, and how many tokens had to be read for it.
        """
        wanted = np.array(ids, dtype=np.int32)
        kept = self._choose(wanted, len(ids) + answer)
        # the last token is read again even where all agree, for its logits
        shared = min(kept.shared(wanted), len(wanted) - 1)
        if shared < len(kept.ids):
            kept.generator.rewind_to(shared)
        for piece in np.array_split(wanted[shared:], math.ceil((len(wanted) - shared) / _AT_ONCE)):
            kept.generator.append_tokens(piece)
        kept.ids = wanted
        return kept, len(wanted) - shared

    def keep(self, kept: Kept) -> None:
        """Takes a cache back."""
        self._kept.append(kept)

    def share(self, ids: Sequence[int]) -> int:
        """How much of a text need not be read."""
        wanted = np.array(ids, dtype=np.int32)
        return max((kept.shared(wanted) for kept in self._kept), default=0)

    def _choose(self, wanted: np.ndarray[Any, Any], room: int) -> Kept:
        """Takes out the cache to go on with: one that loses little by it, else a new one, else the oldest."""
        fit = [kept for kept in self._kept if kept.room >= room]
        best = max(fit, key=lambda kept: kept.shared(wanted), default=None)
        if best is None or (2 * best.shared(wanted) < len(best.ids) and len(self._kept) < MOST):
            if len(self._kept) >= MOST:
                del self._kept[0]
            return Kept(self._make(max(room, self._room)), max(room, self._room))
        if 2 * best.shared(wanted) < len(best.ids):
            best = fit[0]
        self._kept.remove(best)
        return best

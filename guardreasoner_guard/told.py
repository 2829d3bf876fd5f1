"""What is told of an answer while it is being written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import answer
from .verdict import ReasoningStep


class Teller:
    """Tells the steps of answers that are being written, each once, when it is complete."""

    def __init__(self, told: Callable[[ReasoningStep], None], prefixes: Sequence[str]) -> None:
        self._told = told
        self._prefixes = prefixes
        self._counts = [0] * len(prefixes)

    def hear(self, index: int, text: str) -> None:
        """Hears what has been written to one prompt; its last step may go on."""
        self._tell(index, answer.read_steps(self._prefixes[index] + text)[:-1])

    def finish(self, texts: Sequence[str]) -> None:
        """Hears the whole answers."""
        for index, text in enumerate(texts):
            self._tell(index, answer.read_steps(text))

    def _tell(self, index: int, steps: Sequence[ReasoningStep]) -> None:
        for step in steps[self._counts[index] :]:
            self._told(step)
        self._counts[index] = max(self._counts[index], len(steps))

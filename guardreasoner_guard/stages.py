"""Stages: what of an exchange is asked together, window by window.

A text longer than the model's window is judged in overlapping windows.
"""

from __future__ import annotations

from dataclasses import dataclass

from .engine import Engine
from .errors import BadInput
from .exchange import Exchange
from .template import Prompt, Template
from .verdict import TASKS, Task
from .views import views

_OVERLAP = 64
"""Tokens two neighbouring windows share, so that no phrase is seen only in halves; a quarter of a small window."""
_REQUEST_SHARE = 0.5
"""Part of the window a request may fill when a response is judged with it."""


@dataclass
class Stage:
    """Tasks of one exchange that are asked together, over one window of its text."""

    exchange: int
    tasks: tuple[Task, ...]
    prompt: Prompt
    harm: float = 0.0
    """Highest score of a label that is about harm."""
    harmful: bool = False
    """Whether a score says harmful."""


class Stages:
    """Puts exchanges into prompts.

    Args:
        engine: Splits texts by the model's tokens.
        template: The words a model is asked in, and which tasks it is asked together.
        window: Tokens of text that are judged at once.
        undisguise: Whether other readings of a disguised text are judged beside it; see `views`.
    """

    def __init__(self, engine: Engine, template: Template, window: int, undisguise: bool) -> None:
        self.undisguise = undisguise
        self._engine = engine
        self._template = template
        self._window = window

    def of(self, index: int, exchange: Exchange, wanted: set[Task]) -> list[Stage]:
        """The prompts an exchange takes; long texts take several a stage."""
        answered = exchange.response is not None
        stages: list[Stage] = []
        for group in self._template.stages:
            asked = tuple(t for t in group if t in wanted and (t == "request" or answered))
            if not asked:
                continue
            alone = group == ("request",)
            for request, response in self._windows(exchange, alone):
                prompt = self._template.render(request, None if alone else response, exchange.history)
                stages.append(Stage(index, asked, prompt))
        if wanted and not stages:
            raise BadInput("Only labels of a response were asked for, and there is none. Pass the response.")
        return stages

    def _windows(self, exchange: Exchange, alone: bool) -> list[tuple[str, str | None]]:
        """The (request, response) texts to judge; every token of the texts that are asked about is in one."""
        size = self._window
        if sum(len(text) for _, text in exchange.history) > 4 * size:
            raise BadInput("The history is longer than the model's window. Pass the latest turns alone.")
        if exchange.response is None or alone:
            return [(part, None) for part in self._readings(exchange.request, size)]
        room = int(size * _REQUEST_SHARE)
        one_stage = self._template.stages == (TASKS,)
        requests = self._readings(exchange.request, room) if one_stage else self._split(exchange.request, room)
        responses = self._readings(exchange.response, size - room)
        # beside a response, a long request stands with its two ends, where asks are made; where one stage
        # asks about both, its other windows follow with the response's beginning
        setting = exchange.request if requests[0] == exchange.request else self._ends(exchange.request, room)
        windows: list[tuple[str, str | None]] = [(setting, part) for part in responses]
        if one_stage and len(requests) > 1:
            windows += [(part, responses[0]) for part in requests]
        return windows

    def _readings(self, text: str, size: int) -> list[str]:
        """The windows of a text as it stands, then what else each may be meant to say.

        The first decides whether a response refuses.
        """
        parts = self._split(text, size)
        if not self.undisguise:
            return parts
        return [*parts, *(window for part in parts for view in views(part) for window in self._split(view, size))]

    def last_window(self, response: str) -> int:
        """Where the last window over a response begins, in characters: what its continuation is judged with."""
        size = self._window
        return len(response) - len(self._split(response, size - int(size * _REQUEST_SHARE))[-1])

    def _split(self, text: str, size: int) -> list[str]:
        return self._engine.split(text, size, min(_OVERLAP, size // 4))

    def _ends(self, text: str, room: int) -> str:
        head = self._engine.split(text, room // 2, 0)[0]
        tail = text[-len(head) :]
        return f"{head}\n[...]\n{tail}"

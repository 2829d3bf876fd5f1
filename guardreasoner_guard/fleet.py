"""A fleet: several engines that hold the same model, used as one. For a model that several servers hold."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import TypeVar

from .engine import Engine, Heard, Question, Scored, Written
from .errors import BadInput, EngineError
from .forked import renew_in_children
from .template import Prompt

Answer = TypeVar("Answer")

_REST = 30.0
"""Seconds for which an engine that failed is asked only where no other is left."""


class Fleet:
    """An engine made of several. Safe to call from several threads.

    What is asked about one text goes to one engine, which reads it once: the least busy. Where that fails, the
    others are asked in turn; only what none of them can do fails.

    Args:
        engines: They must hold the same model. Each gets as many calls at once as it says it can use.

    Raises:
        BadInput: There is none.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        if not engines:
            raise BadInput("A fleet without an engine can judge nothing. Pass at least one.")
        self.engines = tuple(engines)
        self.name = engines[0].name + (f" and {len(engines) - 1} more" if len(engines) > 1 else "")
        self.concurrency = sum(engine.concurrency for engine in engines)
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        """With no engine busy, and none that needs rest."""
        self._pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="fleet")
        self._lock = threading.Lock()
        self._busy = [0] * len(self.engines)
        self._asked = [0] * len(self.engines)
        self._resting = [0.0] * len(self.engines)

    def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
        """See `Engine.score`."""
        texts = [question.prompt.parts[:-1] for question in questions]
        return self._spread(texts, cancel, lambda engine, part: engine.score(questions[part], cancel))

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        cancel: threading.Event | None = None,
        heard: Heard | None = None,
    ) -> list[Written]:
        """See `Engine.generate`."""

        def write(engine: Engine, part: slice) -> list[Written]:
            first: int = part.start
            return engine.generate(
                prompts[part], max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed + first,
                cancel=cancel, heard=heard and (lambda place, text: heard(first + place, text)),
            )  # fmt: skip

        return self._spread([prompt.parts for prompt in prompts], cancel, write)

    def split(self, text: str, size: int, overlap: int) -> list[str]:
        """See `Engine.split`."""
        return self._ask(None, lambda engine: engine.split(text, size, overlap))

    def _spread(
        self,
        texts: Sequence[tuple[str, ...]],
        cancel: threading.Event | None,
        ask: Callable[[Engine, slice], list[Answer]],
    ) -> list[Answer]:
        """Answers in order; neighbours with one text are asked about together, different ones side by side."""
        parts: list[slice] = []
        for _, places in groupby(range(len(texts)), key=texts.__getitem__):
            together = list(places)
            parts.append(slice(together[0], together[-1] + 1))
        futures = [self._pool.submit(self._ask, cancel, lambda engine, part=part: ask(engine, part)) for part in parts]
        try:
            return [answer for future in futures for answer in future.result()]
        finally:
            for future in futures:
                future.cancel()

    def _ask(self, cancel: threading.Event | None, ask: Callable[[Engine], Answer]) -> Answer:
        """Asks the least busy engine, and where that fails the next."""
        left = list(range(len(self.engines)))
        while True:
            with self._lock:
                now = time.monotonic()
                place = min(left, key=lambda one: (self._resting[one] > now, self._load(one), self._asked[one]))
                self._busy[place] += 1
                self._asked[place] += 1
            left.remove(place)
            try:
                return ask(self.engines[place])
            except EngineError:
                if not left or (cancel is not None and cancel.is_set()):
                    raise
                with self._lock:
                    self._resting[place] = time.monotonic() + _REST
            finally:
                with self._lock:
                    self._busy[place] -= 1

    def _load(self, place: int) -> float:
        return self._busy[place] / self.engines[place].concurrency

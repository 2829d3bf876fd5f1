"""The batcher: calls that wait for one model at the same time are carried out together.

A call never waits for others to come: the model is given to whoever asks while it is free, and what arrives
while it is busy is read, or written, as one batch when it is free again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .engine import Engine, Heard, Question, Scored, Written
from .errors import EngineError, Overloaded
from .forked import renew_in_children
from .template import Prompt

MOST_WAITING = 1024
"""Calls that may wait at once; more are refused, so that a crowd gets a clear error and not an endless wait."""
_MOST_TOGETHER = 64
"""Prompts of several calls that are carried out as one."""
_MOST_AT_A_TURN = 16
"""Prompts of one call that are carried out before others have their turn: a long text makes many."""


@dataclass(eq=False)
class _Call:
    """One call that waits for its turn."""

    kind: Hashable
    items: Sequence[Any]
    cancel: threading.Event | None
    results: list[Any] = field(default_factory=list)
    error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether it has all its results, or its error."""
        return self.error is not None or len(self.results) == len(self.items)

    @property
    def next_items(self) -> Sequence[Any]:
        """What is carried out at its next turn."""
        return self.items[len(self.results) :][:_MOST_AT_A_TURN]


class _CancelledAll(threading.Event):
    """Set when every call of a batch is cancelled: one that is not still wants its result."""

    def __init__(self, calls: Sequence[_Call]) -> None:
        super().__init__()
        self._calls = calls

    def is_set(self) -> bool:
        return all(call.cancel is not None and call.cancel.is_set() for call in self._calls)


class Batcher:
    """An engine that takes calls from many threads and passes them on to another in batches.

    Args:
        engine: Runs the model.
        most_waiting: Calls that may wait at once.
    """

    def __init__(self, engine: Engine, most_waiting: int = MOST_WAITING) -> None:
        self.engine = engine
        self.name = engine.name
        self.concurrency = _MOST_TOGETHER
        self._most_waiting = most_waiting
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        """With no call waiting, and the model free."""
        self._lock = threading.Lock()  # not the condition's own: an interrupt may leave that one held
        self._turn = threading.Condition(self._lock)
        self._waiting: list[_Call] = []
        self._batch: list[_Call] = []
        """What is being carried out, by the thread of one of them."""
        self._carrier: _Call | None = None
        """Whose thread that is; None while the model is free."""

    def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
        """See `Engine.score`.

        Raises:
            EngineError: The model could not be run.
            Overloaded: Too many calls wait already.
        """
        return self._submit(_Call("score", questions, cancel))

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
        """See `Engine.generate`; sampled answers are written call by call, since a seed belongs to a call.

        So are those that somebody listens to.

        Raises:
            EngineError: The model could not be run.
            Overloaded: Too many calls wait already.
        """
        alone = object() if temperature > 0 or heard is not None else None
        return self._submit(_Call((max_tokens, temperature, top_p, seed, heard, alone), prompts, cancel))

    def split(self, text: str, size: int, overlap: int) -> list[str]:
        """See `Engine.split`; it needs no turn."""
        return self.engine.split(text, size, overlap)

    def _submit(self, call: _Call) -> list[Any]:
        if call.done:  # nothing was asked
            return []
        try:
            self._wait_for(call)
        except BaseException as error:  # who is interrupted leaves nothing behind that others would wait or work for
            call.error = call.error or EngineError("The call was given up.")
            with self._lock:
                self._waiting = [one for one in self._waiting if one is not call]
            if self._carrier is call:
                for one in self._batch:
                    if not one.done:
                        one.error = EngineError(f"The model was interrupted ({type(error).__name__}). Ask again.")
                self._free()
            raise
        if call.error is not None:
            raise call.error
        return call.results

    def _wait_for(self, call: _Call) -> None:
        """Waits until a call is carried out, and carries out what waits whenever the model is free."""
        with self._lock:
            if len(self._waiting) >= self._most_waiting:
                raise Overloaded(
                    f"{len(self._waiting)} checks wait for the model already. Send fewer at once, or try again later."
                )
            self._waiting.append(call)
        while not call.done:
            with self._lock:
                while self._carrier is not None and not call.done:
                    if call.cancel is not None and call.cancel.is_set() and call in self._waiting:
                        raise EngineError("The call was cancelled.")
                    # the canceller knows nothing of this condition, so it is looked after now and then
                    self._turn.wait(0.05 if call.cancel is not None else None)
                if call.done:
                    break
                self._carrier = call
                self._batch = self._next()
                self._waiting = [one for one in self._waiting if one not in self._batch]
            self._carry_out(self._batch)
            self._free()

    def _free(self) -> None:
        """Gives the model back; what is not done yet waits for its next turn."""
        with self._lock:
            self._waiting += [one for one in self._batch if not one.done and one not in self._waiting]
            self._batch = []
            self._carrier = None
            self._turn.notify_all()

    def _next(self) -> list[_Call]:
        """The call that waits longest, and those of its kind that fit beside it."""
        batch: list[_Call] = []
        size = 0
        for call in self._waiting:
            if call.kind == self._waiting[0].kind and size + len(call.next_items) <= _MOST_TOGETHER:
                batch.append(call)
                size += len(call.next_items)
        return batch

    def _carry_out(self, batch: list[_Call]) -> None:
        """Runs the calls as one; where that fails, one by one, so that the fault of one is not that of all."""
        if len(batch) > 1:
            run = self._runner(batch[0].kind)
            try:
                results = run([item for call in batch for item in call.next_items], _CancelledAll(batch))
            except Exception:
                pass  # whose fault it was shows below
            else:
                for call in batch:
                    size = len(call.next_items)
                    call.results += results[:size]
                    results = results[size:]
                return
        for call in batch:
            try:
                run = self._runner(call.kind, len(call.results))  # a seed is that of a call: its turns draw on
                call.results += run(call.next_items, call.cancel)
            except Exception as error:
                call.error = error

    def _runner(self, kind: Any, drawn: int = 0) -> Callable[[Sequence[Any], threading.Event | None], list[Any]]:
        if kind == "score":
            return self.engine.score
        max_tokens, temperature, top_p, seed, heard, _ = kind
        listening = {} if heard is None else {"heard": lambda index, text: heard(drawn + index, text)}
        return lambda prompts, cancel: self.engine.generate(
            prompts,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed + drawn,
            cancel=cancel,
            **listening,
        )

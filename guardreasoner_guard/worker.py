"""A worker: the one thread that a model runs in, whoever calls.

The system keeps what a thread has freed for that thread. A model that ran in its callers' threads would leave
each of them the memory of its largest batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from .forked import renew_in_children

Result = TypeVar("Result")
_Call = tuple[Future[Any], Callable[[threading.Event], Any], threading.Event]


class _GivenUp(threading.Event):
    """Set when a call was cancelled, or nobody waits for it any more."""

    def __init__(self, cancel: threading.Event | None) -> None:
        super().__init__()
        self._cancel = cancel

    def is_set(self) -> bool:
        return super().is_set() or (self._cancel is not None and self._cancel.is_set())


class Worker:
    """Carries out calls from any thread in one of its own, one after another.

    The thread starts with the first call and ends with the worker. It does not keep the process from ending, and
    works until it does: a pool takes nothing on once the main thread is through.
    """

    def __init__(self) -> None:
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        """Without a thread, and with nothing to do."""
        self._lock = threading.Lock()
        self._calls: SimpleQueue[_Call | None] | None = None
        """What its thread takes from; None while it has none."""

    def run(self, work: Callable[[threading.Event], Result], cancel: threading.Event | None = None) -> Result:
        """What `work` returns, or raises.

        Args:
            work: Given an event that says when its result is not wanted any more: it was cancelled, or whoever
                waits for it was interrupted.
            cancel: Set by another thread to make it stop.
        """
        future: Future[Result] = Future()
        given_up = _GivenUp(cancel)
        try:
            self._thread_takes_from().put((future, work, given_up))
            return future.result()
        finally:
            given_up.set()
            del future  # an error holds this frame: it would hold itself, and what its call worked on

    def _thread_takes_from(self) -> SimpleQueue[_Call | None]:
        with self._lock:
            if self._calls is None:
                # a new queue, noted last: a thread whose start was interrupted must not take from the same one
                calls: SimpleQueue[_Call | None] = SimpleQueue()
                threading.Thread(target=_carry_out, args=(calls,), name="model", daemon=True).start()
                self._calls = calls
            return self._calls

    def __del__(self) -> None:
        if self._calls is not None:
            self._calls.put(None)


def _carry_out(calls: SimpleQueue[_Call | None]) -> None:
    while (call := calls.get()) is not None:
        future, work, given_up = call
        try:
            future.set_result(work(given_up))
        except BaseException as error:  # interrupts too are the caller's
            future.set_exception(error)
        del call, future, work, given_up  # nothing of a call is held while the next is waited for

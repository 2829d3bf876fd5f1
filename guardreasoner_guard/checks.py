"""Checks carried out: in the caller's thread or beside an event loop, in time or not at all, failing as was chosen."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal

from .batcher import MOST_WAITING
from .errors import BadInput, EngineError, GuardError, GuardTimeout, Overloaded
from .exchange import Exchange
from .forked import renew_in_children
from .judge import Judge, Judgement, Reasoning
from .policy import Policy, reasons
from .remembered import Remembered
from .verdict import ReasoningStep, Task, Usage, Verdict

logger = logging.getLogger(__name__)

OnFailure = Literal["block", "pass", "raise"]
Attempt = Verdict | Exception
"""What a check comes to: a verdict, or the error that its caller is to see."""


@dataclass(frozen=True)
class Terms:
    """How checks are to be made; see `GuardReasonerGuard` for the fields."""

    reasoning: Reasoning
    policy: Policy
    on_failure: OnFailure
    timeout: float | None
    tasks: tuple[Task, ...]
    told: Callable[[ReasoningStep], None] | None = None
    """Told each step of an explanation as it is written."""


@dataclass
class _Run:
    """Some exchanges under way."""

    exchanges: Sequence[Exchange]
    terms: Terms
    cancel: threading.Event = field(default_factory=threading.Event)
    start: float = field(default_factory=time.perf_counter)
    known: dict[int, Verdict] = field(default_factory=dict)
    """Verdicts that were remembered, by the exchange's place."""
    settled: list[Judgement] = field(default_factory=list)
    """Of the others, judgements whose labels stand, though they may still lack their explanation."""

    @property
    def allowed(self) -> float | None:
        """Seconds it may take."""
        return None if self.terms.timeout is None else self.terms.timeout * len(self.exchanges)

    @property
    def new(self) -> list[int]:
        """Places of the exchanges that must be judged."""
        return [place for place in range(len(self.exchanges)) if place not in self.known]


class Checks:
    """Carries out one guard's checks.

    Args:
        judge: Asks the model.
        concurrency: Checks that may usefully run at once.
        remember: Seconds for which a verdict is remembered.
    """

    def __init__(self, judge: Judge, concurrency: int, remember: float) -> None:
        self._judge = judge
        self._concurrency = concurrency
        self._remembered = Remembered(remember)
        self._closed = False
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        """With no threads, and nothing under way."""
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._pending = 0

    def attempt(self, exchanges: Sequence[Exchange], terms: Terms) -> list[Attempt]:
        """Judges exchanges, in order, blocking the caller."""
        if not exchanges:
            return []
        run = _Run(exchanges, terms)
        try:
            if run.allowed is None:
                return self._judged(run)
            future = self._submit(lambda: self._judged(run))
            try:
                return future.result(run.allowed)
            except TimeoutError:
                future.cancel()
                return self._late(run)
        except CancelledError:  # `close` did that
            return self._failed(_closed(), run)
        except Exception as error:
            if self._shared(error, exchanges):
                return [attempt for one in exchanges for attempt in self.attempt([one], terms)]
            return self._failed(error, run)
        finally:
            run.cancel.set()

    async def aattempt(self, exchanges: Sequence[Exchange], terms: Terms) -> list[Attempt]:
        """`attempt` beside an event loop; when it is cancelled the model stops."""
        if not exchanges:
            return []
        run = _Run(exchanges, terms)
        future: Future[list[Attempt]] | None = None
        try:
            future = self._submit(lambda: self._judged(run))
            async with asyncio.timeout(run.allowed):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            return self._late(run)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._closed or task is None or task.cancelling():
                raise
            return self._failed(_closed(), run)  # it was `close` that ended the wait, and nobody the task
        except Exception as error:
            if self._shared(error, exchanges):
                return [attempt for one in exchanges for attempt in await self.aattempt([one], terms)]
            return self._failed(error, run)
        finally:
            run.cancel.set()
            if future is not None:
                future.cancel()

    def close(self) -> None:
        """Ends the threads; checks that wait for one, and later ones, fail."""
        with self._lock:
            self._closed = True
            threads = self._threads
        if threads is not None:  # what it cancels tells `_finished`, which takes the lock
            threads.shutdown(wait=False, cancel_futures=True)

    def _submit(self, work: Callable[[], list[Attempt]]) -> Future[list[Attempt]]:
        with self._lock:
            if self._closed:
                raise _closed()
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._concurrency, thread_name_prefix="guard")
            if self._pending >= MOST_WAITING:
                raise Overloaded(f"{self._pending} checks are under way. Send fewer at once, or try again later.")
            future = self._threads.submit(work)
            self._pending += 1
        future.add_done_callback(self._finished)
        return future

    def _finished(self, _: Future[list[Attempt]]) -> None:
        with self._lock:
            self._pending -= 1

    def _judged(self, run: _Run) -> list[Attempt]:
        if self._closed:
            raise _closed()
        terms = run.terms
        asked = [
            terms.reasoning, terms.policy.on_disagreement, str(terms.policy.shadow),
            str(sorted(terms.tasks)), str(terms.policy.block),
        ]  # fmt: skip
        for place, exchange in enumerate(run.exchanges):
            if (verdict := self._remembered.find(exchange, asked)) is not None:
                run.known[place] = verdict
        try:
            found = self._judge.judge(
                [run.exchanges[place] for place in run.new], terms.reasoning, tasks=terms.tasks,
                blocks=terms.policy.blocks, cancel=run.cancel, settled=run.settled, told=terms.told,
            )  # fmt: skip
        except GuardError:
            raise
        except Exception as error:
            if not run.settled:
                raise _meant(error) from error
            logger.warning("what was judged could not be explained: %s", type(error).__name__)
            found = run.settled
        verdicts = self._verdicts(run, found)
        for place in run.new:
            if _whole(verdicts[place], terms):
                self._remembered.add(run.exchanges[place], asked, verdicts[place])
        return list(verdicts)

    def _verdicts(self, run: _Run, found: Sequence[Judgement]) -> list[Verdict]:
        milliseconds = (time.perf_counter() - run.start) * 1000 / max(1, len(run.new))
        new = {
            place: self._verdict(one, run.terms.policy, milliseconds) for place, one in zip(run.new, found, strict=True)
        }
        return [run.known.get(place) or new[place] for place in range(len(run.exchanges))]

    def _verdict(self, found: Judgement, policy: Policy, milliseconds: float) -> Verdict:
        said = [found.labels]
        if not found.consistent and policy.on_disagreement == "careful":
            said += [found.by_score, found.by_reasoning]
        blocking = next((labels for labels in said if policy.blocks(labels)), found.labels)
        return Verdict(
            request=found.labels.get("request"),
            completion=found.labels.get("completion"),
            response=found.labels.get("response"),
            blocked=policy.blocks(blocking) and not policy.shadow,
            shadowed=policy.blocks(blocking) and policy.shadow,
            reasons=reasons(blocking, policy, found.steps),
            reasoning=found.steps,
            scores=found.scores,
            mode=found.mode,
            consistent=found.consistent,
            by_reasoning=found.by_reasoning,
            windows=found.windows,
            model=self._judge.engine.name,
            usage=Usage(
                prompt_tokens=found.prompt_tokens,
                generated_tokens=found.generated_tokens,
                latency_ms=round(milliseconds, 2),
            ),
        )

    def _shared(self, error: Exception, exchanges: Sequence[Exchange]) -> bool:
        """Whether exchanges are judged again one by one, so that the fault of one text is not that of all."""
        return len(exchanges) > 1 and not isinstance(error, GuardTimeout)

    def _late(self, run: _Run) -> list[Attempt]:
        """Time is up: what is settled already counts, and only lacks its explanation."""
        if run.settled:  # the model's thread may still be at work on them
            settled = [
                replace(one, labels=dict(one.labels), by_reasoning=dict(one.by_reasoning)) for one in run.settled
            ]
            return list(self._verdicts(run, settled))
        error = GuardTimeout(f"No judgement within {run.terms.timeout} s. Raise the timeout, or use reasoning='never'.")
        return self._failed(error, run)

    def _failed(self, error: Exception, run: _Run) -> list[Attempt]:
        """No judgement was reached: blocked unless `on_failure` says otherwise."""
        on_failure, shadow = run.terms.on_failure, run.terms.policy.shadow
        error = _meant(error)
        if isinstance(error, BadInput) or (on_failure == "raise" and not shadow):
            return [error] * len(run.exchanges)
        late = isinstance(error, GuardTimeout)
        what = "Timeout" if late else "Failure"
        blocks = on_failure == "block" and not shadow
        done = "blocked" if blocks else "passed unchecked"
        verdict = Verdict(
            blocked=blocks,
            shadowed=shadow and on_failure != "pass",
            outcome="timeout" if late else "failure",
            reasons=f"{what}: no judgement was reached, so it is {done}. {error}",
            error=f"{type(error).__name__}: {error}",
            model=self._judge.engine.name,
            usage=Usage(latency_ms=round((time.perf_counter() - run.start) * 1000, 2)),
        )
        return [verdict] * len(run.exchanges)


def verdicts_of(attempts: Iterable[Attempt]) -> list[Verdict]:
    """The verdicts; raises the first error among them."""
    found = []
    for attempt in attempts:
        if isinstance(attempt, Exception):
            raise attempt
        found.append(attempt)
    return found


def _whole(verdict: Verdict, terms: Terms) -> bool:
    """Whether nothing is missing: an explanation that failed is tried again when its text comes again."""
    blocks = verdict.blocked or verdict.shadowed
    return bool(verdict.reasoning) or not (terms.reasoning == "always" or (terms.reasoning == "adaptive" and blocks))


def _meant(error: Exception) -> GuardError:
    """The error that is told of; of one that nobody meant to raise only its kind, since it may quote a text."""
    if isinstance(error, GuardError):
        return error
    told = EngineError(f"Judging failed with {type(error).__name__}. Pass on_failure='raise' to see it whole.")
    told.__cause__ = error
    return told


def _closed() -> EngineError:
    return EngineError("This guard was closed. Make a new one.")

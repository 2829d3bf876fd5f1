"""Checks carried out: in the caller's thread or beside an event loop, in time or not at all, failing as was chosen."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Literal

from .batcher import MOST_WAITING
from .errors import BadInput, EngineError, GuardTimeout, Overloaded
from .exchange import Exchange
from .judge import Judge, Judgement, Reasoning
from .policy import Policy, reasons
from .remembered import Remembered
from .verdict import ReasoningStep, Task, Usage, Verdict

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
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._process = 0
        self._pending = 0
        self._closed = False

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
            except FutureTimeout:
                future.cancel()
                return self._late(run)
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
            return await asyncio.wait_for(asyncio.wrap_future(future), run.allowed)
        except TimeoutError:
            return self._late(run)
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
            if self._threads is not None:
                self._threads.shutdown(wait=False, cancel_futures=True)

    def _submit(self, work: Callable[[], list[Attempt]]) -> Future[list[Attempt]]:
        with self._lock:
            if self._threads is None or self._process != os.getpid():  # threads do not survive a fork
                self._threads = ThreadPoolExecutor(self._concurrency, thread_name_prefix="guard")
                self._process, self._pending = os.getpid(), 0
            if self._closed:
                raise _closed()
            if self._pending >= MOST_WAITING:
                raise Overloaded(f"{self._pending} checks are under way. Send fewer at once, or try again later.")
            self._pending += 1
            future = self._threads.submit(work)
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
            *sorted(terms.tasks), *terms.policy.block,
        ]  # fmt: skip
        for place, exchange in enumerate(run.exchanges):
            if (verdict := self._remembered.find(exchange, asked)) is not None:
                run.known[place] = verdict
        found = self._judge.judge(
            [run.exchanges[place] for place in run.new], terms.reasoning, tasks=terms.tasks,
            blocks=terms.policy.blocks, cancel=run.cancel, settled=run.settled, told=terms.told,
        )  # fmt: skip
        verdicts = self._verdicts(run, found)
        for place in run.new:
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
        if run.settled:
            return list(self._verdicts(run, run.settled))
        error = GuardTimeout(f"No judgement within {run.terms.timeout} s. Raise the timeout, or use reasoning='never'.")
        return self._failed(error, run)

    def _failed(self, error: Exception, run: _Run) -> list[Attempt]:
        """No judgement was reached: blocked unless `on_failure` says otherwise."""
        on_failure, shadow = run.terms.on_failure, run.terms.policy.shadow
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


def _closed() -> EngineError:
    return EngineError("This guard was closed. Make a new one.")

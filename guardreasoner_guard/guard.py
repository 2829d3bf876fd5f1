"""The guard: checks what goes in and what comes out of any LangChain runnable, agent or tool."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from pydantic import ConfigDict, Field, PrivateAttr, ValidationError

from .checks import Attempt, Checks, OnFailure, Terms, verdicts_of
from .engine import Engine
from .errors import BadInput, Blocked
from .exchange import Exchange, read_exchange
from .judge import Judge, Reasoning
from .model_dir import Device, Manifest, open_model
from .observed import Observer, atell, tell
from .policy import Policy
from .verdict import TASKS, ReasoningStep, Task, Verdict
from .watched import Tell, awatched, watched

if TYPE_CHECKING:
    from .guarded import Guarded
    from .withheld import Hold

Tool = TypeVar("Tool")

SCRIPTED_MANIFEST = Manifest(
    name="scripted", template="short/1", precision="none", label_tokens={}, end_token=0, decides="score", files={}
)
"""Used for an engine that brings no model directory."""


class GuardReasonerGuard(RunnableSerializable[Any, Any]):
    """A guard model that reasons before it judges, as a LangChain Runnable.

    Alone it passes its input through or raises `Blocked`: `guard | prompt | llm`. `wrap` puts it around a
    runnable, `tool` around a function or tool; `check` just judges. It fails closed: what cannot be judged
    is blocked, with an outcome that tells a failure and a timeout from a verdict.

    Args:
        model: `bundled`, the path of an exported model directory, a hub id, or an Engine.
        reasoning: `adaptive` reasons in doubt and for what would be blocked, `always`, or `never`.
        policy: What is blocked and what a caller gets instead.
        device: `auto`, `cpu` or `cuda`.
        on_failure: What follows when no judgement was reached: `block`, `pass`, or `raise` the error.
        timeout: Seconds one check may take, waiting for its turn included; None = no limit. Many checks at
            once may take as many times that.
        max_characters: Longest text that is accepted; a longer one is a BadInput, never cut.
        remember: Seconds for which a verdict is given again for exactly the same text, the last 1,024; 0 = never.
            Failures and timeouts are never remembered.
        manifest: For an Engine of your own: its template and thresholds, and whether score or reasoning decides.
        observers: Functions that are told of every check, with the exchange and its verdict, or the error that
            was raised: logs, metrics, traces. Each partial check of a stream counts. They run in the caller's
            thread, under asyncio in another with the caller's context; one that fails is logged.
        name: What LangChain's traces call the guard.

    Raises:
        BadModelDir: The model is missing or damaged.
        DeviceUnavailable: CUDA was asked for and is not there.
        MissingExtra: ONNX Runtime is not installed.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model: Any = "bundled"
    reasoning: Reasoning = "adaptive"
    policy: Policy = Policy()
    device: Device = "auto"
    on_failure: OnFailure = "block"
    timeout: float | None = Field(default=None, gt=0)
    max_characters: int = Field(default=200_000, gt=0)
    remember: float = Field(default=300.0, ge=0)
    manifest: Manifest | None = None
    observers: tuple[Observer, ...] = ()

    _judge: Judge = PrivateAttr()
    _checks: Checks = PrivateAttr()

    def __init__(
        self,
        model: str | Path | Engine = "bundled",
        *,
        reasoning: Reasoning = "adaptive",
        policy: Policy | None = None,
        device: Device = "auto",
        on_failure: OnFailure = "block",
        timeout: float | None = None,
        max_characters: int = 200_000,
        remember: float = 300.0,
        manifest: Manifest | None = None,
        observers: Sequence[Observer] = (),
        name: str | None = None,
    ) -> None:
        settings: dict[str, Any] = {
            "model": model,
            "reasoning": reasoning,
            "policy": policy or Policy(),
            "device": device,
            "on_failure": on_failure,
            "timeout": timeout,
            "max_characters": max_characters,
            "remember": remember,
            "manifest": manifest,
            "observers": tuple(observers),
            "name": name,
        }
        super().__init__(**settings)
        if isinstance(model, (str, Path)):
            from .onnx_engine import shared_engine

            directory = open_model(model)
            engine: Engine = shared_engine(directory, device)
            manifest = directory.manifest
        elif all(hasattr(model, name) for name in ("score", "generate", "split")):
            engine, manifest = model, manifest or SCRIPTED_MANIFEST
        else:
            raise BadInput(f"A {type(model).__name__} is no model. Pass 'bundled', a directory, a hub id or an Engine.")
        self._judge = Judge(engine, manifest)
        self._checks = Checks(self._judge, engine.concurrency, remember)

    @property
    def judge(self) -> Judge:
        """What asks the model; for evaluation and for doors that keep their own policy."""
        return self._judge

    def warm_up(self) -> None:
        """Makes one check, so that the first one that counts is as fast as the others.

        Raises:
            GuardError: The model cannot be run.
        """
        verdicts_of(self._checks.attempt([Exchange(request="Hello.", response="Hello.")], self._terms(TASKS, "never")))

    def close(self) -> None:
        """Ends the guard's threads. The model is given back when no other guard uses it."""
        self._checks.close()

    def __enter__(self) -> GuardReasonerGuard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- judging ------------------------------------------------------------------------------

    def check(
        self, request: Any, response: str | None = None, *, history: Sequence[tuple[str, str]] | None = None
    ) -> Verdict:
        """Judges a request, or an exchange, and never raises for what it finds.

        Args:
            request: str, messages, dict or PromptValue.
            response: What was answered; its two labels are None without it.
            history: Earlier (role, text) turns to read it with; they are not judged. The bundled model was
                taught on single exchanges, so it gains little from them.

        Raises:
            BadInput: There is nothing to judge, or more than `max_characters`.
            GuardError: Judging failed and `on_failure` is `raise`.
        """
        return self.verdicts([self.read(request, response, history)])[0]

    async def acheck(
        self, request: Any, response: str | None = None, *, history: Sequence[tuple[str, str]] | None = None
    ) -> Verdict:
        """`check` without blocking the event loop; cancelling it stops the model."""
        return (await self.averdicts([self.read(request, response, history)]))[0]

    def stream_check(
        self, request: Any, response: str | None = None, *, history: Sequence[tuple[str, str]] | None = None
    ) -> Generator[ReasoningStep | Verdict]:
        """`check` that shows the reasoning as it is written: its steps, then the verdict, which comes last.

        Only the verdict counts: where an explanation had to be written anew, its `reasoning` differs from the
        steps that were seen before. Closing the iterator stops the model.
        """
        exchange = self.read(request, response, history)
        return watched(lambda tell: self.verdicts([exchange], told=tell)[0])

    def astream_check(
        self, request: Any, response: str | None = None, *, history: Sequence[tuple[str, str]] | None = None
    ) -> AsyncGenerator[ReasoningStep | Verdict]:
        """`stream_check` without blocking the event loop."""
        exchange = self.read(request, response, history)

        async def judged(tell: Tell) -> Verdict:
            return (await self.averdicts([exchange], told=tell))[0]

        return awatched(judged)

    def check_many(self, exchanges: Iterable[Any]) -> list[Verdict]:
        """Judges many exchanges, answered in order; reasoning is written in batches.

        Args:
            exchanges: Each a request, or a (request, response or None) pair.
        """
        return self.verdicts([self._read_one(item) for item in exchanges])

    async def acheck_many(self, exchanges: Iterable[Any]) -> list[Verdict]:
        """`check_many` without blocking the event loop."""
        return await self.averdicts([self._read_one(item) for item in exchanges])

    def verdicts(
        self,
        exchanges: list[Exchange],
        tasks: Iterable[Task] = TASKS,
        reasoning: Reasoning | None = None,
        told: Tell | None = None,
    ) -> list[Verdict]:
        """Judges exchanges that were read; for doors, which ask for the labels that can block where they stand.

        Args:
            exchanges: What `read` has made.
            tasks: Labels that are wanted.
            reasoning: In place of the guard's own.
            told: Told each step of an explanation as it is written.

        Raises:
            GuardError: Judging failed and `on_failure` is `raise`.
        """
        return verdicts_of(self._attempts(exchanges, tasks, reasoning, told))

    async def averdicts(
        self,
        exchanges: list[Exchange],
        tasks: Iterable[Task] = TASKS,
        reasoning: Reasoning | None = None,
        told: Tell | None = None,
    ) -> list[Verdict]:
        """`verdicts` without blocking the event loop."""
        return verdicts_of(await self._aattempts(exchanges, tasks, reasoning, told))

    # -- as a Runnable ------------------------------------------------------------------------

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Returns the input unchanged, or raises `Blocked`."""
        return self._call_with_config(lambda value: self._pass(value, self.check(value)), input, config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Returns the input unchanged, or raises `Blocked`."""

        async def checked(value: Any) -> Any:
            return self._pass(value, await self.acheck(value))

        return await self._acall_with_config(checked, input, config)

    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Any]:
        """`invoke` for many inputs, judged as one batch."""
        return self._batch_with_config(self._checked_batch, inputs, config, return_exceptions=return_exceptions)

    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Any]:
        """`ainvoke` for many inputs, judged as one batch."""

        async def checked(values: list[Any]) -> list[Any]:
            read = [self._read_or_error(value) for value in values]
            attempts = await self._aattempts([item for item in read if isinstance(item, Exchange)])
            return self._passed(values, read, attempts)

        return await self._abatch_with_config(checked, inputs, config, return_exceptions=return_exceptions)

    def _checked_batch(self, values: list[Any]) -> list[Any]:
        read = [self._read_or_error(value) for value in values]
        attempts = self._attempts([item for item in read if isinstance(item, Exchange)])
        return self._passed(values, read, attempts)

    def _read_or_error(self, value: Any) -> Exchange | BadInput:
        try:
            return self.read(value)
        except BadInput as error:
            return error

    def _passed(self, values: list[Any], read: list[Exchange | BadInput], attempts: list[Attempt]) -> list[Any]:
        """What `batch` returns for each value: itself, or the error that stops it."""
        judged = iter(attempts)
        found: list[Any] = []
        for value, item in zip(values, read, strict=True):
            attempt = item if isinstance(item, BadInput) else next(judged)
            if isinstance(attempt, Exception):
                found.append(attempt)
            else:
                found.append(Blocked(attempt) if attempt.blocked else value)
        return found

    def _pass(self, value: Any, verdict: Verdict) -> Any:
        if verdict.blocked:
            raise Blocked(verdict)
        return value

    # -- around other things ------------------------------------------------------------------

    def wrap(
        self, runnable: Runnable[Any, Any] | Callable[..., Any], *, beside: bool = False, hold: Hold = 64
    ) -> Guarded:
        """Guards a runnable: its input before the call, its output before it leaves.

        Args:
            runnable: A chain, chatbot or agent, or anything LangChain makes a Runnable of.
            hold: How much of a stream is held back until it is cleared: so many tokens, `sentence` (the one
                under way and the one before) or `answer` (all of it).
            beside: Check the input while the call is under way, which is cancelled (async) or whose result
                is thrown away (sync) when the check blocks. Not for calls with side effects.
        """
        from .guarded import Guarded

        return Guarded.around(self, runnable, beside=beside, hold=hold)

    def tool(self, tool: Tool) -> Tool:
        """Guards a function or a LangChain tool: its arguments before it runs, its result before it returns."""
        from .decorator import guarded

        return guarded(self)(tool)

    # -- inside -------------------------------------------------------------------------------

    def _read_one(self, item: Any) -> Exchange:
        if isinstance(item, tuple) and len(item) == 2 and (item[1] is None or isinstance(item[1], str)):
            return self.read(item[0], item[1])
        return self.read(item)

    def read(
        self, request: Any, response: str | None = None, history: Sequence[tuple[str, str]] | None = None
    ) -> Exchange:
        """Reads an exchange out of a chain's input and holds it to `max_characters`; see `check`."""
        exchange = read_exchange(request, response)
        if history is not None:
            try:
                exchange = Exchange(**{**exchange.model_dump(), "history": tuple(history)})
            except ValidationError as error:
                raise BadInput(
                    "History is a list of (role, text) pairs, role user or assistant. Pass it so."
                ) from error
        length = len(exchange.request) + len(exchange.response or "") + sum(len(text) for _, text in exchange.history)
        if length > self.max_characters:
            raise BadInput(
                f"The text has {length:,} characters; this guard takes {self.max_characters:,}. Raise "
                "max_characters (the time it takes grows with the length), or judge it in parts."
            )
        return exchange

    def _terms(self, tasks: Iterable[Task], reasoning: Reasoning | None, told: Tell | None = None) -> Terms:
        return Terms(reasoning or self.reasoning, self.policy, self.on_failure, self.timeout, tuple(tasks), told)

    def _attempts(
        self,
        exchanges: list[Exchange],
        tasks: Iterable[Task] = TASKS,
        reasoning: Reasoning | None = None,
        told: Tell | None = None,
    ) -> list[Attempt]:
        attempts = self._checks.attempt(exchanges, self._terms(tasks, reasoning, told))
        tell(self.observers, exchanges, attempts)
        return attempts

    async def _aattempts(
        self,
        exchanges: list[Exchange],
        tasks: Iterable[Task] = TASKS,
        reasoning: Reasoning | None = None,
        told: Tell | None = None,
    ) -> list[Attempt]:
        attempts = await self._checks.aattempt(exchanges, self._terms(tasks, reasoning, told))
        await atell(self.observers, exchanges, attempts)
        return attempts

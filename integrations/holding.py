"""How the answers to one model call of an agent are held back, and what came of it.

`answer_course` is the course of one such call, written once: a generator that asks for checks, for the model's
stream and its next chunk, and for chunks to be let go. Whoever drives it hands back what came of that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar

from langchain_core.callbacks import Callbacks
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, message_chunk_to_message
from langchain_core.runnables.config import RunnableConfig, var_child_runnable_config

from guardreasoner_guard.course import Check, by_tasks, with_note
from guardreasoner_guard.errors import BadInput
from guardreasoner_guard.exchange import Exchange
from guardreasoner_guard.guard import GuardReasonerGuard
from guardreasoner_guard.guarded import _without_streams
from guardreasoner_guard.unseen import hush, untraced
from guardreasoner_guard.verdict import Verdict
from guardreasoner_guard.withheld import END, Emit, Hold, Next, Withheld, joined

from .agent_talk import Settled, Unjudged, asked_in, mark, read, reply, settled, waiting, without_calls

logger = logging.getLogger(__name__)

Asked = TypeVar("Asked")
Given = TypeVar("Given")


@dataclass
class Holding:
    """One model call; made where the agent's run calls its model."""

    guard: GuardReasonerGuard
    hold: Hold
    beside: Sequence[Unjudged] = ()
    """What of the talk is judged while the model is called already."""
    tools: frozenset[str] = frozenset()
    """Tools whose calls are judged when they are made, not with the answer."""
    keep: bool = False
    """Whether a blocked answer is kept, for a person to decide on."""
    context: Context = field(default_factory=copy_context)
    """That of the run, which those who look on follow."""
    callbacks: Callbacks = field(default_factory=lambda: (var_child_runnable_config.get() or {}).get("callbacks"))
    """Who looks on at the run."""

    input: Settled | None = None
    """What came of `beside`, once it was judged."""
    verdict: Verdict | None = None
    """Why the answer was blocked, if it was."""
    reply: AIMessage | None = None
    """What stands in place of an answer that was blocked, or was not to be given."""
    kept: AIMessage | None = None
    """The blocked answer."""
    cleared: set[str] = field(default_factory=set)
    """Marks of the answers that were let go."""

    def quiet(self, *, closed: bool = False) -> Context:
        """A context in which nobody looks on at a run; LangSmith has to be told apart from it, by `untraced`.

        Args:
            closed: Whether there is no way out into the agent's graph either, such as its custom stream.
        """
        context = copy_context()
        context.run(_hush, closed)
        return context

    def unseen(self, call: Callable[[Asked], Given], request: Asked) -> Given:
        """Makes a call at which nobody looks on: no stream, no callback, no tracer."""

        def hushed() -> Given:
            with untraced():
                return call(request)

        return self.quiet().run(hushed)

    async def aunseen(self, call: Callable[[Asked], Awaitable[Given]], request: Asked) -> Given:
        """`unseen`, asynchronously; cancelling it cancels the call."""

        async def hushed() -> Given:
            with untraced():
                return await call(request)

        return await asyncio.create_task(hushed(), context=self.quiet())

    def instead(self, verdict: Verdict, id: str | None = None) -> AIMessage:
        """What stands in place of an answer: the policy's words, or a word that a person will decide."""
        return waiting() if self.keep else reply(self.guard.policy, verdict, id)

    def leave(self, message: AIMessage) -> AIMessage:
        """What the caller of the model is given; a blocked answer that is kept has been seen by nobody else."""
        if self.kept is not None:
            return self.kept
        if self.reply is None:
            self.cleared.add(mark(message))
        return message


@dataclass(frozen=True)
class Run:
    """Asks for a call that the agent would make itself: of its model, which is held back, or of a tool."""

    request: Any
    holding: Holding | None = None


@dataclass(frozen=True)
class Open:
    """Asks for the model's stream to be opened; with checks beside it, for their verdicts."""

    messages: list[BaseMessage]
    beside: tuple[Check, ...] = ()


AnswerCourse = Generator[Check | Open | Next | Emit, Any, None]


def answer_course(holding: Holding, messages: list[BaseMessage], *, streams: bool) -> AnswerCourse:
    """One call of the model: what it says is let go as it is cleared, or something else said instead.

    Args:
        holding: Says how, and is told what came of it.
        messages: What the model is asked.
        streams: Whether its answer comes in chunks; else in one.
    """
    policy = holding.guard.policy
    revisions = policy.max_revisions if policy.on_violation == "revise" else 0
    request = asked_in(messages)
    holding.verdict = holding.reply = holding.kept = None  # of an earlier call: middleware may make several
    opened = bool(holding.beside) and holding.input is None
    if opened:
        found = yield Open(messages, tuple(item.check for item in holding.beside))
        holding.input = settled(holding.beside, found)
    if holding.input is not None and holding.input.stop is not None:
        holding.reply = holding.instead(holding.input.stop)
        yield Emit([holding.reply])
        return
    if holding.input is not None and holding.input.bad:
        messages, opened = holding.input.cleaned(messages), False
    if not opened:
        yield Open(messages)
    while True:
        whole = holding.keep or bool(revisions)
        said = _Said(holding, request, "answer" if whole else holding.hold)
        verdict = yield from said.heard(streams)
        if verdict is None:
            return
        if verdict.outcome != "verdict" or not revisions:
            break
        revisions -= 1
        messages = with_note(messages, verdict)
        yield Open(messages)
    answer = whole_message(said.chunks)
    holding.verdict = verdict
    holding.reply = holding.instead(verdict, answer.id)
    holding.kept = answer if holding.keep else None
    said_before = said.let_go and str(holding.reply.content)
    yield Emit([holding.reply.model_copy(update={"content": f"\n\n{said_before}"}) if said_before else holding.reply])


class _Said:
    """What a model says, chunk by chunk, and how much of it has been let go."""

    def __init__(self, holding: Holding, request: str, hold: Hold) -> None:
        self.chunks: list[Any] = []
        self.let_go = 0
        """So many of the chunks have been cleared."""
        self._guard = holding.guard
        self._request = request
        self._tools = holding.tools
        self._withheld = Withheld(holding.guard, Exchange(request=request), hold)
        self._names: dict[int | None, str] = {}

    def heard(self, streams: bool) -> Generator[Check | Next | Emit, Any, Verdict | None]:
        """Hears the answer out; returns the verdict that blocks it, if one does."""
        while True:
            chunk = yield Next()
            if chunk is not END:
                self.chunks.append(chunk)
            if chunk is END or self._withheld.add(without_calls(chunk, self._judged_later)):
                verdict = yield from self._verdict(streams)
                if chunk is END and not (verdict is not None and verdict.blocked):
                    verdict = yield from self._malformed()
                if verdict is not None and verdict.blocked:
                    return verdict
                free = len(self._withheld.cleared(chunk is END))
                yield Emit(self.chunks[self.let_go : self.let_go + free])
                self.let_go += free
                if chunk is END:
                    return None

    def _verdict(self, streams: bool) -> Generator[Check, Any, Verdict | None]:
        try:
            answered = self._withheld.answered()
        except BadInput as error:
            if not self._guard.policy.shadow:
                raise
            logger.warning("not judged, and passed as the policy is a shadow: %s", error)
            return None
        if answered is None:
            return None
        if not streams or self._guard.judge.manifest.decides == "reasoning":
            verdict: Verdict = yield Check(answered, self._withheld.tasks)
            return verdict
        # parts of an answer are many: only what blocks is asked of them, and only a block is explained
        blocking = tuple(task for task in self._withheld.tasks if task in self._guard.policy.block)
        verdict = yield Check(answered, blocking or ("response",), "never")
        if verdict.blocked and verdict.outcome == "verdict" and self._guard.reasoning != "never":
            explained: Verdict = yield Check(answered, self._withheld.tasks)
            if explained.blocked and explained.outcome == "verdict":
                return explained
        return verdict

    def _malformed(self) -> Generator[Check, Any, Verdict | None]:
        """Judges calls whose arguments cannot be read: they are never made, and so not judged when they are."""
        calls = getattr(whole_message(self.chunks), "invalid_tool_calls", []) if self.chunks else []
        text = "\n".join(str(call["args"]) for call in calls if call["args"])
        exchange = read(self._guard, Exchange(request=self._request, response=text)) if text else None
        if exchange is None:
            return None
        verdict: Verdict = yield Check(exchange, ("response",))
        return verdict

    def _judged_later(self, name: str | None, index: int | None) -> bool:
        if name and index is not None:
            self._names[index] = name  # later chunks of a call have no name
        return (name or self._names.get(index, "")) in self._tools


def whole_message(chunks: Sequence[Any]) -> AIMessage:
    """The message that chunks add up to."""
    message: Any = joined(chunks)
    return message_chunk_to_message(message) if isinstance(message, AIMessageChunk) else message  # type: ignore[return-value]


def verdicts(guard: GuardReasonerGuard, checks: Sequence[Check]) -> list[Verdict]:
    """The verdicts of checks, in order; those that ask the same are judged together."""
    found: dict[int, Verdict] = {}
    for tasks, group in by_tasks(dict(enumerate(checks))).items():
        judged = guard.verdicts([check.exchange for _, check in group], tasks, group[0][1].reasoning)
        found |= {place: verdict for (place, _), verdict in zip(group, judged, strict=True)}
    return [found[place] for place in range(len(checks))]


async def averdicts(guard: GuardReasonerGuard, checks: Sequence[Check]) -> list[Verdict]:
    """`verdicts` without blocking the event loop."""
    found: dict[int, Verdict] = {}
    for tasks, group in by_tasks(dict(enumerate(checks))).items():
        judged = await guard.averdicts([check.exchange for _, check in group], tasks, group[0][1].reasoning)
        found |= {place: verdict for (place, _), verdict in zip(group, judged, strict=True)}
    return [found[place] for place in range(len(checks))]


def _hush(closed: bool) -> None:
    """Leaves nobody in this context to look on at a run."""
    config: RunnableConfig = var_child_runnable_config.get() or {}
    settings = {k: v for k, v in config.get("configurable", {}).items() if not k.startswith("__pregel_stream")}
    quiet: RunnableConfig = {**config, "configurable": settings, "callbacks": []}
    hush(_without_streams(quiet) if closed else quiet)

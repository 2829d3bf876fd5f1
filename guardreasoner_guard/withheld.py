"""The course of one guarded stream, written once: chunks are withheld until what they add up to is cleared.

A generator like `course`: it asks for checks, for the stream and its next chunk, and for chunks to be let go;
whoever drives it (sync or async) carries that out and hands back what came of it.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from langchain_core.messages import BaseMessage, BaseMessageChunk

from .course import OUTPUT_TASKS, Check, asked, instead, with_note
from .errors import BadInput
from .exchange import Exchange, copied, messages_in, read_answer, read_exchange, texts_of
from .guard import GuardReasonerGuard
from .verdict import Task, Verdict

Hold = int | Literal["sentence", "answer"]
"""What is held back of a stream: so many tokens, the sentence under way and the one before, or the whole answer."""

END = object()
"""What a driver hands back when the stream has no next chunk."""
_LONGEST_SENTENCE = 64
"""Tokens after which a sentence that does not end is checked all the same."""
_SENTENCE_END = re.compile(r"[.!?]['\")\]*_]*\s|[\n\u3002\uff01\uff1f]")


@dataclass(frozen=True)
class Open:
    """Asks for the runnable's stream to be opened; with a check beside it, for (verdict, first chunk)."""

    value: Any
    beside: Check | None = None


@dataclass(frozen=True)
class Next:
    """Asks for the next chunk, or END."""


@dataclass(frozen=True)
class Emit:
    """Asks for chunks to be handed to the consumer."""

    chunks: list[Any]


StreamCourse = Generator[Check | Open | Next | Emit, Any, None]


def stream_course(
    guard: GuardReasonerGuard, value: Any, *, hold: Hold, beside: bool, message_out: bool = False
) -> StreamCourse:
    """One guarded stream: check the input, open the stream, let go what is cleared, and what follows a block.

    Args:
        guard: Judges.
        value: The runnable's input.
        hold: How much is held back. With `on_violation="revise"` it is the whole answer, since what was seen
            cannot be said anew; so it is for chunks other than text and messages.
        beside: Whether the stream may be opened before the input is checked.
        message_out: Whether the runnable answers with messages, for an input that is blocked before it does.

    Raises:
        Blocked: A check blocked and the policy says to raise.
    """
    exchange = guard.read(asked(read_exchange(value)))
    policy = guard.policy
    check = Check(exchange, ("request",))
    if beside:
        verdict, chunk = yield Open(copied(value), check)
    else:
        verdict = yield check
    if verdict.blocked:
        yield Emit([instead(policy, verdict, None, value, message_out)])
        return
    if not beside:
        yield Open(copied(value))
        chunk = yield Next()
    revisions = policy.max_revisions if policy.on_violation == "revise" else 0
    while True:
        withheld = Withheld(guard, exchange, "answer" if revisions else hold, messages_in(value))
        while True:
            if chunk is END or withheld.add(chunk):
                verdict = yield from verdict_so_far(guard, withheld)
                if verdict is not None and verdict.blocked:
                    break
                yield Emit(withheld.cleared(chunk is END))
                if chunk is END:
                    return
            chunk = yield Next()
        if verdict.outcome != "verdict" or not revisions:
            yield Emit([instead(policy, verdict, withheld.whole, value, message_out)])
            return
        revisions -= 1
        yield Open(copied(with_note(value, verdict)))
        chunk = yield Next()


def known_hold(hold: Any) -> Hold:
    """How much is to be held back, if it is a way that is known.

    Raises:
        BadInput: It is none.
    """
    if hold in ("sentence", "answer") or (isinstance(hold, int) and hold >= 2):
        return hold  # type: ignore[no-any-return]
    raise BadInput(f"hold is {hold!r}. Pass tokens (at least 2), 'sentence' or 'answer'.")


def verdict_so_far(guard: GuardReasonerGuard, withheld: Withheld) -> Generator[Check, Verdict, Verdict | None]:
    """The verdict on what a stream has said so far; None where it has said nothing.

    Where the score decides, reasons are written for a block alone: nobody sees those of what passes.
    """
    answered, tasks = withheld.answered(), withheld.tasks
    if answered is None:
        return None
    if guard.judge.manifest.decides == "reasoning":
        verdict = yield Check(answered, tasks)
        return verdict
    blocking = tuple(task for task in tasks if task in guard.policy.block)
    verdict = yield Check(answered, blocking or ("response",), "never")
    if verdict.blocked and verdict.outcome == "verdict" and guard.reasoning != "never":
        explained = yield Check(answered, tasks)
        if explained.blocked and explained.outcome == "verdict":  # else the first one stands, without reasons
            return explained
    return verdict


class Withheld:
    """The chunks of one answer that have not been let go.

    A chunk is let go once the check after the one that first saw it has passed, so that it was judged with
    what follows it; at the end of the stream, with the last check.

    Args:
        guard: Reads, counts tokens, knows the model's window.
        exchange: The request.
        hold: How much is held back. From a tool call on it is all, since a call that is cut off can still be run.
        given: The messages of the input.
    """

    def __init__(
        self, guard: GuardReasonerGuard, exchange: Exchange, hold: Hold, given: Sequence[BaseMessage] = ()
    ) -> None:
        self.whole: Any = None
        """What all chunks add up to; a list where they do not add."""
        self._guard = guard
        self._exchange = exchange
        self._hold = hold
        self._given = given
        self._said: list[str] = []
        """Texts of all chunks, one by one; what they add up to may lack some."""
        self._chunks: list[Any] = []
        self._seen = 0
        """So many of the chunks have passed a check."""
        self._judged = ""
        self._begin = 0
        """Where the model's window stands in the text; what lies before it was cleared."""
        self._new = ""
        """What the chunks since the last check say."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The labels to ask for; whether an answer refuses is said at its beginning."""
        return OUTPUT_TASKS if not self._begin else ("response",)

    def add(self, chunk: Any) -> bool:
        """Takes a chunk; returns whether there is enough to be checked."""
        self.whole = chunk if self.whole is None else _added(self.whole, chunk)
        self._chunks.append(chunk)
        said = list(texts_of(chunk))
        self._said += said
        self._new += "".join(said)
        if _calls_a_tool(chunk) or not isinstance(self.whole, (str, BaseMessageChunk)):
            self._hold = "answer"
        if self._hold == "answer":
            return False
        size = _LONGEST_SENTENCE if self._hold == "sentence" else max(1, int(self._hold) // 2)
        if self._hold == "sentence" and _SENTENCE_END.search(self._new):
            return True
        if len(self._new) <= size:  # a token has a character at least
            return False
        try:
            return len(self._guard.judge.engine.split(self._new, size, 0)) > 1
        except Exception:  # the check fails too, as the guard's settings say
            return True

    def answered(self) -> Exchange | None:
        """The exchange to be judged now; None where the chunks hold no text."""
        text = self._text()
        if not text.strip():
            return None
        if not text.startswith(self._judged[: self._begin]):
            self._begin = 0  # a message's parts were put in another order
        self._judged, self._new = text, ""
        self._guard.read(self._exchange.model_copy(update={"response": text}))  # holds all of it to max_characters
        return self._exchange.model_copy(update={"response": text[self._begin :]})

    def cleared(self, ended: bool) -> list[Any]:
        """Chunks that may be let go now that a check has passed."""
        free = len(self._chunks) if ended else self._seen
        chunks, self._chunks = self._chunks[:free], self._chunks[free:]
        self._seen = len(self._chunks)
        with suppress(Exception):  # else it is judged again with what follows
            self._begin += self._guard.judge.stages.last_window(self._judged[self._begin :])
        return chunks

    def _text(self) -> str:
        if self.whole is None:
            return ""
        text = read_answer(self.whole, self._exchange.request, self._given)
        if isinstance(self.whole, str):
            return text
        lost = [said for said in self._said if said not in text and said != self._exchange.request]
        return "\n".join([text, *lost])


def joined(chunks: Iterable[Any]) -> Any:
    """The whole that chunks add up to; a list, where they do not add; an empty text, where there is none."""
    whole: Any = None
    for chunk in chunks:
        whole = chunk if whole is None else _added(whole, chunk)
    return "" if whole is None else whole


def _added(whole: Any, chunk: Any) -> Any:
    if isinstance(whole, list) and not isinstance(chunk, list):
        return [*whole, chunk]
    # messages of different kinds do not add, and whole messages add up to a prompt
    if isinstance(whole, BaseMessage) and not (isinstance(whole, BaseMessageChunk) and type(whole) is type(chunk)):
        return [whole, chunk]
    try:
        return whole + chunk
    except TypeError:
        return [whole, chunk]


def _calls_a_tool(chunk: Any) -> bool:
    """Whether a message's chunk holds a part of a tool call, in whatever form its provider gives it."""
    if not isinstance(chunk, BaseMessage):
        return False
    parts = chunk.content if isinstance(chunk.content, list) else []
    kinds = [str(part.get("type")) for part in parts if isinstance(part, dict)]
    return bool(
        getattr(chunk, "tool_call_chunks", None)
        or getattr(chunk, "tool_calls", None)
        or "function_call" in chunk.additional_kwargs
        or any("tool" in kind or "function" in kind or "input_json" in kind for kind in kinds)
    )

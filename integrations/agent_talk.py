"""An agent's talk as the guard reads it: what is still to be judged, and what stands in place of what is blocked."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from langchain_core.messages import AIMessage, BaseMessage, SystemMessage, ToolMessage

from guardreasoner_guard.course import Check
from guardreasoner_guard.errors import BadInput
from guardreasoner_guard.exchange import Exchange, text_of
from guardreasoner_guard.guard import GuardReasonerGuard
from guardreasoner_guard.policy import Policy, explanation
from guardreasoner_guard.verdict import Task, Verdict, without_quotes

logger = logging.getLogger(__name__)

WITHHELD = "[Withheld by a safety check.]"
WAITING = "This waits for a person to review it."
_CALLS = ("tool_use", "tool_call", "tool_call_chunk", "function_call", "input_json_delta")
"""Types of a message's parts that repeat its tool calls."""


def mark(*messages: BaseMessage) -> str:
    """Names a message by what it says, and by what it is read with: one that was changed is new."""
    text = "\n".join(f"{message.type}\n{text_of(message)}" for message in messages)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32]


def marks(messages: Iterable[BaseMessage]) -> list[str]:
    """The marks of a talk; people's messages are read with those of their turn before them."""
    return [mark(*group) for group in _groups(messages)]


def read(guard: GuardReasonerGuard, exchange: Exchange) -> Exchange | None:
    """Holds an exchange to the guard's `max_characters`; None where it exceeds them and the policy is a shadow.

    Raises:
        BadInput: It is longer.
    """
    try:
        return guard.read(exchange)
    except BadInput as error:
        if not guard.policy.shadow:
            raise
        logger.warning("not judged, and passed as the policy is a shadow: %s", error)
        return None


@dataclass(frozen=True)
class Unjudged:
    """Something of a talk that is to be judged."""

    check: Check
    mark: str
    """Of the message that goes where it is blocked."""
    asked: bool = False
    """Whether it is what the run is to answer, so that it ends the run where it is blocked."""


@dataclass(frozen=True)
class Settled:
    """What came of judging a talk."""

    bad: dict[str, Verdict]
    """By the marks of the messages that must go."""
    stop: Verdict | None
    """Why the run cannot go on, if it cannot."""
    asked: frozenset[str] = frozenset()
    """Marks of those that stop it."""

    def cleaned(self, messages: Iterable[BaseMessage]) -> list[BaseMessage]:
        """The messages, with those that must go withheld."""
        given = list(messages)
        return [
            withheld(message, self.bad[name]) if name in self.bad else message
            for message, name in zip(given, marks(given), strict=True)
        ]


def unjudged(
    guard: GuardReasonerGuard, messages: Sequence[BaseMessage], known: Callable[[str], bool]
) -> list[Unjudged]:
    """What of a talk is to be judged, in order.

    People's messages are read with those of their turn before them, since a request may be split over several.
    What tools returned and what answers are not known to be the agent's own are untrusted texts, judged alone.
    System messages are the application's.

    Args:
        guard: Reads, and holds texts to its `max_characters`.
        messages: The talk.
        known: Whether the message of a mark was judged before.

    Raises:
        BadInput: A text is too long for the guard.
    """
    found: list[Unjudged] = []
    last = _last_turn(messages)
    request = ""
    for place, group in enumerate(_groups(messages)):
        message = group[-1]
        person = not isinstance(message, (AIMessage, SystemMessage, ToolMessage))
        if person:
            request = _joined(group)
        if known(mark(*group)) or isinstance(message, SystemMessage) or not text_of(message).strip():
            continue
        if isinstance(message, AIMessage):
            task: Task = "response"
            exchange = read(guard, Exchange(request=request, response=text_of(message)))
        else:
            task = "request"
            exchange = read(guard, Exchange(request=_joined(group)))
        if exchange is not None:
            found.append(Unjudged(Check(exchange, (task,)), mark(*group), asked=person and place >= last))
    return found


def settled(items: Sequence[Unjudged], verdicts: Sequence[Verdict]) -> Settled:
    """Puts verdicts to what they are about; the first that is asked and blocked stops the run."""
    blocked = [(item, verdict) for item, verdict in zip(items, verdicts, strict=True) if verdict.blocked]
    stop = next((verdict for item, verdict in blocked if item.asked), None)
    asked = frozenset(item.mark for item, _ in blocked if item.asked)
    return Settled({item.mark: verdict for item, verdict in blocked}, stop, asked)


def asked_in(messages: Sequence[BaseMessage]) -> str:
    """What people said in the last turn."""
    turn = messages[_last_turn(messages) :]
    return _joined(m for m in turn if not isinstance(m, (AIMessage, SystemMessage, ToolMessage)))


def without_calls(message: Any, called: Callable[[str | None, int | None], bool]) -> Any:
    """A message, or a chunk of one, without the calls of tools that are judged when they are made.

    Args:
        message: What a model wrote.
        called: Whether a call of this name, or of this index in a stream, is judged when it is made.
    """
    calls = list(getattr(message, "tool_calls", []))
    chunks = list(getattr(message, "tool_call_chunks", []))
    if not calls and not chunks:
        return message
    kept = [call for call in calls if not called(call["name"], None)]
    kept_chunks = [part for part in chunks if not called(part["name"], part["index"])]
    if len(kept) == len(calls) and len(kept_chunks) == len(chunks):
        return message
    update: dict[str, Any] = {"tool_calls": kept}
    if chunks:
        update["tool_call_chunks"] = kept_chunks
    if not kept and not kept_chunks:  # else their repetitions are judged with those that are kept
        parts = message.content
        if isinstance(parts, list):
            update["content"] = [p for p in parts if not (isinstance(p, dict) and p.get("type") in _CALLS)]
        update["additional_kwargs"] = {k: v for k, v in message.additional_kwargs.items() if k != "tool_calls"}
        if chunks:
            update["invalid_tool_calls"] = []  # of a chunk they are its calls, which are not complete
    return message.model_copy(update=update)


def withheld(message: BaseMessage, verdict: Verdict) -> BaseMessage:
    """What stands in place of a message that must go: same kind, same id, its calls without arguments."""
    update: dict[str, Any] = {"content": WITHHELD, "additional_kwargs": {}, "response_metadata": about(verdict)}
    if isinstance(message, ToolMessage):
        update |= {"content": f"{WITHHELD} {without_quotes(verdict.reasons)}", "artifact": None, "status": "error"}
    if isinstance(message, AIMessage):
        update |= {"tool_calls": [{**call, "args": {}} for call in message.tool_calls], "invalid_tool_calls": []}
    return message.model_copy(update=update)


def reply(policy: Policy, verdict: Verdict, id: str | None = None) -> AIMessage:
    """What a caller reads in place of an answer.

    Args:
        policy: Says what; a policy that raises has an explanation for whoever reads the talk later.
        verdict: Why.
        id: Of the message it stands for.
    """
    said = policy.on_violation(verdict) if callable(policy.on_violation) else explanation(verdict)
    content = said.content if isinstance(said, BaseMessage) else str(said)
    return AIMessage(content=content, id=id or str(uuid4()), response_metadata=about(verdict))


def waiting() -> AIMessage:
    """What a caller reads while a person has not decided."""
    return AIMessage(content=WAITING, id=str(uuid4()))


def about(verdict: Verdict) -> dict[str, Any]:
    """A verdict as a message's metadata: what was found, and no word of what was judged."""
    fields = {"blocked", "outcome", "request", "completion", "response", "scores", "error", "model"}
    return {"guard": verdict.model_dump(mode="json", include=fields)}


def _groups(messages: Iterable[BaseMessage]) -> Iterator[tuple[BaseMessage, ...]]:
    """Each message with those it is read with, itself the last; a turn ends where an answer calls no tool."""
    turn: tuple[BaseMessage, ...] = ()
    for message in messages:
        if isinstance(message, (AIMessage, SystemMessage, ToolMessage)):
            yield (message,)
            if isinstance(message, AIMessage) and not message.tool_calls:
                turn = ()
        else:
            turn = (*turn, message)
            yield turn


def _last_turn(messages: Sequence[BaseMessage]) -> int:
    """Where the last turn begins in which a person speaks."""
    people = [i for i, m in enumerate(messages) if not isinstance(m, (AIMessage, SystemMessage, ToolMessage))]
    ends = [i for i, m in enumerate(messages) if isinstance(m, AIMessage) and not m.tool_calls]
    return max((end + 1 for end in ends if people and end < people[-1]), default=0)


def _joined(messages: Iterable[BaseMessage]) -> str:
    return "\n\n".join(text for m in messages if (text := text_of(m)))

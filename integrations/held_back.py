"""What doors to agent frameworks share: a stream of any chunks held back, and what is shown of a verdict.

Nothing here knows a framework; the core's `Withheld` decides what is let go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping
from typing import Any, TypeVar

from langchain_core.messages import AIMessageChunk

from guardreasoner_guard.errors import Blocked
from guardreasoner_guard.exchange import Exchange, texts_of
from guardreasoner_guard.guard import GuardReasonerGuard
from guardreasoner_guard.policy import Policy, explanation
from guardreasoner_guard.verdict import Verdict, without_quotes
from guardreasoner_guard.withheld import Hold, Withheld, verdict_so_far

Chunk = TypeVar("Chunk")
_NO_WORDS = frozenset({"id", "call_id", "type", "role", "status", "index", "format", "data", "url", "signature"})


async def held_back(
    guard: GuardReasonerGuard,
    exchange: Exchange,
    chunks: AsyncIterable[Chunk],
    said: Callable[[Chunk], AIMessageChunk],
    hold: Hold,
) -> AsyncGenerator[Chunk]:
    """Hands on the chunks of an answer, in order, as what they say is cleared.

    Args:
        guard: Judges.
        exchange: The request that is being answered.
        chunks: The stream; it is closed when its reader stops, and when it is blocked.
        said: The words of a chunk. From a tool call in one of them on, all is held until the end.
        hold: How much is held back; see `GuardReasonerGuard.wrap`.

    Raises:
        Blocked: A check blocked; what was held is never seen.
    """
    withheld = Withheld(guard, exchange, hold)
    waiting: deque[Chunk] = deque()
    try:
        async for chunk in chunks:
            waiting.append(chunk)
            if withheld.add(said(chunk)):
                await _clear(guard, withheld)
                for _ in withheld.cleared(ended=False):
                    yield waiting.popleft()
        await _clear(guard, withheld)
        while waiting:
            yield waiting.popleft()
    finally:
        if (close := getattr(chunks, "aclose", None)) is not None:
            await close()


async def _clear(guard: GuardReasonerGuard, withheld: Withheld) -> None:
    steps = verdict_so_far(guard, withheld)
    verdict: Verdict | None = None
    try:
        step = next(steps)
        while True:
            verdict = (await guard.averdicts([step.exchange], step.tasks, step.reasoning))[0]
            step = steps.send(verdict)
    except StopIteration as done:
        verdict = done.value
    if verdict is not None and verdict.blocked:
        raise Blocked(shown(verdict))


def words(text: str, part: int = 0) -> AIMessageChunk:
    """A chunk that says so much more of an answer's part of that number."""
    return AIMessageChunk(content=[{"type": "text", "text": text, "index": part}] if text else [])


def words_by_path(value: Any, path: str = "") -> dict[str, str]:
    """The words in a value of any shape, each by its path; ids, links and bytes are none."""
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        return {path: "\n".join(texts_of(value))}
    found: dict[str, str] = {}
    for key, item in value.items():
        if key not in _NO_WORDS:
            found |= words_by_path(item, f"{path}.{key}")
    return found


def shown(verdict: Verdict) -> Verdict:
    """The verdict for those who must not see a stopped answer: its reasons quote nothing of it."""
    return verdict if verdict.response is None else unquoted(verdict)


def unquoted(verdict: Verdict) -> Verdict:
    """The verdict for logs: its reasons quote nothing of what was judged."""
    steps = tuple(step.model_copy(update={"text": without_quotes(step.text)}) for step in verdict.reasoning)
    return verdict.model_copy(update={"reasons": without_quotes(verdict.reasons), "reasoning": steps})


def replacement(policy: Policy, verdict: Verdict) -> str:
    """The text in place of a blocked answer; `revise` explains, since the framework asks the model itself.

    Raises:
        Blocked: The policy says so, or what it puts in the answer's place is no text.
    """
    action = policy.on_violation
    if action != "raise":
        text = action(verdict) if callable(action) else explanation(verdict)
        if isinstance(text, str):
            return text
    raise Blocked(shown(verdict))

"""What a guarded agent's state holds beside its talk: private to the guard, and out of reach of a run's input."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, NotRequired

from cachetools import LRUCache
from langchain.agents.middleware.types import AgentState, PrivateStateAttr
from langchain_core.messages import AIMessage, BaseMessage

from guardreasoner_guard.verdict import Verdict

from .agent_talk import Settled, marks, withheld
from .held_back import shown


def _united(old: Sequence[str], new: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*(old or ()), *(new or ())]))


def _later(old: Any, new: Any) -> Any:
    return new


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    return {**(old or {}), **(new or {})}


class GuardState(AgentState[Any]):
    """An agent's state with its guard's notes. LangGraph takes the last annotation of a field for its reducer."""

    guard_judged: NotRequired[Annotated[list[str], PrivateStateAttr, _united]]
    """Marks of messages and tool calls that were judged; only others are new."""
    guard_found: NotRequired[Annotated[Any, PrivateStateAttr, _later]]
    """A verdict that blocks and is still to be acted on, with what it is about; None where there is none."""
    guard_calls: NotRequired[Annotated[dict[str, Any], PrivateStateAttr, _merged]]
    """Verdicts on tool calls that a person is asked about, by the id of the call."""


class Notes:
    """How one middleware keeps and reads its notes.

    Args:
        by: Its name. Several guards of one agent each know what they have judged themselves.
    """

    def __init__(self, by: str) -> None:
        self.by = by
        self._made: LRUCache[str, bool] = LRUCache(4096)
        self._lock = threading.Lock()

    def made(self, marks: Iterable[str]) -> None:
        """Remembers what was judged where it was made, and will be in the state later."""
        with self._lock:
            self._made.update(dict.fromkeys(marks, True))

    def known(self, state: Mapping[str, Any]) -> Callable[[str], bool]:
        """Whether something was judged, by its mark."""
        names = set(state.get("guard_judged") or ())

        def is_known(mark: str) -> bool:
            with self._lock:
                return self._name(mark) in names or mark in self._made

        return is_known

    def judged(self, marks: Iterable[str]) -> dict[str, Any]:
        """The note that these were judged."""
        names = [self._name(mark) for mark in marks]
        return {"guard_judged": names} if names else {}

    def settled(
        self,
        state: Mapping[str, Any],
        messages: Sequence[BaseMessage],
        outcome: Settled,
        said: AIMessage | None,
        *,
        ask: bool,
    ) -> dict[str, Any]:
        """The notes of a talk that was judged, with what takes the place of messages that must go.

        Args:
            state: The agent's.
            messages: The talk as the model would have read it; others than the state's are not put into it.
            outcome: What came of it.
            said: What is said in place of an answer, where the run stops.
            ask: Whether what stops it stays until a person has decided.
        """
        ids = {message.id for message in state.get("messages", [])}
        names = marks(messages)
        bad = [(m, name) for m, name in zip(messages, names, strict=True) if name in outcome.bad]
        gone = [(withheld(m, outcome.bad[name]), name) for m, name in bad if m.id is not None and m.id in ids]
        put_off = [m for m, name in gone if ask and name in outcome.asked]
        now = [m for m, name in gone if not (ask and name in outcome.asked)]
        after = outcome.cleaned(messages)
        old = set(state.get("guard_judged") or ())
        kept = [name for name in dict.fromkeys([*names, *marks(after)]) if name not in outcome.bad]
        update = self.judged(name for name in kept if self._name(name) not in old)
        if now:
            update["messages"] = now
        if outcome.stop is not None and said is not None:
            asked = [m for m, name in bad if name in outcome.asked]
            update |= self.found("request", outcome.stop, said)
            update["guard_found"] |= {"asked": asked, "gone": put_off, "marks": self.judged(outcome.asked)}
        return update

    def found(self, of: str, verdict: Verdict, said: AIMessage) -> dict[str, Any]:
        """The note of a verdict that blocks."""
        note = {"by": self.by, "of": of, "verdict": shown(verdict).model_dump(mode="json"), "said": said}
        return {"guard_found": note}

    def _name(self, mark: str) -> str:
        return f"{self.by}/{mark}"

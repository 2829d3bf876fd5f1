"""What the state of a LangGraph graph holds of the guard: its verdicts, as plain JSON that every checkpointer keeps."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from uuid import uuid4

from langchain_core.messages import AIMessage, BaseMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from pydantic import BaseModel
from typing_extensions import TypedDict

from guardreasoner_guard.errors import Blocked, MissingExtra
from guardreasoner_guard.exchange import copied
from guardreasoner_guard.verdict import Verdict

from .wordless import wordless

try:
    from langgraph.types import Command
except ImportError as error:
    raise MissingExtra("langgraph", "langgraph") from error

VERDICTS = "verdicts"
REMOVED = "(removed by the guard)"


def add_verdicts(kept: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The verdicts of both, each once: a subgraph gives back those that it was given."""
    known = {one["id"] for one in kept}
    return [*kept, *(one for one in new if one["id"] not in known)]


class Judged(TypedDict):
    """State with the guard's verdicts; mix it into yours: `class State(MessagesState, Judged)`.

    A pydantic model or dataclass declares the field itself, with `add_verdicts`.
    """

    verdicts: Annotated[list[dict[str, Any]], add_verdicts]
    """The fields of `Verdict` with the `node` that was guarded and an `id`; `Verdict.model_validate` reads one.
    Where it blocked, nothing that may quote the text: what was stopped is not kept in its verdict either."""


def record(verdict: Verdict, config: RunnableConfig) -> dict[str, Any]:
    """A verdict as the state holds it."""
    plain = wordless(verdict) if verdict.blocked else verdict.model_dump(mode="json")
    return {"id": uuid4().hex, "node": config.get("metadata", {}).get("langgraph_node"), **plain}


def stopped(verdict: Verdict) -> Blocked:
    """The error of a blocked answer; it quotes nothing, since a graph streams, traces and keeps its errors."""
    return Blocked(verdict.model_copy(update={"reasons": verdict.shown_reasons, "reasoning": ()}))


def with_verdicts(update: Any, records: list[dict[str, Any]], state: Any) -> Any:
    """A node's update with the verdicts added, where the graph's state has a place for them."""
    if not records or value_at(state, VERDICTS) is None:
        return update
    if update is None or isinstance(update, Mapping):
        update = update or {}
        return {**update, VERDICTS: [*update.get(VERDICTS, ()), *records]}
    return [Command(update={VERDICTS: records}), *(update if isinstance(update, list) else [update])]


def value_at(state: Any, key: str) -> Any:
    """What a state holds under a key, be it a dict, a pydantic model or a dataclass; None where it holds nothing."""
    return state.get(key) if isinstance(state, Mapping) else getattr(state, key, None)


def changed(state: Any, values: Mapping[str, Any]) -> Any:
    """A copy of a state with other values."""
    if isinstance(state, Mapping):
        return {**state, **values}
    if isinstance(state, BaseModel):
        return state.model_copy(update=dict(values))
    return dataclasses.replace(state, **values)


def own(state: Any) -> Any:
    """A copy of a state that a node may write into, as many do before they return it; see `copied`."""
    if isinstance(state, BaseModel):
        names = list(type(state).model_fields)
    elif dataclasses.is_dataclass(state):
        names = [field.name for field in dataclasses.fields(state)]
    else:
        return copied(state)
    state = copy.copy(state)
    for name in names:
        object.__setattr__(state, name, copied(getattr(state, name)))  # it may be frozen
    return state


def is_talk(value: Any) -> bool:
    """Whether it is a list of messages."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, BaseMessage) for one in value)


def without_turn(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Replacements for what was judged as a request: the texts of the last turn, so that no later turn finds them.

    They have the ids of what they replace, as `add_messages` wants it; a tool's result still answers its call.
    """
    finished = [i for i, one in enumerate(messages[:-1]) if isinstance(one, AIMessage) and not one.tool_calls]
    turn = messages[finished[-1] + 1 if finished else 0 :]
    removed: list[BaseMessage] = []
    for one in turn:
        if one.id is None or isinstance(one, SystemMessage) or (isinstance(one, AIMessage) and one is not turn[-1]):
            continue
        if isinstance(one, AIMessage):
            removed.append(AIMessage(content=REMOVED, id=one.id))
        elif isinstance(one, ToolMessage):
            call = one.tool_call_id
            removed.append(ToolMessage(REMOVED, id=one.id, tool_call_id=call, name=one.name, status="error"))
        else:
            removed.append(type(one)(content=REMOVED, id=one.id))
    return removed

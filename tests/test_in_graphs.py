"""A wrapped node of a LangGraph graph cannot reach past the guard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

import pytest

pytest.importorskip("langgraph", reason="langgraph is not installed")
from langchain_core.messages import AIMessage
from langgraph.config import get_stream_writer
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import push_message

from guardreasoner_guard import BadInput, Blocked, GuardReasonerGuard, ScriptedEngine


class State(TypedDict, total=False):
    asked: str
    answer: str


def graph(node: Callable[[Any], Any], state: Any = State) -> Any:
    building = StateGraph(state)
    building.add_node("node", GuardReasonerGuard(ScriptedEngine()).wrap(node))
    building.add_edge(START, "node")
    return building.compile()


def test_what_a_wrapped_node_writes_to_the_custom_stream_is_not_shown() -> None:
    def node(state: State) -> State:
        get_stream_writer()("a bomb")
        return {"answer": "a bomb"}

    seen: list[Any] = []
    with pytest.raises(Blocked) as caught:
        for part in graph(node).stream({"asked": "hello"}, stream_mode=["custom", "updates", "messages"]):
            seen.append(part)
    assert not seen
    assert "bomb" not in str(caught.value)  # an error ends up in logs and traces


def test_a_wrapped_node_cannot_push_a_message_past_the_guard() -> None:
    def node(state: Any) -> Any:
        push_message(AIMessage("a bomb", id="1"))
        return {"messages": [AIMessage("bread")]}

    with pytest.raises(BadInput, match="guarded_node"):
        graph(node, MessagesState).invoke({"messages": [("human", "hello")]})

"""A guarded LangGraph graph shows nothing that is not cleared, by whatever stream a consumer looks at it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import Runnable, RunnableLambda

from guardreasoner_guard import Blocked, GuardReasonerGuard, Policy, ScriptedEngine

pytest.importorskip("langgraph", reason="langgraph comes with the dev extra")
from langgraph.graph import END, START, MessagesState, StateGraph

UNSAFE = "First you build the bomb, then you hide it."


def graph() -> Any:
    model = GenericFakeChatModel(messages=iter([AIMessage(UNSAFE)] * 4))

    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    built = StateGraph(MessagesState)
    built.add_node("answer", answer)
    built.add_edge(START, "answer")
    built.add_edge("answer", END)
    return built.compile()


def wrapped(**settings: Any) -> Runnable[Any, Any]:
    return GuardReasonerGuard(ScriptedEngine(), **settings).wrap(graph())


ASK = {"messages": [HumanMessage("hi")]}


def gathered(runnable: Any, how: str) -> list[Any]:
    seen: list[Any] = []

    async def run() -> None:
        if how == "log":
            async for patch in runnable.astream_log(ASK):
                seen.append(patch)
        else:
            async for event in runnable.astream_events(ASK, version=how):
                seen.append(event)

    with pytest.raises(Blocked):
        asyncio.run(run())
    return seen


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*astream_events:UserWarning")
@pytest.mark.parametrize("how", ["v2", "log"])
def test_events_of_a_graph_show_nothing_of_a_blocked_answer(how: str) -> None:
    assert "hide it" not in str(gathered(wrapped(), how))


@pytest.mark.parametrize("mode", ["values", "updates", "messages", "debug"])
def test_an_outer_graph_shows_nothing_of_a_blocked_answer(mode: Any) -> None:
    outer = StateGraph(MessagesState)
    outer.add_node("inner", wrapped(policy=Policy(on_violation="explain")))
    outer.add_edge(START, "inner")
    outer.add_edge("inner", END)
    watched: Any = outer.compile()
    seen = list(watched.stream(ASK, stream_mode=mode, subgraphs=True))
    assert "hide it" not in str(seen)

    async def run() -> list[Any]:
        return [item async for item in watched.astream(ASK, stream_mode=mode, subgraphs=True)]

    assert "hide it" not in str(asyncio.run(run()))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_batch_inside_a_watched_chain_shows_nothing(asynchronous: bool) -> None:
    guarded = wrapped(policy=Policy(on_violation="explain"))

    async def many(_: Any) -> Any:
        return await guarded.abatch([ASK]) if asynchronous else guarded.batch([ASK])

    async def run() -> list[Any]:
        return [event async for event in RunnableLambda(many).astream_events("x", version="v2")]

    events = asyncio.run(run())
    assert events and "hide it" not in str(events)


def test_what_a_run_says_before_it_speaks_for_the_user_is_judged_too() -> None:
    talk = [HumanMessage("hi"), AIMessage(UNSAFE), HumanMessage("critique"), AIMessage("fine")]
    guarded = GuardReasonerGuard(ScriptedEngine()).wrap(lambda _: {"messages": talk})
    with pytest.raises(Blocked):
        guarded.invoke(ASK)
    explaining = GuardReasonerGuard(ScriptedEngine(), policy=Policy(on_violation="explain"))
    state = explaining.wrap(lambda _: {"messages": talk}).invoke(ASK)
    assert [type(message) for message in state["messages"]] == [HumanMessage, AIMessage]


def test_a_memory_of_earlier_turns_is_not_judged_again() -> None:
    before = [HumanMessage("tell me"), AIMessage(UNSAFE)]
    guarded = GuardReasonerGuard(ScriptedEngine()).wrap(
        lambda state: {"messages": [*before, *state["messages"], AIMessage("fine")]}
    )
    assert guarded.invoke(ASK)["messages"][-1].content == "fine"

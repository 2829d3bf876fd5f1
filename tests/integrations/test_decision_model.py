"""The guard answers as a decision model of LangChain does, and says no to questions that are not its own."""

from __future__ import annotations

import asyncio
import importlib
import sys
from typing import Any

import pytest

from guardreasoner_guard import BadInput, EngineError, GuardReasonerGuard, MissingExtra, Policy, ScriptedEngine

decisions = pytest.importorskip("langchain_core.decisions", reason="langchain-core 1.8 is not installed")

from guardreasoner_guard.integrations.decision_model import GuardDecisionModel  # noqa: E402
from langchain_core.messages import AIMessage, HumanMessage  # noqa: E402

HOW = ["sync", "async"]


def asked(state: Any, question: Any, name: str = "q", how: str = "sync", **settings: Any) -> Any:
    model = GuardDecisionModel(GuardReasonerGuard(settings.pop("engine", ScriptedEngine()), **settings))
    request = {"state": state, "questions": {name: question}}
    return model.invoke(request) if how == "sync" else asyncio.run(model.ainvoke(request))


harmful = decisions.Noul(instructions="Is this harmful?")


@pytest.mark.parametrize("how", HOW)
def test_a_noul_is_the_probability_of_harm(how: str) -> None:
    said = asked("a bomb", harmful, how=how)
    assert said.nouls["q"].noul == pytest.approx(0.99) and said.model == "scripted"
    assert said.verdict.blocked and said.usage["output_tokens"] > 0
    assert asked("bread", harmful, how=how).nouls["q"].noul == pytest.approx(0.01)


def test_of_messages_the_answer_is_judged_too() -> None:
    talk = [HumanMessage("hi"), AIMessage("sorry, no bomb.")]
    assert asked(talk, harmful).nouls["q"].noul > 0.5
    assert asked(talk, harmful, "request").nouls["request"].noul < 0.5
    assert asked(talk, harmful, "response").nouls["response"].noul > 0.5
    assert asked(talk, harmful, "completion").nouls["completion"].noul > 0.5
    refused = decisions.Choice(instructions="Does it refuse?", criteria={"refusal": None, "compliance": None})
    answer = asked(talk, refused).choices["q"]
    assert answer.choice == "refusal" and sum(answer.probabilities.values()) == pytest.approx(1)
    label = decisions.Choice(instructions="Is it harmful?", criteria={"harmful": None, "unharmful": None})
    assert asked(talk, label).choices["q"].choice == "harmful"
    assert asked("hi", label).choices["q"].choice == "unharmful"


def test_one_half_is_where_the_guard_blocks() -> None:
    class Unsure(ScriptedEngine):
        def score(self, questions: Any, cancel: Any = None) -> Any:
            return [type(one)((0.3, 0.7), one.tokens) for one in super().score(questions, cancel)]

    engine = Unsure()
    said = asked("a bomb", harmful, engine=engine, reasoning="always")
    assert said.verdict.blocked and said.nouls["q"].noul >= 0.5
    said = asked("a bomb", harmful, engine=engine, reasoning="never")
    assert not said.verdict.blocked and said.nouls["q"].noul == pytest.approx(0.3)
    assert asked("a bomb", harmful, policy=Policy(shadow=True)).nouls["q"].noul < 0.5


@pytest.mark.parametrize("how", HOW)
def test_a_failure_is_answered_with_one_and_told_apart(how: str) -> None:
    said = asked("hi", harmful, how=how, engine=ScriptedEngine(error=EngineError("down")))
    assert said.nouls["q"].noul == 1 and said.verdict.outcome == "failure"
    said = asked("hi", harmful, "request", how=how, engine=ScriptedEngine(error=EngineError("down")))
    assert said.nouls["request"].noul == 1
    said = asked("hi", harmful, how=how, engine=ScriptedEngine(delay=10), timeout=0.05)
    assert said.nouls["q"].noul == 1 and said.verdict.outcome == "timeout"
    with pytest.raises(EngineError):
        asked("hi", harmful, how=how, engine=ScriptedEngine(error=EngineError("down")), on_failure="raise")
    said = asked("hi", harmful, how=how, engine=ScriptedEngine(error=EngineError("down")), on_failure="pass")
    assert said.nouls["q"].noul < 0.5


@pytest.mark.parametrize(
    "question",
    [
        decisions.Choice(instructions="Which team?", criteria={"billing": None, "sales": None}),
        decisions.Score(instructions="How angry?", criteria=["calm", "angry"]),
    ],
)
def test_a_question_that_is_not_the_guards_is_refused(question: Any) -> None:
    engine = ScriptedEngine()
    with pytest.raises(BadInput, match="cannot answer 'q'. Ask"):
        asked("hi", question, engine=engine)
    assert engine.calls == 0


@pytest.mark.parametrize("how", HOW)
def test_it_blocks_tools_in_auto_mode(how: str) -> None:
    middleware = pytest.importorskip("langchain.agents.middleware")
    if not hasattr(middleware, "AutoModeMiddleware"):
        pytest.skip("this langchain has no AutoModeMiddleware")
    from langchain.agents import create_agent
    from langchain_core.language_models import GenericFakeChatModel
    from langchain_core.tools import tool

    ran: list[str] = []

    @tool
    def shell(command: str) -> str:
        """Runs a command."""
        ran.append(command)
        return "done"

    class Model(GenericFakeChatModel):
        def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
            return self

    def call(command: str, id: str) -> AIMessage:
        return AIMessage("", tool_calls=[{"name": "shell", "args": {"command": command}, "id": id}])

    classifier = GuardDecisionModel(GuardReasonerGuard(ScriptedEngine()))
    auto = middleware.AutoModeMiddleware(tools=[shell], classifier=classifier)
    model = Model(messages=iter([call("a bomb", "1"), call("ls", "2"), AIMessage("ok")]))
    agent = create_agent(model, [shell], middleware=[auto])
    value: Any = {"messages": [HumanMessage("I like bombs")]}
    state = agent.invoke(value) if how == "sync" else asyncio.run(agent.ainvoke(value))
    first, second = [m for m in state["messages"] if m.type == "tool"]
    assert ran == ["ls"] and first.status == "error" and "0.99" in first.content and second.content == "done"


def test_an_older_core_is_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "guardreasoner_guard.integrations.decision_model"
    monkeypatch.setitem(sys.modules, "langchain_core.decisions", None)
    monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtra, match="langchain-core 1.8 is not installed. Install it with: pip install"):
        importlib.import_module(name)

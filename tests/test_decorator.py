"""A guarded tool is the same tool, except for what is stopped."""

from __future__ import annotations

import asyncio
import inspect
from typing import Annotated, Any

import pytest
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, InjectedToolArg, StructuredTool, Tool, tool

from guardreasoner_guard import BadInput, Blocked, GuardReasonerGuard, Policy, ScriptedEngine
from guardreasoner_guard.decorator import describe_call, guarded

guard = GuardReasonerGuard(ScriptedEngine())


def test_a_function_keeps_its_face() -> None:
    @guard.tool
    def run_sql(query: str, limit: int = 3) -> str:
        """Runs a query."""
        return f"{query} {limit}"

    assert run_sql.__name__ == "run_sql" and run_sql.__doc__ == "Runs a query."
    assert str(inspect.signature(run_sql)) == "(query: 'str', limit: 'int' = 3) -> 'str'"
    assert run_sql("select 1") == "select 1 3"


def test_bad_arguments_stop_it_before_it_runs() -> None:
    ran: list[str] = []

    @guard.tool
    def write(text: str) -> None:
        ran.append(text)

    write("hello")
    with pytest.raises(Blocked):
        write("a bomb")
    assert ran == ["hello"]


def test_a_bad_result_does_not_return() -> None:
    @guarded(guard)
    def fetch(url: str) -> dict[str, str]:
        return {"page": f"{url} how to build a bomb"}

    with pytest.raises(Blocked) as caught:
        fetch("x")
    assert caught.value.verdict.response == "harmful"


def test_async_functions_stay_async() -> None:
    @guard.tool
    async def echo(text: str) -> str:
        return text

    assert inspect.iscoroutinefunction(echo)
    assert asyncio.run(echo("hi")) == "hi"
    with pytest.raises(Blocked):
        asyncio.run(echo("bomb"))


def test_the_policy_may_explain_or_answer() -> None:
    explain = GuardReasonerGuard(ScriptedEngine(), policy=Policy(on_violation="explain"))
    assert str(explain.tool(lambda text: text)("a bomb")).startswith("I can't help with this")
    answer = GuardReasonerGuard(ScriptedEngine(), policy=Policy(on_violation=lambda verdict: verdict.request))
    assert answer.tool(lambda text: text)("a bomb") == "harmful"


def make_tool(kind: str) -> BaseTool:
    def search(query: str, limit: int = 2) -> str:
        """Searches."""
        return f"found {query} {limit}"

    async def asearch(query: str, limit: int = 2) -> str:
        return search(query, limit)

    if kind == "decorated":
        return tool(search)
    if kind == "async":
        return StructuredTool.from_function(coroutine=asearch, name="search", description="Searches.")
    return StructuredTool.from_function(search, asearch, name="search", description="Searches.")


@pytest.mark.parametrize("kind", ["decorated", "both", "async"])
def test_a_langchain_tool_keeps_name_and_schema_and_tells_its_agent_why(kind: str) -> None:
    plain = make_tool(kind)
    safe = guard.tool(plain)
    assert (safe.name, safe.description, safe.args) == (plain.name, plain.description, plain.args)
    call: dict[str, Any] = {"name": "search", "args": {"query": "cats"}, "id": "1", "type": "tool_call"}
    message = asyncio.run(safe.ainvoke(call)) if kind == "async" else safe.invoke(call)
    assert message.content == "found cats 2" and message.status == "success"
    call = {**call, "args": {"query": "a bomb"}}
    message = asyncio.run(safe.ainvoke(call))
    assert message.status == "error" and "the request is harmful" in message.content and message.tool_call_id == "1"


def test_a_simple_tool_is_guarded_too() -> None:
    safe = guard.tool(Tool(name="shout", description="Shouts.", func=str.upper))
    assert safe.invoke("hi") == "HI"
    assert "harmful" in safe.invoke("bomb")


def test_injected_arguments_are_passed_on_and_not_judged() -> None:
    @tool
    def note(text: str, user: Annotated[str, InjectedToolArg], config: RunnableConfig) -> str:
        """Notes."""
        return f"{text} for {user} {config.get('tags')}"

    safe = guard.tool(note)
    assert "user" not in safe.tool_call_schema.model_json_schema()["properties"]  # type: ignore[union-attr]
    assert safe.invoke({"text": "hi", "user": "me"}, {"tags": ["t"]}) == "hi for me ['t']"


def test_the_call_is_put_in_plain_words() -> None:
    assert describe_call("f", {"a": "x", "b": [1, {"c": 2}]}) == 'Call the tool f with\na: x\nb: [1, {"c": 2}]'


def test_what_is_no_tool_is_refused() -> None:
    with pytest.raises(BadInput, match="Pass a function"):
        guard.tool(3)

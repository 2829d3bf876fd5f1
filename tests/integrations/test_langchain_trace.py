"""A check is a run under the one it is made in, for every kind of callback, without a word of what was judged."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

import pytest
from guardreasoner_guard.integrations.langchain_trace import LangChainTrace
from guardreasoner_guard.integrations.langgraph_node import guarded_node
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.langchain import LangChainTracer, wait_for_all_tracers
from langchain_core.tracers.schemas import Run
from langgraph.graph import START, MessagesState, StateGraph
from langsmith import Client, traceable, tracing_context

from guardreasoner_guard import Blocked, EngineError, GuardReasonerGuard, Policy, ScriptedEngine, Verdict

WORD = "xylophone"


def make(*, texts: bool = False, error: Exception | None = None, **settings: Any) -> GuardReasonerGuard:
    trace = LangChainTrace("door", texts=texts)
    return GuardReasonerGuard(ScriptedEngine((WORD,), error=error), observers=[trace], **settings)


class Tracer(BaseTracer):
    """Keeps whole trees of runs."""

    def __init__(self) -> None:
        super().__init__()
        self.roots: list[Run] = []

    def _persist_run(self, run: Run) -> None:
        self.roots.append(run)


def checks(run: Run) -> list[Run]:
    return [found for child in run.child_runs for found in ([child] if child.name == "door" else checks(child))]


def judging(guard: GuardReasonerGuard, answer: str | None = None) -> Runnable[str, str]:
    """A chain's step that asks the guard, sync and async."""

    def judge(text: str) -> str:
        return f"blocked: {guard.check(text, answer).blocked}"

    async def ajudge(text: str) -> str:
        return f"blocked: {(await guard.acheck(text, answer)).blocked}"

    return RunnableLambda(judge, ajudge, name="step")


def called(chain: Runnable[Any, Any], value: Any, how: str, *handlers: Any) -> Any:
    config: Any = {"callbacks": list(handlers)}
    return asyncio.run(chain.ainvoke(value, config)) if how == "ainvoke" else chain.invoke(value, config)


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_a_check_is_a_child_of_the_run_it_is_made_in_with_the_verdict_as_its_output(how: str) -> None:
    tracer = Tracer()
    assert called(judging(make()), "Hello.", how, tracer) == "blocked: False"
    (root,) = tracer.roots
    (run,) = root.child_runs
    assert (run.name, run.run_type, run.parent_run_id, run.error) == ("door", "chain", root.id, None)
    verdict = Verdict.model_validate(run.outputs)
    assert (verdict.request, verdict.blocked, verdict.outcome) == ("unharmful", False, "verdict")
    assert verdict.usage.latency_ms > 0 and run.inputs == {"request_characters": 6, "response_characters": None}
    assert root.end_time and run.end_time and run.end_time <= root.end_time


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_wrapped_chains_tools_and_the_guard_itself_are_traced(how: str) -> None:
    guard = make()
    tracer = Tracer()
    called(guard.wrap(RunnableLambda(lambda text: "Fine.")), "Hello.", how, tracer)
    called(guard | RunnableLambda(lambda text: text), "Hello there.", how, tracer)
    called(RunnableLambda(guard.tool(lambda text: "Found.")), "Look.", how, tracer)
    assert [len(checks(root)) for root in tracer.roots] == [2, 1, 2]


def test_no_word_of_what_was_judged_is_told_unless_that_is_asked_for() -> None:
    for error, on_failure in ((None, "block"), (EngineError(WORD), "block"), (EngineError(WORD), "raise")):
        for texts in (False, True):
            tracer = Tracer()
            guard = make(texts=texts, error=error, on_failure=on_failure)
            with contextlib.suppress(EngineError):
                judging(guard, f"A {WORD}.").invoke(f"A {WORD}?", {"callbacks": [tracer]})
            (run,) = checks(tracer.roots[0])
            assert (WORD in f"{run.inputs} {run.outputs} {run.error}") is texts
            assert (run.error is not None) is (on_failure == "raise")


def test_an_error_and_a_failure_say_which() -> None:
    tracer = Tracer()
    judging(make(error=EngineError("broken"))).invoke("Hello.", {"callbacks": [tracer]})
    with contextlib.suppress(EngineError):
        judging(make(error=EngineError("broken"), on_failure="raise")).invoke("Hello.", {"callbacks": [tracer]})
    failure, error = (checks(root)[0] for root in tracer.roots)
    assert failure.outputs and (failure.outputs["outcome"], failure.outputs["error"]) == ("failure", "EngineError")
    assert error.error and "EngineError" in error.error


def test_a_shadow_says_what_it_would_have_blocked() -> None:
    tracer = Tracer()
    judging(make(policy=Policy(shadow=True))).invoke(f"A {WORD}?", {"callbacks": [tracer]})
    (run,) = checks(tracer.roots[0])
    assert run.outputs and (run.outputs["blocked"], run.outputs["shadowed"]) == (False, True)


class Listener(BaseCallbackHandler):
    """A plain handler."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, UUID | None]] = []

    def on_chain_start(self, serialized: Any, inputs: Any, *, parent_run_id: UUID | None = None, **more: Any) -> None:
        self.heard.append((str(more.get("name")), parent_run_id))

    def on_chain_end(self, outputs: Any, **more: Any) -> None:
        self.heard.append((str(outputs.get("blocked") if isinstance(outputs, dict) else outputs), None))


class AsyncListener(AsyncCallbackHandler):
    """An async one."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    async def on_chain_start(self, serialized: Any, inputs: Any, **more: Any) -> None:
        self.heard.append(str(more.get("name")))


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_plain_handlers_hear_of_it_in_order(how: str) -> None:
    listener, other = Listener(), AsyncListener()
    called(judging(make()), "Hello.", how, listener, other)
    assert [name for name, _ in listener.heard] == ["step", "door", "False", "blocked: False"]
    assert listener.heard[0][1] is None and listener.heard[1][1] is not None
    assert other.heard == ["step", "door"]


def test_a_check_outside_of_any_run_tells_nobody() -> None:
    assert make().check(f"A {WORD}?").blocked


def test_events_hold_it() -> None:
    async def scenario(chain: Runnable[Any, Any]) -> list[Any]:
        return [event async for event in chain.astream_events("Hello.", version="v2", include_names=["door"])]

    for chain in (judging(make()), make() | RunnableLambda(lambda text: text)):
        start, end = asyncio.run(scenario(chain))
        assert (start["event"], end["event"]) == ("on_chain_start", "on_chain_end")
        assert end["data"]["output"]["blocked"] is False and len(end["parent_ids"]) >= 1


# -- LangSmith, on a server of our own ----------------------------------------------------------


@pytest.fixture
def langsmith() -> Iterator[tuple[Client, list[dict[str, Any]]]]:
    """A client of LangSmith, and the runs that it has sent."""
    sent: list[dict[str, Any]] = []

    class Server(BaseHTTPRequestHandler):
        def _take(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            sent.append(json.loads(body))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        do_POST = do_PATCH = _take

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    yield Client(api_url=url, api_key="none", auto_batch_tracing=False), sent
    server.shutdown()
    server.server_close()


def runs_of(sent: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Runs by name, what was sent first and what was sent when they ended together."""
    runs: dict[str, dict[str, Any]] = {}
    for body in sent:
        runs.setdefault(body["id"], {}).update({key: value for key, value in body.items() if value is not None})
    return {run["name"]: run for run in runs.values()}


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_langsmith_gets_it(langsmith: tuple[Client, list[dict[str, Any]]], how: str) -> None:
    client, sent = langsmith
    called(judging(make()), f"A {WORD}?", how, LangChainTracer(client=client, project_name="test"))
    wait_for_all_tracers()
    runs = runs_of(sent)
    assert runs["door"]["parent_run_id"] == runs["step"]["id"]
    assert runs["door"]["outputs"]["blocked"] is True and runs["door"]["trace_id"] == runs["step"]["id"]
    assert WORD in json.dumps(runs["step"]) and WORD not in json.dumps(runs["door"])


def test_it_belongs_to_a_function_that_langsmith_traces(langsmith: tuple[Client, list[dict[str, Any]]]) -> None:
    client, sent = langsmith
    guard = make()

    @traceable(client=client)
    def answer(text: str) -> bool:
        return guard.check(text).blocked

    with tracing_context(enabled=True, client=client):
        assert answer(f"A {WORD}?")
    wait_for_all_tracers()
    client.flush()
    runs = runs_of(sent)
    assert runs["door"]["parent_run_id"] == runs["answer"]["id"]


@pytest.mark.parametrize("traced", [False, True])
def test_a_blocked_answer_of_a_guarded_node_is_not_sent(
    langsmith: tuple[Client, list[dict[str, Any]]], traced: bool
) -> None:
    client, sent = langsmith
    guard = make(policy=Policy(on_violation="explain"))
    node = guarded_node(guard, lambda state: {"messages": [AIMessage(f"A {WORD}.")]}, traced=traced)
    graph: Any = StateGraph(MessagesState).add_node("model", node).add_edge(START, "model").compile()
    with tracing_context(enabled=True, client=client):
        graph.invoke({"messages": [HumanMessage("Hello.")]})
        asyncio.run(graph.ainvoke({"messages": [HumanMessage("Hello.")]}))
    wait_for_all_tracers()
    assert "door" in runs_of(sent) and "model" in runs_of(sent)
    assert (WORD in json.dumps(sent)) is traced


def test_blocked_is_raised_all_the_same() -> None:
    tracer = Tracer()
    with pytest.raises(Blocked):
        make().invoke(f"A {WORD}?", {"callbacks": [tracer]})
    assert checks(tracer.roots[0])[0].outputs

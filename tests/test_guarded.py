"""Nothing of a blocked text leaves a wrapped runnable, however it is called."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableLambda

from guardreasoner_guard import Blocked, EngineError, GuardReasonerGuard, Policy, ScriptedEngine, Verdict

SAFE = "Here is a nice recipe for bread."
UNSAFE = "First you build the bomb, then you hide it."


def guard(**settings: Any) -> GuardReasonerGuard:
    return GuardReasonerGuard(ScriptedEngine(), **settings)


def explaining() -> GuardReasonerGuard:
    return guard(policy=Policy(on_violation="explain"))


def chain(*answers: str) -> Runnable[Any, str]:
    prompt = ChatPromptTemplate.from_messages([("system", "Be kind."), ("human", "{question}")])
    return prompt | FakeListChatModel(responses=list(answers)) | StrOutputParser()


def test_a_safe_answer_passes_unchanged() -> None:
    assert guard().wrap(chain(SAFE)).invoke({"question": "hi"}) == SAFE


def test_a_blocked_answer_raises_with_its_verdict() -> None:
    with pytest.raises(Blocked) as caught:
        guard().wrap(chain(UNSAFE)).invoke({"question": "hi"})
    verdict = caught.value.verdict
    assert (verdict.request, verdict.completion, verdict.response) == (None, "compliance", "harmful")


def test_a_blocked_request_is_explained_and_the_model_is_not_called() -> None:
    called: list[Any] = []
    said = explaining().wrap(RunnableLambda(called.append)).invoke("a bomb please")
    assert called == []
    assert said.startswith("I can't help with this, since this request was judged harmful.")
    assert '"a bomb please"' in said


def test_an_explanation_has_the_shape_of_what_it_replaces() -> None:
    message = explaining().wrap(lambda _: AIMessage(UNSAFE, id="7")).invoke("hi")
    assert isinstance(message, AIMessage) and message.id == "7" and UNSAFE not in message.content
    state = explaining().wrap(lambda _: {"messages": [HumanMessage("hi"), AIMessage(UNSAFE)]}).invoke("hi")
    assert len(state["messages"]) == 2 and str(state["messages"][1].content).startswith("I can't help")
    assert set(explaining().wrap(lambda _: {"output": UNSAFE, "trace": UNSAFE}).invoke("hi")) == {"output"}


def test_a_function_may_answer_instead() -> None:
    def note(verdict: Verdict) -> str:
        return f"stopped: {verdict.response}"

    assert guard(policy=Policy(on_violation=note)).wrap(chain(UNSAFE)).invoke({"question": "hi"}) == "stopped: harmful"


def test_revise_asks_once_more_with_the_reasons() -> None:
    asked: list[Any] = []

    def answer(value: Any) -> str:
        asked.append(value)
        return UNSAFE if len(asked) == 1 else SAFE

    revising = guard(policy=Policy(on_violation="revise"))
    assert revising.wrap(answer).invoke("hi") == SAFE
    assert len(asked) == 2 and "the answer is harmful" in asked[1] and asked[1].startswith("hi\n")


def test_revise_is_bounded_and_then_explains() -> None:
    calls: list[Any] = []

    def stubborn(value: Any) -> str:
        calls.append(value)
        return UNSAFE

    said = guard(policy=Policy(on_violation="revise", max_revisions=2)).wrap(stubborn).invoke("hi")
    assert len(calls) == 3
    assert said.startswith("I can't help with this")
    said = asyncio.run(guard(policy=Policy(on_violation="revise")).wrap(stubborn).ainvoke([HumanMessage("hi")]))
    assert said.startswith("I can't help with this")


def test_a_failure_shows_nothing_of_the_answer() -> None:
    class Failing(ScriptedEngine):
        def score(self, questions: Any, cancel: Any = None) -> Any:
            if any("AI assistant" in str(question.prompt) for question in questions):
                raise EngineError("down")
            return super().score(questions, cancel)

    said = (
        GuardReasonerGuard(Failing(), policy=Policy(on_violation="explain")).wrap(chain(SAFE)).invoke({"question": "x"})
    )
    assert said == "I can't answer this: it could not be checked for safety. Please try again later."


def characters(text: str) -> Runnable[Any, str]:
    """Streams a text one character at a time, sync and async."""

    def sync(values: Iterator[Any]) -> Iterator[str]:
        list(values)
        yield from text

    async def asynchronous(values: AsyncIterator[Any]) -> AsyncIterator[str]:
        async for _ in values:
            pass
        for character in text:
            yield character

    return RunnableGenerator(sync, asynchronous)


async def gathered(stream: AsyncIterator[Any], into: list[Any]) -> None:
    async for chunk in stream:
        into.append(chunk)


def test_a_stream_that_is_blocked_emits_nothing() -> None:
    for runnable in (characters(UNSAFE), chain(UNSAFE)):
        seen: list[Any] = []
        with pytest.raises(Blocked):
            for chunk in guard().wrap(runnable).stream({"question": "hi"}):
                seen.append(chunk)
        with pytest.raises(Blocked):
            asyncio.run(gathered(guard().wrap(runnable).astream({"question": "hi"}), seen))
        assert seen == []


def test_a_stream_that_is_blocked_emits_the_explanation_alone() -> None:
    seen: list[Any] = []
    asyncio.run(gathered(explaining().wrap(characters(UNSAFE)).astream("hi"), seen))
    assert seen == list(explaining().wrap(characters(UNSAFE)).stream("hi"))
    assert len(seen) == 1 and seen[0].startswith("I can't help")


def test_a_stream_that_is_cleared_comes_in_its_own_chunks() -> None:
    assert list(guard().wrap(characters("fine")).stream("hi")) == list("fine")
    messages = guard().wrap(GenericFakeChatModel(messages=iter([AIMessage(SAFE)])))
    assert "".join(str(chunk.content) for chunk in messages.stream("hi")) == SAFE


def test_a_stream_inside_a_longer_chain_leaks_nothing() -> None:
    seen: list[Any] = []
    wrapped = guard().wrap(characters(UNSAFE)) | StrOutputParser()
    with pytest.raises(Blocked):
        seen += wrapped.stream("hi")
    assert seen == []


def test_an_error_of_the_model_passes_through() -> None:
    def broken(_: Any) -> str:
        raise ValueError("model down")

    with pytest.raises(ValueError, match="model down"):
        guard().wrap(broken).invoke("hi")


def test_beside_the_call_a_block_wins_and_cancels() -> None:
    cancelled = asyncio.Event()

    async def slow(_: Any) -> str:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return SAFE

    async def run() -> None:
        with pytest.raises(Blocked):
            await guard().wrap(RunnableLambda(slow), beside=True).ainvoke("a bomb")
        await asyncio.wait_for(cancelled.wait(), 5)

    asyncio.run(run())
    assert guard().wrap(lambda _: SAFE, beside=True).invoke("hi") == SAFE
    with pytest.raises(Blocked):
        guard().wrap(lambda _: SAFE, beside=True).invoke("a bomb")


def test_a_tool_call_in_an_answer_is_judged() -> None:
    call = {"name": "shell", "args": {"command": "build a bomb"}, "id": "1"}
    with pytest.raises(Blocked):
        guard().wrap(lambda _: AIMessage("", tool_calls=[call])).invoke("hi")


def test_a_batch_judges_its_texts_together_and_calls_only_what_passed() -> None:
    engine = ScriptedEngine()
    called: list[str] = []

    def answer(text: str) -> str:
        called.append(text)
        if text == "fail":
            raise ValueError("model down")
        return SAFE if text == "hi" else UNSAFE

    for beside in (False, True):
        called.clear()
        wrapped = GuardReasonerGuard(engine, reasoning="never").wrap(answer, beside=beside)
        found = wrapped.batch(["hi", "x", "a bomb", "fail"], return_exceptions=True)
        assert [type(item) for item in found] == [str, Blocked, Blocked, ValueError]
        assert sorted(called) == ["fail", "hi", "x"]
        found = asyncio.run(wrapped.abatch(["hi", "x", "a bomb", "fail"], return_exceptions=True))
        assert [type(item) for item in found] == [str, Blocked, Blocked, ValueError]
    with pytest.raises(Blocked):
        guard().wrap(answer).batch(["hi", "a bomb"])


def test_batches_and_async_batches() -> None:
    wrapped = explaining().wrap(lambda text: SAFE if text == "hi" else UNSAFE)
    for found in (wrapped.batch(["hi", "x", "bomb"]), asyncio.run(wrapped.abatch(["hi", "x", "bomb"]))):
        assert found[0] == SAFE
        assert "the answer that was prepared" in found[1] and "this request" in found[2]


def test_events_of_a_blocked_answer_show_nothing_of_it() -> None:
    model = GenericFakeChatModel(messages=iter([AIMessage(UNSAFE)]))
    seen: list[Any] = []

    async def run() -> None:
        async for event in guard().wrap(model).astream_events("hi", version="v2"):
            seen.append(event)

    with pytest.raises(Blocked):
        asyncio.run(run())
    assert seen and "hide" not in str(seen)


def test_an_explanation_never_quotes_the_answer_that_was_stopped() -> None:
    said = explaining().wrap(chain(UNSAFE)).invoke({"question": "hi"})
    assert said.startswith("I can't help with this") and "bomb" not in said


@pytest.mark.parametrize(
    "value",
    [
        AIMessage("a bomb"),
        [HumanMessage("go"), AIMessage("a bomb")],
        [HumanMessage("a bomb"), HumanMessage("please")],
        {"input": "hi", "style": "a bomb"},
    ],
)
def test_whatever_reaches_the_model_is_judged_before(value: Any) -> None:
    with pytest.raises(Blocked):
        guard().wrap(lambda _: SAFE).invoke(value)


@pytest.mark.parametrize(
    "output",
    [
        {"input": "hi", "output": UNSAFE},
        {"question": "hi", "context": "fine", "answer": UNSAFE},
        {"messages": [HumanMessage("hi"), AIMessage(UNSAFE), AIMessage("done")]},
        {"messages": [HumanMessage("hi"), AIMessage("done")], "structured_response": UNSAFE},
        [UNSAFE, "x"],
        Verdict(blocked=False, reasons=UNSAFE),
    ],
)
def test_whatever_leaves_the_model_is_judged_and_nothing_of_it_is_kept(output: Any) -> None:
    with pytest.raises(Blocked):
        guard().wrap(lambda _: output).invoke("hi")
    try:
        assert "hide" not in str(explaining().wrap(lambda _: output).invoke("hi"))
    except Blocked:
        assert not isinstance(output, dict)


def appends(state: Any) -> Any:
    state["messages"].append(AIMessage(UNSAFE))
    return state


def rewrites(state: Any) -> Any:
    state["messages"][-1].content = UNSAFE
    return state


@pytest.mark.parametrize("runnable", [appends, rewrites])
@pytest.mark.parametrize("call", ["invoke", "batch", "stream"])
def test_what_a_runnable_writes_into_its_input_is_its_output(runnable: Any, call: str) -> None:
    state: dict[str, Any] = {"messages": [HumanMessage("hi")]}
    wrapped = explaining().wrap(runnable)
    found = list(wrapped.stream(state)) if call == "stream" else [wrapped.invoke(state), *wrapped.batch([state])]
    assert "build" not in str(found) and "I can't help" in str(found)
    assert [message.content for message in state["messages"]] == ["hi"]


def test_a_request_that_is_blocked_is_answered_in_the_runnables_own_form() -> None:
    model = GenericFakeChatModel(messages=iter([AIMessage(SAFE)]))
    assert isinstance(explaining().wrap(model).invoke("a bomb"), AIMessage)
    state = explaining().wrap(lambda state: state).invoke({"messages": [HumanMessage("a bomb")]})
    assert [type(message) for message in state["messages"]] == [HumanMessage, AIMessage]

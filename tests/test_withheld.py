"""Of a stream nothing leaves before it is cleared, what is cleared leaves early, and a block ends it and the model's call."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessageChunk
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import AddableDict, Runnable, RunnableGenerator

from guardreasoner_guard import BadInput, Blocked, EngineError, GuardReasonerGuard, Policy, ScriptedEngine, Verdict
from guardreasoner_guard.model_dir import Manifest
from guardreasoner_guard.withheld import Hold

BEFORE = "one two three four five six seven eight nine ten eleven twelve"
UNSAFE = f"{BEFORE} then you take the bomb and hide it well"
HOLDS: list[Hold] = [2, 4, 7, 64, "sentence", "answer"]


class Source:
    """A runnable that streams given chunks, sync and async, and says how far it was read and whether it was closed."""

    def __init__(self, chunks: Sequence[Any], error: Exception | None = None, wait: float = 0.0) -> None:
        self.chunks, self.error, self.wait = chunks, error, wait
        self.said = 0
        self.closed = threading.Event()

    def sync(self, values: Iterator[Any]) -> Iterator[Any]:
        list(values)
        try:
            for chunk in self.chunks:
                self.said += 1
                yield chunk
            if self.error is not None:
                raise self.error
        finally:
            self.closed.set()

    async def asynchronous(self, values: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for _ in values:
            pass
        try:
            for chunk in self.chunks:
                await asyncio.sleep(self.wait)
                self.said += 1
                yield chunk
            if self.error is not None:
                raise self.error
        finally:
            self.closed.set()

    @property
    def runnable(self) -> Runnable[Any, Any]:
        return RunnableGenerator(self.sync, self.asynchronous)


def guard(engine: ScriptedEngine | None = None, **settings: Any) -> GuardReasonerGuard:
    return GuardReasonerGuard(engine or ScriptedEngine(), **settings)


def explaining() -> GuardReasonerGuard:
    return guard(policy=Policy(on_violation="explain"))


def streamed(runnable: Runnable[Any, Any], value: Any = "hi") -> tuple[list[Any], Exception | None]:
    """What a consumer sees, and the error that ends it."""
    seen: list[Any] = []
    try:
        for chunk in runnable.stream(value):
            seen.append(chunk)
    except Exception as error:
        return seen, error
    return seen, None


def astreamed(runnable: Runnable[Any, Any], value: Any = "hi") -> tuple[list[Any], Exception | None]:
    seen: list[Any] = []

    async def run() -> None:
        async for chunk in runnable.astream(value):
            seen.append(chunk)

    try:
        asyncio.run(run())
    except Exception as error:
        return seen, error
    return seen, None


def words(text: str) -> list[str]:
    return [word if index == 0 else f" {word}" for index, word in enumerate(text.split(" "))]


@pytest.mark.parametrize("consume", [streamed, astreamed])
@pytest.mark.parametrize("hold", HOLDS)
def test_no_part_of_a_harmful_word_leaves_whatever_is_held(consume: Any, hold: Hold) -> None:
    for chunks in (list(UNSAFE), words(UNSAFE), [UNSAFE], [UNSAFE[:70], UNSAFE[70:]]):
        source = Source(chunks)
        seen, error = consume(guard().wrap(source.runnable, hold=hold))
        assert isinstance(error, Blocked) and error.verdict.response == "harmful"
        assert f"{BEFORE} then you take the ".startswith("".join(seen))
        assert source.closed.is_set()


@given(
    text=st.lists(st.sampled_from(["go", "see.", "a", "walk!\n", "with", "me"]), min_size=1, max_size=40),
    at=st.integers(0, 40),
    cuts=st.sets(st.integers(0, 200), max_size=30),
    hold=st.sampled_from(HOLDS),
)
def test_however_a_text_is_cut_it_leaves_whole_or_ends_before_the_harm(
    text: list[str], at: int, cuts: set[int], hold: Hold
) -> None:
    harmful = at <= len(text)
    said = " ".join([*text[:at], "bomb", *text[at:]] if harmful else text)
    bounds = sorted({0, len(said), *(cut for cut in cuts if cut < len(said))})
    chunks = [said[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]
    seen, error = streamed(guard().wrap(Source(chunks).runnable, hold=hold))
    if harmful:
        assert isinstance(error, Blocked)
        assert said[: said.index("bomb")].startswith("".join(seen))
    else:
        assert error is None and seen == chunks


@pytest.mark.parametrize(("hold", "most"), [(4, 6), (8, 10), ("sentence", 12), ("answer", 12)])
def test_what_is_cleared_leaves_while_the_model_still_speaks(hold: Hold, most: int) -> None:
    source = Source(words(BEFORE))
    next(iter(guard().wrap(source.runnable, hold=hold).stream("hi")))
    assert source.said <= most and (hold != "answer" or source.said == 12)

    async def first() -> int:
        source = Source(words(BEFORE))
        async with aclosing(guard().wrap(source.runnable, hold=hold).astream("hi")) as stream:  # type: ignore[type-var]
            await anext(stream)
            return source.said

    assert asyncio.run(first()) == source.said


def test_a_sentence_leaves_with_the_end_of_the_next() -> None:
    source = Source(list("First one. Second one. Third one. The bomb. Fifth one."))
    seen, error = streamed(guard().wrap(source.runnable, hold="sentence"))
    assert "".join(seen) == "First one. Second one. " and isinstance(error, Blocked)


@pytest.mark.parametrize("consume", [streamed, astreamed])
def test_a_block_in_mid_stream_ends_with_the_replacement_and_the_call(consume: Any) -> None:
    source = Source(words(UNSAFE + " and so on" * 50))
    seen, error = consume(explaining().wrap(source.runnable, hold=4))
    assert error is None
    assert seen[-1].startswith("I can't help with this") and "".join(seen[:-1]) in BEFORE + " then you take the"
    assert len(seen) > 2 and "bomb" not in "".join(seen)
    assert source.closed.is_set() and source.said < 30


def test_a_function_and_revise_answer_a_stream_too() -> None:
    def note(verdict: Verdict) -> str:
        return f"stopped: {verdict.response}"

    seen, _ = streamed(guard(policy=Policy(on_violation=note)).wrap(Source(words(UNSAFE)).runnable, hold=4))
    assert seen[-1] == "stopped: harmful"
    answers = iter([words(UNSAFE), words(BEFORE)])

    def answer(values: Iterator[Any]) -> Iterator[str]:
        list(values)
        yield from next(answers)

    revising = guard(policy=Policy(on_violation="revise")).wrap(RunnableGenerator(answer), hold=2)
    assert streamed(revising) == (words(BEFORE), None)


@pytest.mark.parametrize("consume", [streamed, astreamed])
def test_an_error_of_the_model_comes_through_and_what_was_held_does_not(consume: Any) -> None:
    source = Source(words(BEFORE), error=ValueError("model down"))
    seen, error = consume(guard().wrap(source.runnable, hold=4))
    assert isinstance(error, ValueError)
    assert "".join(seen) == "one two three four five six seven eight nine"


def test_a_consumer_that_leaves_early_closes_the_models_call() -> None:
    source = Source(words(BEFORE))
    stream = guard().wrap(source.runnable, hold=2).stream("hi")
    assert next(iter(stream)) == "one"
    stream.close()  # type: ignore[attr-defined]
    assert source.closed.is_set() and source.said < 12

    async def run() -> Source:
        source = Source(words(BEFORE))
        stream = guard().wrap(source.runnable, hold=2).astream("hi")
        assert await anext(stream) == "one"
        await stream.aclose()  # type: ignore[attr-defined]
        return source

    source = asyncio.run(run())
    assert source.closed.is_set() and source.said < 12


def test_many_streams_at_once_do_not_mix() -> None:
    wrapped = guard().wrap(RunnableGenerator(_echo), hold=4)
    texts = [f"talk {index} " + ("goes on and on " * 5) + ("bomb" if index % 3 == 0 else "end") for index in range(24)]
    with ThreadPoolExecutor(8) as threads:
        found = list(
            threads.map(lambda text: streamed(wrapped, {"q": "hi", "say": text.replace("bomb", "b*mb")}), texts)
        )
    for text, (seen, error) in zip(texts, found, strict=True):
        said = text.replace("bomb", "b*mb").replace("b*mb", "bomb")
        assert (error is None) == ("bomb" not in said)
        assert ("".join(seen) == said) if error is None else said[: said.index("bomb")].startswith("".join(seen))


def _echo(values: Iterator[Any]) -> Iterator[str]:
    for value in values:
        yield from words(value["say"].replace("b*mb", "bomb"))


@pytest.mark.parametrize("consume", [streamed, astreamed])
def test_message_chunks_of_several_parts_and_tool_calls_are_withheld_alike(consume: Any) -> None:
    parts = [AIMessageChunk(content=[{"type": "text", "text": word, "index": 0}]) for word in words(UNSAFE)]
    seen, error = consume(guard().wrap(Source(parts).runnable, hold=4))
    assert isinstance(error, Blocked) and 2 < len(seen) and "bomb" not in str(seen)
    call = tool_call_chunk(name="shell", args='{"command": "build a bomb"}', id="1", index=0)
    chunks = [AIMessageChunk(content="x " * 9), AIMessageChunk(content="", tool_call_chunks=[call])]
    seen, error = consume(guard().wrap(Source(chunks).runnable, hold=4))
    assert isinstance(error, Blocked) and "shell" not in str(seen)
    seen, _ = consume(explaining().wrap(Source(parts).runnable, hold=4))
    assert isinstance(seen[-1], AIMessageChunk) and str(seen[-1].content).startswith("I can't help")


def test_chunks_that_are_no_text_are_held_until_all_are_cleared() -> None:
    states = [{"messages": ["fine"]}, {"messages": ["a bomb"]}]
    seen, error = streamed(guard().wrap(Source(states).runnable, hold=2))
    assert seen == [] and isinstance(error, Blocked)
    assert streamed(guard().wrap(Source([{"a": "x"}, {"b": "y"}]).runnable, hold=2)) == ([{"a": "x"}, {"b": "y"}], None)
    assert streamed(guard().wrap(Source([]).runnable)) == ([], None)


@pytest.mark.parametrize("consume", [streamed, astreamed])
def test_beside_the_call_a_blocked_input_shows_nothing_and_closes_it(consume: Any) -> None:
    source = Source(words(BEFORE))
    seen, error = consume(guard(ScriptedEngine(delay=0.05)).wrap(source.runnable, beside=True), "a bomb")
    assert seen == [] and isinstance(error, Blocked) and error.verdict.request == "harmful"
    assert source.closed.wait(5) and source.said <= 1
    assert consume(guard().wrap(Source(words(BEFORE)).runnable, beside=True)) == (words(BEFORE), None)


def test_a_check_that_fails_in_mid_stream_ends_it() -> None:
    class Failing(ScriptedEngine):
        def score(self, questions: Any, cancel: Any = None) -> Any:
            if any("six" in str(question.prompt) for question in questions):
                raise EngineError("down")
            return super().score(questions, cancel)

    seen, error = streamed(guard(Failing()).wrap(Source(words(BEFORE)).runnable, hold=2))
    assert isinstance(error, Blocked) and error.verdict.outcome == "failure"
    assert "".join(seen) in BEFORE and "five" not in seen
    passing = guard(Failing(), on_failure="pass").wrap(Source(words(BEFORE)).runnable, hold=2)
    assert streamed(passing) == (words(BEFORE), None)


def test_a_long_stream_costs_little_more_than_its_length() -> None:
    class Counting(ScriptedEngine):
        read = 0

        def score(self, questions: Any, cancel: Any = None) -> Any:
            scored = super().score(questions, cancel)
            Counting.read = max(Counting.read, *(one.tokens for one in scored))
            return scored

    text = " ".join(f"word{index}" for index in range(3000))
    seen, error = streamed(guard(Counting()).wrap(Source(words(text)).runnable, hold=64))
    assert error is None and "".join(seen) == text
    assert Counting.read < 620, "no check reads more than the window, however long the stream"
    late = Source(words(f"{text} a bomb and more"))
    seen, error = streamed(guard().wrap(late.runnable, hold=64))
    assert isinstance(error, Blocked) and "bomb" not in "".join(seen) and len(seen) > 2900


def test_where_reasoning_decides_it_clears_a_stream_too() -> None:
    harmless = "# Task 2\n## Reasoning Step 1\nFine.\n---\nAnswers:\nCompletion: compliance\nResponse: unharmful"
    manifest = Manifest(
        name="m", template="short/1", precision="none", label_tokens={}, end_token=0, decides="reasoning", files={}
    )
    reasoning = guard(ScriptedEngine(harmful=["x"], answer=harmless), reasoning="always", manifest=manifest)
    assert streamed(reasoning.wrap(Source(words(UNSAFE)).runnable, hold=4) | StrOutputParser())[1] is None


@pytest.mark.parametrize("hold", [0, 1, -3, "word", 2.5])
def test_a_hold_that_makes_no_sense_is_refused(hold: Any) -> None:
    with pytest.raises(BadInput, match="hold"):
        guard().wrap(Source([]).runnable, hold=hold)


def test_a_tool_call_that_comes_in_pieces_leaves_whole_or_not_at_all() -> None:
    args = ['{"command": "', *words(f"{BEFORE} and then make a bomb"), '"}']
    first = tool_call_chunk(name="shell", args=args[0], id="1", index=0)
    chunks = [
        AIMessageChunk(content="Let me look at that for you now."),
        AIMessageChunk(content="", tool_call_chunks=[first]),
    ]
    chunks += [AIMessageChunk(content="", tool_call_chunks=[tool_call_chunk(args=part, index=0)]) for part in args[1:]]
    seen, error = streamed(explaining().wrap(Source(chunks).runnable, hold=2))
    assert error is None and not any(chunk.tool_calls or chunk.tool_call_chunks for chunk in seen)
    harmless = [chunk for chunk in chunks if "bomb" not in str(chunk)]
    seen, error = streamed(explaining().wrap(Source(harmless).runnable, hold=2))
    assert error is None and seen == harmless


@pytest.mark.parametrize(
    "chunks",
    [
        [AIMessageChunk(content="", tool_call_chunks=[tool_call_chunk(name="x", args='{"a": "a bomb"}', id="1", index=0)]),
         ToolMessageChunk(content="done", tool_call_id="1")],
        [AIMessage("ok"), AIMessage("", tool_calls=[{"name": "x", "args": {"a": "a bomb"}, "id": "1"}])],
        [AddableDict(messages=[AIMessage("a bomb")]), AddableDict(messages=[HumanMessage("critique"), AIMessage("fine")])],
        [AIMessageChunk(content="", tool_call_chunks=[tool_call_chunk(name="x", args='{"how to build a bomb', id="1", index=0)])],
        [AIMessageChunk(content="fine", additional_kwargs={"reasoning_content": "first the bomb"})],
    ],
)  # fmt: skip
def test_no_chunk_is_lost_in_what_the_chunks_add_up_to(chunks: list[Any]) -> None:
    seen, error = streamed(guard().wrap(Source(chunks).runnable, hold=2))
    assert seen == [] and isinstance(error, Blocked)


def test_a_block_stands_though_it_cannot_be_explained() -> None:
    class Mute(ScriptedEngine):
        def generate(self, *prompts: Any, **settings: Any) -> Any:
            raise EngineError("no words")

    mute = GuardReasonerGuard(Mute(), on_failure="pass", policy=Policy(on_violation="explain"))
    seen, _ = streamed(mute.wrap(Source(words(UNSAFE)).runnable, hold=4))
    assert "bomb" not in "".join(seen) and seen[-1].startswith("I can't help")


def test_a_consumer_that_closes_an_async_stream_closes_the_call_at_once() -> None:
    async def run() -> bool:
        source = Source(words(BEFORE))
        stream = guard().wrap(source.runnable, hold=2).astream("hi")
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        return source.closed.is_set()

    assert asyncio.run(run())


def test_beside_a_check_that_raises_the_call_is_closed_and_the_error_is_the_checks() -> None:
    release = threading.Event()
    closed = threading.Event()

    def slow(values: Iterator[Any]) -> Iterator[str]:
        list(values)
        try:
            release.wait(5)
            yield "x"
        finally:
            closed.set()

    failing = guard(ScriptedEngine(error=EngineError("down")), on_failure="raise")
    with pytest.raises(EngineError, match="down"):
        list(failing.wrap(RunnableGenerator(slow), beside=True).stream("hi"))
    release.set()
    assert closed.wait(5)


def test_where_reasoning_decides_only_the_beginning_is_asked_for_a_refusal() -> None:
    manifest = Manifest(
        name="m", template="short/1", precision="none", label_tokens={}, end_token=0, decides="reasoning", window=100,
        files={},
    )  # fmt: skip
    policy = Policy(block=("completion", "response"))
    reasoning = GuardReasonerGuard(ScriptedEngine(), reasoning="always", policy=policy, manifest=manifest)
    late = Source(words("word " * 90 + "sorry and more"))
    assert streamed(reasoning.wrap(late.runnable, hold=10))[1] is None
    assert isinstance(streamed(reasoning.wrap(Source(words("sorry, no " + BEFORE)).runnable, hold=4))[1], Blocked)

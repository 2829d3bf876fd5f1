"""No verdict ever crosses requests: each of thousands of checks at once gets its own canary back, and no other."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_core.runnables import RunnableGenerator, RunnableLambda
from langchain_core.tools import tool

from guardreasoner_guard import Exchange, GuardReasonerGuard, Policy, Verdict
from guardreasoner_guard.batcher import Batcher
from guardreasoner_guard.checks import Attempt
from guardreasoner_guard.engine import Heard, Question, Scored, Written
from guardreasoner_guard.template import Prompt
from guardreasoner_guard.verdict import LABELS, TASKS, Task

UNITS = 2_202
"""Calls, each of one check or more; of two about one text one is made by a thread and one by a task."""
LEAST = 5_000
THREADS = 8
TASKS_AT_ONCE = 64
CANARY = re.compile(r"canary-(\d{5})")


def canaries(value: Any) -> set[int]:
    return {int(number) for number in CANARY.findall(str(value))}


def score(number: int, harmful: bool) -> float:
    """What the engine scores a text with this canary."""
    return (0.75 if harmful else 0.05) + number / 100_000


class Echo:
    """An engine whose scores and reasoning tell which canary it found in a prompt; the word bomb is harmful."""

    name = "echo"
    concurrency = 8

    def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
        found = []
        for question in questions:
            task: Any = str(question.prompt).rsplit("\n", 1)[-1].rstrip(":").lower()
            probability = score(self._own(question.prompt), self._harmful(question.prompt, task))
            found.append(Scored((probability, 1 - probability), 1))
        return found

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        cancel: threading.Event | None = None,
        heard: Heard | None = None,
    ) -> list[Written]:
        written = [self._write(prompt, temperature) for prompt in prompts]
        for index, text in enumerate(written) if heard else ():
            for end in range(0, len(text), 40):
                heard(index, text[:end])  # type: ignore[misc]  # there is one
        return [Written(text, 1, True) for text in written]

    def split(self, text: str, size: int, overlap: int) -> list[str]:
        words = text.split(" ")
        return [" ".join(words[at : at + size]) for at in range(0, max(1, len(words) - overlap), size - overlap)]

    def _own(self, prompt: Prompt) -> int:
        [number] = canaries(prompt)
        return number

    def _harmful(self, prompt: Prompt, task: Task) -> bool:
        return "bomb" in prompt.parts[1 if task == "request" else 2]

    def _write(self, prompt: Prompt, temperature: float) -> str:
        """Every seventh greedy answer ends otherwise than the score, so that it is asked for again."""
        number = self._own(prompt)
        tasks = TASKS[:1] if "# Task 1" in prompt.parts[-1] else TASKS[1:]
        turned = number % 7 == 0 and temperature == 0
        labels = [f"{task.capitalize()}: {LABELS[task][self._harmful(prompt, task) == turned]}" for task in tasks]
        steps = [f"It is canary-{number:05}.", "## Reasoning Step 2", f"And canary-{number:05} it stays."]
        heading = f"# Task {TASKS.index(tasks[-1]) + 1}\n## Reasoning Step 1\n" if len(tasks) > 1 else ""
        return "\n".join([heading + steps[0], *steps[1:], "---", "Answers:", *labels])


class Crossed:
    """Notes how many checks there were, and which held what is not their own."""

    def __init__(self) -> None:
        self.checks = 0
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, exchange: Exchange, attempt: Attempt) -> None:
        """As an observer, told of each check."""
        [number] = canaries(exchange)
        with self._lock:
            self.checks += 1
        if not isinstance(attempt, Verdict):
            self.wrong.append(f"{number}: {attempt}")
            return
        self.verdict(number, attempt)

    def verdict(self, number: int, verdict: Verdict) -> None:
        """A verdict must be on its own text."""
        own = {score(number, harmful) for harmful in (True, False)}
        reasoned = canaries(verdict.model_dump_json())
        silent = verdict.mode == "direct" and not reasoned
        if (
            verdict.outcome != "verdict"
            or not (silent or reasoned == {number})
            or not set(verdict.scores.values()) <= own
        ):
            self.wrong.append(f"{number}: {verdict!r}")

    def said(self, number: int, kind: str, came: Any) -> None:
        """What came back to a caller must be its own, and something."""
        if isinstance(came, Verdict):
            self.verdict(number, came)
        elif canaries(came) != {number}:
            self.wrong.append(f"{number}, {kind}: {came!r}")


def answer(text: Any) -> str:
    """Says what it was asked; for some, with harm in it."""
    [number] = canaries(text)
    return f"Here is a {'bomb' if number % 3 == 0 else 'cake'} for canary-{number:05}, as it was asked for, and so on."


async def aanswer(text: Any) -> str:
    await asyncio.sleep(0)
    return answer(text)


def pieces(values: Iterator[Any]) -> Iterator[str]:
    yield from re.findall(r"\S+ ?", answer(list(values)))


async def apieces(values: AsyncIterator[Any]) -> AsyncIterator[str]:
    for piece in re.findall(r"\S+ ?", answer([value async for value in values])):
        await asyncio.sleep(0)
        yield piece


class Callers:
    """All ways to call one guard; each takes a request with a canary and gives back what came."""

    def __init__(self, guard: GuardReasonerGuard) -> None:
        chain, stream = RunnableLambda(answer, aanswer), RunnableGenerator(pieces, apieces)
        wrapped, streamed = guard.wrap(chain), guard.wrap(stream, hold=4)
        beside, beside_stream = guard.wrap(chain, beside=True), guard.wrap(stream, hold=4, beside=True)
        function, afunction, langchain = guard.tool(_search), guard.tool(_asearch), guard.tool(tool(_search))
        self.sync: dict[str, Callable[[str], Any]] = {
            "check": guard.check,
            "check with an answer": lambda text: guard.check(text, answer(text)),
            "check_many": lambda text: guard.check_many([text, (text, answer(text))]),
            "stream_check": lambda text: list(guard.stream_check(text))[-1],
            "wrap().invoke": wrapped.invoke,
            "wrap().batch": lambda text: wrapped.batch([text, f"{text} too"]),
            "wrap().stream": lambda text: "".join(streamed.stream(text)),
            "beside": beside.invoke,
            "@guard.tool": function,
            "a LangChain tool": lambda text: langchain.invoke({"query": text}),
        }
        self.asynchronous: dict[str, Callable[[str], Coroutine[Any, Any, Any]]] = {
            "acheck": guard.acheck,
            "acheck with an answer": lambda text: guard.acheck(text, answer(text)),
            "acheck_many": lambda text: guard.acheck_many([text, (text, answer(text))]),
            "astream_check": lambda text: _last(guard.astream_check(text)),
            "wrap().ainvoke": wrapped.ainvoke,
            "wrap().abatch": lambda text: wrapped.abatch([text, f"{text} too"]),
            "wrap().astream": lambda text: _joined(streamed.astream(text)),
            "beside, astream": lambda text: _joined(beside_stream.astream(text)),
            "@guard.tool, async": afunction,
        }


def _search(query: str) -> str:
    """Searches."""
    return answer(query)


async def _asearch(query: str) -> str:
    """Searches."""
    return await aanswer(query)


async def _last(items: AsyncIterator[Any]) -> Any:
    return [item async for item in items][-1]


async def _joined(items: AsyncIterator[str]) -> str:
    return "".join([item async for item in items])


def request(unit: int) -> tuple[int, str]:
    """A canary and the text it stands in; each text is asked about twice, so that some verdicts are remembered."""
    number = unit % (UNITS // 2)
    return number, f"Please bake a {'bomb' if number % 5 == 0 else 'cake'} for canary-{number:05} of mine"


@pytest.mark.parametrize("remember", [0.0, 300.0], ids=["all judged", "some remembered"])
def test_each_of_thousands_of_checks_at_once_gets_its_own_verdict(remember: float) -> None:
    crossed = Crossed()
    policy = Policy(on_violation="explain")
    guard = GuardReasonerGuard(Batcher(Echo()), observers=[crossed], remember=remember, policy=policy)
    callers = Callers(guard)

    def call(unit: int) -> None:
        number, text = request(unit)
        kind, way = list(callers.sync.items())[unit // 2 % len(callers.sync)]
        for came in _each(way(text)):
            crossed.said(number, kind, came)

    async def acall(unit: int, turn: asyncio.Semaphore) -> None:
        number, text = request(unit)
        kind, way = list(callers.asynchronous.items())[unit // 2 % len(callers.asynchronous)]
        async with turn:
            for came in _each(await way(text)):
                crossed.said(number, kind, came)

    async def acalls() -> None:
        turn = asyncio.Semaphore(TASKS_AT_ONCE)
        await asyncio.gather(*(acall(unit, turn) for unit in range(1, UNITS, 2)))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        with ThreadPoolExecutor(THREADS + 1) as threads:
            tasks = threads.submit(asyncio.run, acalls())
            list(threads.map(call, range(0, UNITS, 2)))
            tasks.result()
    finally:
        sys.setswitchinterval(before)
    assert crossed.wrong == []
    assert crossed.checks >= LEAST


def _each(came: Any) -> list[Any]:
    return came if isinstance(came, list) else [came]


def test_a_canary_that_crosses_is_found() -> None:
    """The proof of the proof."""
    crossed = Crossed()
    guard = GuardReasonerGuard(Echo(), reasoning="always")
    verdict = guard.check(request(10)[1])
    crossed.verdict(request(10)[0], verdict)
    assert crossed.wrong == []
    crossed.verdict(request(11)[0], verdict)
    crossed.said(request(11)[0], "check", verdict.reasons)
    crossed(Exchange(request=request(12)[1]), verdict)
    assert len(crossed.wrong) == 3

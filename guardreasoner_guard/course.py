"""The course of one guarded call, written once: a generator that asks for checks and calls.

Whoever drives it (sync, async, a batch, a stream) carries them out and hands back what came of them.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.prompt_values import PromptValue

from .errors import BadInput, Blocked
from .exchange import Exchange, copied, messages_in, read_answer, read_exchange, split_state
from .guard import GuardReasonerGuard
from .judge import Reasoning
from .policy import Policy, explanation
from .verdict import Task, Verdict

OUTPUT_TASKS: tuple[Task, ...] = ("completion", "response")
_NOTE = "Your last answer was stopped by a safety check: {reasons} Answer again, safely."


@dataclass(frozen=True)
class Check:
    """Asks for a verdict."""

    exchange: Exchange
    tasks: tuple[Task, ...]
    reasoning: Reasoning | None = None
    """In place of the guard's own, if given."""


@dataclass(frozen=True)
class Call:
    """Asks for the runnable's output; with a check beside it, for (verdict, output or None where it blocks)."""

    value: Any
    beside: Check | None = None


Course = Generator[Check | Call, Any, Any]
"""Yields what is to be done, is sent what came of it, returns the output that may leave."""


def course(guard: GuardReasonerGuard, value: Any, *, beside: bool, message_out: bool = False) -> Course:
    """One guarded call: check the input, call, check the output, and what follows a block.

    Args:
        guard: Judges.
        value: The runnable's input.
        beside: Whether the call may start before the input is checked.
        message_out: Whether the runnable answers with a message, for an input that is blocked before it does.

    Raises:
        Blocked: A check blocked and the policy says to raise.
    """
    exchange = guard.read(asked(read_exchange(value)))
    check = Check(exchange, ("request",))
    output = None
    if beside:
        verdict, output = yield Call(copied(value), check)
    else:
        verdict = yield check
    if verdict.blocked:
        return instead(guard.policy, verdict, None, value, message_out)
    if not beside:
        output = yield Call(copied(value))
    policy = guard.policy
    revisions = policy.max_revisions if policy.on_violation == "revise" else 0
    while True:
        text = read_answer(output, exchange.request, messages_in(value))
        if not text.strip():
            return output
        answered = guard.read(exchange.model_copy(update={"response": text}))
        verdict = yield Check(answered, OUTPUT_TASKS)
        if not verdict.blocked:
            return output
        if verdict.outcome != "verdict" or not revisions:
            return instead(guard.policy, verdict, output, value, message_out)
        revisions -= 1
        output = yield Call(copied(with_note(value, verdict)))


def asked(exchange: Exchange) -> Exchange:
    """The input as a request; the beginning of an answer that a caller puts at its end is part of what is asked."""
    request = "\n\n".join(text for text in (exchange.request, exchange.response) if text)
    return exchange.model_copy(update={"request": request, "response": None})


def instead(policy: Policy, verdict: Verdict, output: Any, value: Any, message_out: bool) -> Any:
    """What a caller gets in place of a blocked output; of a blocked input, where `output` is None.

    Raises:
        Blocked: The policy says so, or the output's form cannot be kept.
    """
    action = policy.on_violation
    if callable(action):
        return action(verdict)
    if action == "raise":
        raise Blocked(verdict)
    text = explanation(verdict)
    if output is None:  # blocked before the call
        if isinstance(value, dict) and value.get("messages"):
            return {"messages": [*value["messages"], AIMessage(content=text)]}
        return AIMessage(content=text) if message_out else text
    return _in_the_form_of(output, text, verdict, value)


class Batch:
    """Several courses, driven side by side; what one raises is its result."""

    def __init__(self, courses: list[Course]) -> None:
        self._courses = courses
        self._results: dict[int, Any] = {}
        self.steps: dict[int, Check | Call] = {}
        self._verdicts: dict[int, Verdict] = {}
        for index in range(len(courses)):
            self._advance(index, None)

    def checked(self, indices: list[int], verdicts: Sequence[Verdict | Exception]) -> None:
        """Hands out verdicts, and errors of judging; a check that stood beside a call comes before it here."""
        for index, verdict in zip(indices, verdicts, strict=True):
            step = self.steps[index]
            if isinstance(verdict, Exception):
                self._fail(index, verdict)
            elif isinstance(step, Check):
                self._advance(index, verdict)
            elif verdict.blocked:
                self._advance(index, (verdict, None))
            else:
                self._verdicts[index] = verdict

    def calls(self) -> dict[int, Call]:
        """The calls that may be made now."""
        return {
            index: step
            for index, step in self.steps.items()
            if isinstance(step, Call) and (step.beside is None or index in self._verdicts)
        }

    def called(self, calls: dict[int, Call], outputs: list[Any]) -> None:
        """Hands out what the calls returned or raised."""
        for (index, step), output in zip(calls.items(), outputs, strict=True):
            if isinstance(output, Exception):
                self._fail(index, output)
            else:
                self._advance(index, output if step.beside is None else (self._verdicts.pop(index), output))

    def results(self) -> list[Any]:
        """One result or exception a course, in order."""
        return [self._results[index] for index in range(len(self._courses))]

    def _fail(self, index: int, error: Exception) -> None:
        self.steps.pop(index)
        self._results[index] = error

    def _advance(self, index: int, result: Any) -> None:
        self.steps.pop(index, None)
        try:
            self.steps[index] = self._courses[index].send(result)
        except StopIteration as done:
            self._results[index] = done.value
        except Exception as error:
            self._results[index] = error


def by_tasks(steps: dict[int, Check | Call]) -> dict[tuple[Task, ...], list[tuple[int, Check]]]:
    """The checks among pending steps, grouped by what they ask, with the number of their course."""
    groups: dict[tuple[Task, ...], list[tuple[int, Check]]] = {}
    for index, step in steps.items():
        check = step if isinstance(step, Check) else step.beside
        if check is not None:
            groups.setdefault(check.tasks, []).append((index, check))
    return groups


def _in_the_form_of(output: Any, text: str, verdict: Verdict, value: Any) -> Any:
    """A replacement text shaped like the output it replaces, so that what follows in a chain still works.

    Nothing is kept but the messages a state held before. Where its shape cannot be kept, `Blocked` is raised.
    """
    if isinstance(output, str):
        return text
    if isinstance(output, AIMessageChunk):
        return AIMessageChunk(content=text, id=output.id)
    if isinstance(output, BaseMessage):
        return AIMessage(content=text, id=output.id)
    if isinstance(output, dict) and output.get("messages"):
        *_, last = output["messages"]
        kept, _ = split_state(output["messages"], asked(read_exchange(value)).request, messages_in(value))
        return {"messages": [*kept, AIMessage(content=text, id=getattr(last, "id", None))]}
    if isinstance(output, dict):
        for key in ("output", "answer", "result", "text", "content"):
            if key in output:
                return {key: text}
    raise Blocked(verdict)


def with_note(value: Any, verdict: Verdict) -> Any:
    """The input with the guard's reasons added, for one more try.

    Raises:
        BadInput: Nothing can be added to an input of this kind.
    """
    note = _NOTE.format(reasons=verdict.shown_reasons)
    if isinstance(value, str):
        return f"{value}\n\n{note}"
    if isinstance(value, PromptValue):
        return [*value.to_messages(), HumanMessage(content=note)]
    if isinstance(value, dict):
        key = "messages" if value.get("messages") else next((k for k, v in value.items() if isinstance(v, str)), None)
        if key is not None:
            return {**value, key: with_note(value[key], verdict)}
    if isinstance(value, BaseMessage):
        return [value, HumanMessage(content=note)]
    if isinstance(value, list):
        return [*value, HumanMessage(content=note)]
    raise BadInput(f"Cannot add a note to a {type(value).__name__} to ask again. Use on_violation='explain'.")

"""The courses of a guarded agent's hooks around its model, written once: generators that ask for what is to be done.

Whoever drives one (sync or async) carries that out and hands back what came of it. A verdict that blocks is noted
in the state by the hook that found it; the model's node then stands aside, and `after` acts on it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

from langchain.agents.middleware.types import ExtendedModelResponse, ModelRequest, ModelResponse
from langchain_core.messages import AIMessage, BaseMessage, RemoveMessage
from langgraph.errors import GraphBubbleUp
from langgraph.types import Command

from guardreasoner_guard.course import OUTPUT_TASKS, Check
from guardreasoner_guard.errors import Blocked
from guardreasoner_guard.exchange import Exchange, text_of
from guardreasoner_guard.guard import GuardReasonerGuard
from guardreasoner_guard.verdict import Verdict
from guardreasoner_guard.withheld import Hold

from .agent_review import Ask, decided
from .agent_state import Notes
from .agent_talk import Settled, Unjudged, asked_in, mark, read, reply, settled, unjudged, waiting, without_calls
from .agent_tools import ToolCalls
from .held_model import HeldChatModel
from .holding import Holding, Run

Course = Generator[list[Check] | Run | Ask, Any, Any]
"""Yields checks to be made, a call to be made, or a person to be asked, and is sent what came of it."""


class ModelCourses:
    """What an agent's guard does around the model; see `GuardReasonerMiddleware` for the settings."""

    def __init__(
        self, guard: GuardReasonerGuard, notes: Notes, calls: ToolCalls, *, beside: bool, hold: Hold, ask_human: bool,
        judge_prompt: bool,
    ) -> None:  # fmt: skip
        self._guard = guard
        self._notes = notes
        self._calls = calls
        self._beside = beside
        self._hold = hold
        self._ask_human = ask_human
        self._judge_prompt = judge_prompt

    def before(self, state: Mapping[str, Any], *, starts: bool) -> Course:
        """What is new in the talk.

        Args:
            state: The agent's.
            starts: Whether the run starts here, and what an earlier one has left unfinished is forgotten.
        """
        found, update = state.get("guard_found"), dict[str, Any]()
        if found is not None and found["by"] == self._notes.by and starts:
            found, update = None, {"guard_found": None}
        if found is not None and found["by"] == self._notes.by and found["of"] == "made":
            raise Blocked(Verdict.model_validate(found["verdict"]))
        if found is not None or self._beside:
            return update or None
        messages = state.get("messages", [])
        new = unjudged(self._guard, messages, self._notes.known(state))
        outcome = settled(new, (yield [item.check for item in new]) if new else [])
        return update | self._settled(state, messages, outcome) or None

    def model(self, request: ModelRequest[Any]) -> Course:
        """A call of the model: what reaches it is judged, and what it says is held back until it is cleared."""
        state: Mapping[str, Any] = request.state
        if (found := state.get("guard_found")) is not None:
            return ModelResponse(result=[found["said"]])
        new = self._reaching(request)
        tools = frozenset(str(name) for tool in request.tools if (name := _name(tool)) is not None)
        holding = Holding(self._guard, self._hold, new if self._beside else (), tools, keep=self._ask_human)
        outcome = settled(new, (yield [item.check for item in new])) if new and not self._beside else Settled({}, None)
        response: ModelResponse[Any] = ModelResponse(result=[])
        if outcome.stop is None:
            messages: Any = outcome.cleaned(request.messages)
            held = request.override(messages=messages, model=HeldChatModel.around(request.model, holding))
            try:
                response = yield Run(held, holding)
            except Exception as error:
                if holding.reply is None or isinstance(error, GraphBubbleUp):
                    raise
                holding.kept = None  # what was said instead is no structured response, or whatever else was wanted
            if holding.beside:
                outcome = holding.input or settled(new, (yield [item.check for item in new]))
        if outcome.stop is not None:
            said = holding.reply or holding.instead(outcome.stop)
            update = self._settled(state, request.messages, outcome, said)
            return ExtendedModelResponse(ModelResponse(result=[said]), Command(update=update))
        update = self._settled(state, request.messages, outcome)
        if holding.verdict is None:
            yield from self._unheld(response.result, holding, asked_in(request.messages))
        if holding.verdict is None or holding.reply is None:
            update = _with(update, self._notes.judged(mark(message) for message in response.result))
            return ExtendedModelResponse(response, Command(update=update))
        update |= self._notes.found("answer", holding.verdict, holding.reply)
        if holding.kept is not None:
            update["guard_found"] |= {"kept": response.result, "structured": response.structured_response}
        return ExtendedModelResponse(ModelResponse(result=[holding.reply]), Command(update=update))

    def after(self, state: Mapping[str, Any]) -> Course:
        """What follows a verdict that blocks; and the check of an answer that another middleware has put in place."""
        found, messages = state.get("guard_found"), state["messages"]
        if found is not None:
            return (yield from self._acted(state, found)) if found["by"] == self._notes.by else None
        place = next((i for i in reversed(range(len(messages))) if isinstance(messages[i], AIMessage)), None)
        if place is None:
            return None
        answer, update = messages[place], dict[str, Any]()
        if not self._notes.known(state)(mark(answer)):
            tools = frozenset(call["name"] for call in answer.tool_calls)
            verdict = yield from self._judged(asked_in(messages[:place]), answer, tools)
            if verdict is not None and verdict.blocked:
                return self._put_by(state, messages[place:], verdict)
            update |= self._notes.judged([mark(answer)])
        if self._ask_human:
            update = _with(update, (yield from self._calls.judged(messages[place:], state)))
        return update or None

    def _reaching(self, request: ModelRequest[Any]) -> list[Unjudged]:
        """What reaches the model and was not judged: what other middleware has added, and all where it is beside."""
        known = self._notes.known(request.state)
        new = unjudged(self._guard, request.messages, known)
        prompt = request.system_message
        if self._judge_prompt and prompt is not None and text_of(prompt).strip() and not known(mark(prompt)):
            exchange = read(self._guard, Exchange(request=text_of(prompt)))
            new += [Unjudged(Check(exchange, ("request",)), mark(prompt), asked=True)] if exchange else []
        return new

    def _settled(
        self, state: Mapping[str, Any], messages: Sequence[BaseMessage], outcome: Settled, said: AIMessage | None = None
    ) -> dict[str, Any]:
        if outcome.stop is not None and said is None:
            said = waiting() if self._ask_human else reply(self._guard.policy, outcome.stop)
        return self._notes.settled(state, messages, outcome, said, ask=self._ask_human)

    def _judged(
        self, request: str, answer: AIMessage, tools: frozenset[str]
    ) -> Generator[list[Check], Any, Verdict | None]:
        """The verdict on an answer as a whole; None where it says nothing but calls of tools."""
        text = text_of(without_calls(answer, lambda name, _: name in tools))
        exchange = read(self._guard, Exchange(request=request, response=text)) if text.strip() else None
        if exchange is None:
            return None
        (verdict,) = yield [Check(exchange, OUTPUT_TASKS)]
        return verdict  # type: ignore[no-any-return]

    def _unheld(self, messages: Sequence[BaseMessage], holding: Holding, request: str) -> Course:
        """Judges answers that are not what the held model gave: another was called, or they were changed since."""
        for message in messages:
            if isinstance(message, AIMessage) and mark(message) not in holding.cleared:
                verdict = yield from self._judged(request, message, holding.tools)
                if verdict is not None and verdict.blocked:
                    holding.verdict, holding.reply = verdict, holding.instead(verdict, message.id)
                    holding.kept = message if self._ask_human else None
                    return

    def _put_by(self, state: Mapping[str, Any], messages: Sequence[BaseMessage], verdict: Verdict) -> dict[str, Any]:
        """Takes an answer out of the state again that another middleware has made."""
        answer, *results = messages
        said = reply(self._guard.policy, verdict, answer.id)
        update: dict[str, Any] = {"messages": [said, *_removals(results)]}
        if state.get("structured_response") is not None:
            update["structured_response"] = None
        if self._ask_human or self._guard.policy.on_violation != "raise":
            return update | {"jump_to": "end"}
        # what raises keeps nothing: it is raised by the next node, before the model
        return update | self._notes.found("made", verdict, said) | {"jump_to": "model"}

    def _acted(self, state: Mapping[str, Any], found: dict[str, Any]) -> Course:
        verdict = Verdict.model_validate(found["verdict"])
        said: AIMessage = found["said"]
        end = {"guard_found": None, "jump_to": "end"}
        if not self._ask_human:
            if self._guard.policy.on_violation == "raise":
                raise Blocked(verdict)
            last = state["messages"][-1]
            if mark(last) == mark(said):
                return end
            # another middleware has answered in its place
            return end | {"messages": [*_removals([last] if isinstance(last, AIMessage) else []), said]}
        if found["of"] == "answer" and "kept" not in found:  # it is lost: something else was wanted of it
            return end | {"messages": [reply(self._guard.policy, verdict, said.id)]}
        kept: list[BaseMessage] = found.get("kept", [])
        texts = [text_of(message) for message in found.get("asked", kept) if message.type != "tool"]
        decision = decided((yield Ask(found["of"], {"text": "\n\n".join(texts)}, verdict)))
        if not decision.approved:
            refused = reply(self._guard.policy, verdict, said.id)
            refused = refused.model_copy(update={"content": decision.said}) if decision.said else refused
            return end | {"messages": [*found.get("gone", []), refused]}
        update: dict[str, Any] = {"guard_found": None, "messages": [*_removals([said]), *kept]}
        if found["of"] == "request":
            return update | found["marks"] | {"jump_to": "model"}
        if found.get("structured") is not None:
            update["structured_response"] = found["structured"]
        update |= self._notes.judged(mark(message) for message in kept)
        return _with(update, (yield from self._calls.judged(kept, state)))


def _with(update: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    judged = [*update.get("guard_judged", []), *more.get("guard_judged", [])]
    return update | more | ({"guard_judged": judged} if judged else {})


def _removals(messages: Sequence[BaseMessage]) -> list[RemoveMessage]:
    return [RemoveMessage(id=message.id) for message in messages if message.id is not None]


def _name(tool: Any) -> Any:
    """What a tool is called; of a provider's own, which is no tool of the agent, nothing."""
    return getattr(tool, "name", None)

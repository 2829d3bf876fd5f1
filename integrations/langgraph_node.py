"""The guard in a LangGraph graph: a node that checks the state, and nodes that are guarded where they stand.

A check node comes too late for what another node has written: that was streamed and is in a checkpoint. A guarded
node hands on nothing that was not cleared.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config

from guardreasoner_guard.course import OUTPUT_TASKS, Call, Check, asked, with_note
from guardreasoner_guard.errors import BadInput, Blocked, MissingExtra
from guardreasoner_guard.exchange import read_exchange, texts_of
from guardreasoner_guard.guard import GuardReasonerGuard
from guardreasoner_guard.policy import explanation
from guardreasoner_guard.verdict import TASKS, Verdict

from .langgraph_state import (
    Judged,
    add_verdicts,
    changed,
    is_talk,
    own,
    record,
    stopped,
    value_at,
    with_verdicts,
    without_turn,
)
from .langgraph_tools import guarded_tool_node
from .langgraph_withheld import Steps, Withheld, words_in

try:
    from langgraph.graph import END
    from langgraph.pregel import NodeBuilder, Pregel
    from langgraph.types import Command
except ImportError as error:
    raise MissingExtra("langgraph", "langgraph") from error

__all__ = ["Judged", "add_verdicts", "guard_node", "guarded_node", "guarded_tool_node"]


def guard_node(
    guard: GuardReasonerGuard,
    *,
    then: str | None = None,
    otherwise: str = END,
    request: str | Sequence[str] = "messages",
    response: str | None = None,
) -> Runnable[Any, Any]:
    """A node that checks the state: what is asked, and its last answer where there is one.

    Blocked, the policy decides: `raise`; `explain`, which puts the explanation in place of the answer, removes what
    was asked and goes on to `otherwise`; or a function of the verdict, whose result is the answer, or the update.

    Args:
        guard: Judges and decides.
        then: The node that follows when nothing is blocked. Give this node no edges of its own beside it: LangGraph
            would follow those too, blocked or not. None only where the policy raises; its edges are followed then.
        otherwise: The node that follows a block.
        request: The key or keys of the state that hold what is asked: texts, or a list of messages whose last
            turn is judged, with the answer where it ends in one.
        response: The key that holds the answer, where it is not the last message.

    Raises:
        BadInput: The policy cannot be kept by a node of this kind.
    """
    action = guard.policy.on_violation
    if action == "revise":
        raise BadInput("A node that only checks cannot ask again. Use guarded_node, or on_violation='explain'.")
    if then is None and action != "raise":
        raise BadInput("After a block the graph must not go on as if nothing was. Say where it does: then='model'.")
    return _CheckNode(guard, request, response, then, otherwise)


def guarded_node(
    guard: GuardReasonerGuard,
    node: Any,
    *,
    request: str | Sequence[str] = "messages",
    response: str | None = None,
    traced: bool = False,
) -> Runnable[Any, Any]:
    """A node with a check before it and a check of everything it hands to the graph, streams included.

    What is blocked reaches no state, checkpoint, stream or trace; in its place stands what the policy says. A
    request that is blocked is removed from the messages, so that no later turn goes back to it. The graph goes on
    along its edges either way, with the explanation as the node's answer.

    Args:
        guard: Judges and decides; `revise` calls the node once more with the reasons.
        node: What `add_node` takes: a function, a runnable, a compiled graph.
        request: The key or keys of the state that hold what is asked, see `guard_node`.
        response: The key for an explanation, where the state has no messages.
        traced: Whether callbacks and tracers look on inside; they then see blocked answers too. Else they see what
            the node hands on.

    Raises:
        BadInput: The node is a graph that would keep blocked answers in checkpoints of its own.
    """
    if isinstance(node, Pregel) and node.checkpointer is not False:
        raise BadInput(
            "A graph within a graph keeps checkpoints of its own, with what its nodes wrote. Guard those nodes, or "
            "compile it with checkpointer=False."
        )
    return _GuardedNode(guard, request, response, node, traced)


@dataclass(frozen=True)
class _Asked:
    """What a state asks."""

    talk: str | None
    """The key of its messages, if it has any."""
    values: dict[str, Any]
    """In the form of a chain's input, where messages are under `messages`."""

    @property
    def messages(self) -> list[BaseMessage]:
        return self.values["messages"] if self.talk else []


class _GraphNode(Runnable[Any, Any]):
    """Reads a graph's state, and says what stands in place of what was blocked."""

    def __init__(self, guard: GuardReasonerGuard, request: str | Sequence[str], response: str | None) -> None:
        self.guard = guard
        self.keys = (request,) if isinstance(request, str) else tuple(request)
        self.response = response

    def read(self, state: Any) -> _Asked:
        """What is asked.

        Raises:
            BadInput: The state holds nothing under the keys.
        """
        values = {key: value for key in self.keys if (value := value_at(state, key)) is not None}
        if not values:
            raise BadInput(f"The state holds nothing under {', '.join(self.keys)}. Name its keys: request='question'.")
        talk = next((key for key, value in values.items() if is_talk(value)), None)
        return _Asked(talk, {"messages" if key == talk else key: value for key, value in values.items()})

    def instead(self, verdict: Verdict, asks: _Asked, *, answered: bool, id: str | None = None) -> Any:
        """The update, or Command, that takes the place of what was blocked.

        Args:
            verdict: Why.
            asks: What was asked.
            answered: Whether an answer was blocked; else it was what is asked, which goes.
            id: Of the message to be replaced.

        Raises:
            Blocked: The policy says so, or the state has no place for an explanation.
        """
        action = self.guard.policy.on_violation
        if action == "raise":
            raise stopped(verdict) if answered else Blocked(verdict)
        answer = action(verdict) if callable(action) else explanation(verdict)
        if answer is None or isinstance(answer, (Mapping, Command)):
            return answer
        removed = [] if answered else without_turn(asks.messages)
        if self.response:
            return {self.response: answer, **({asks.talk: removed} if asks.talk and removed else {})}
        if asks.talk is None:
            raise stopped(verdict) if answered else Blocked(verdict)
        said = answer if isinstance(answer, BaseMessage) else AIMessage(content=str(answer), id=id)
        return {asks.talk: [*removed, said]}


class _CheckNode(_GraphNode):
    def __init__(
        self,
        guard: GuardReasonerGuard,
        request: str | Sequence[str],
        response: str | None,
        then: str | None,
        otherwise: str,
    ) -> None:
        super().__init__(guard, request, response)
        self.name = "guard"
        self.then = then
        self.otherwise = otherwise

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        steps = self._course(input, ensure_config(config))
        check = next(steps)
        return _returned(steps, self.guard.verdicts([check.exchange], check.tasks)[0])

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        steps = self._course(input, ensure_config(config))
        check = next(steps)
        return _returned(steps, (await self.guard.averdicts([check.exchange], check.tasks))[0])

    def _course(self, state: Any, config: RunnableConfig) -> Generator[Check, Verdict, Any]:
        asks = self.read(state)
        exchange = read_exchange(asks.values)
        if self.response:
            answer = "\n".join(texts_of(value_at(state, self.response)))
            exchange = exchange.model_copy(update={"response": answer if answer.strip() else None})
        # with an answer too: whoever may write the input could end it in one of his own
        verdict = yield Check(self.guard.read(exchange), TASKS)
        update, goto = None, self.then
        if verdict.blocked:
            asked_harm = self.guard.policy.blocks({"request": verdict.request})
            answered = exchange.response is not None and not asked_harm
            id = asks.messages[-1].id if answered and asks.talk else None
            update, goto = self.instead(verdict, asks, answered=answered, id=id), self.otherwise
        stays = isinstance(update, Command) or goto is None
        update = with_verdicts(update, [record(verdict, config)], state)
        return update if stays else Command(update=update, goto=goto or ())


class _GuardedNode(_GraphNode):
    def __init__(
        self, guard: GuardReasonerGuard, request: str | Sequence[str], response: str | None, node: Any, traced: bool
    ) -> None:
        super().__init__(guard, request, response)
        self.node = NodeBuilder().do(node).build().bound
        self.name = self.node.get_name()  # by which `add_node` calls it, as it would the node itself
        self.traced = traced

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        withheld = Withheld(ensure_config(config), self.traced)
        return withheld.carry_out(self.guard, self._course(input, withheld), self.node.invoke)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        withheld = Withheld(ensure_config(config), self.traced)
        return await withheld.acarry_out(self.guard, self._course(input, withheld), self.node.ainvoke)

    def _course(self, state: Any, withheld: Withheld) -> Steps:
        policy = self.guard.policy
        asks = self.read(state)
        exchange = self.guard.read(asked(read_exchange(asks.values)))
        verdict: Verdict = yield Check(exchange, ("request",))
        records = [record(verdict, withheld.config)]
        if verdict.blocked:
            return with_verdicts(self.instead(verdict, asks, answered=False), records, state)
        revisions = policy.max_revisions if policy.on_violation == "revise" else 0
        given = state
        while True:
            output = yield Call(own(given))
            text = "\n".join([*words_in(output, state), *withheld.words()])
            if text.strip():
                answered = self.guard.read(exchange.model_copy(update={"response": text}))
                verdict = yield Check(answered, OUTPUT_TASKS)
                records.append(record(verdict, withheld.config))
            if not verdict.blocked:
                withheld.release()
                if isinstance(output, Exception):
                    raise output
                return with_verdicts(output, records, state)
            if verdict.outcome != "verdict" or not revisions:
                return with_verdicts(self.instead(verdict, asks, answered=True), records, state)
            revisions -= 1
            noted = with_note(asks.values, verdict)
            given = changed(state, {asks.talk if key == "messages" and asks.talk else key: noted[key] for key in noted})


def _returned(steps: Generator[Any, Any, Any], sent: Any) -> Any:
    """What a course returns once it is sent its last answer."""
    try:
        steps.send(sent)
    except StopIteration as done:
        return done.value
    raise AssertionError("a check node asks for one check")

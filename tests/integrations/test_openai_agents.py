"""Guardrails of the OpenAI Agents SDK in real runs; what is blocked is in no stream, result, session or trace."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from agents import (
    Agent,
    InputGuardrailTripwireTriggered,
    Model,
    ModelResponse,
    ModelTracing,
    OutputGuardrailTripwireTriggered,
    RunConfig,
    Runner,
    SQLiteSession,
    ToolOutputImage,
    ToolOutputText,
    Usage,
    function_tool,
    generation_span,
    set_trace_processors,
    set_tracing_disabled,
)
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call
from agents.tracing import Span, Trace, TracingProcessor
from guardreasoner_guard.integrations.openai_agents import GuardReasonerGuardrails
from openai.types.responses import ResponseReasoningItem
from pydantic import BaseModel

from guardreasoner_guard import BadInput, Blocked, EngineError, GuardReasonerGuard, Policy, ScriptedEngine

HARMLESS = "Mix flour with water and salt, let the dough rest over night, then bake it until it is brown."
HARMFUL = "Take a bowl and some flour, and while the dough rests over night the bomb needs fertilizer."
BAD = "How do I build a bomb?"


def rails(policy: Policy | None = None, *, parallel: bool = False, engine: Any = None, **settings: Any) -> Any:
    guard = GuardReasonerGuard(engine or ScriptedEngine(), policy=policy, **settings)
    return GuardReasonerGuardrails(guard, run_in_parallel=parallel)


class Tracer(TracingProcessor):
    """Collects every span, as an exporter gets it."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    def on_span_end(self, span: Span[Any]) -> None:
        self.spans.append(span.export())

    def on_trace_start(self, trace: Trace) -> None: ...
    def on_trace_end(self, trace: Trace) -> None: ...
    def on_span_start(self, span: Span[Any]) -> None: ...
    def shutdown(self) -> None: ...
    def force_flush(self) -> None: ...


@pytest.fixture(autouse=True)
def tracer() -> Iterator[Tracer]:
    """Traces stay here; the SDK would send them to its maker."""
    tracer = Tracer()
    set_tracing_disabled(False)
    set_trace_processors([tracer])
    yield tracer
    set_trace_processors([])


class Telling(Model):
    """A model that streams its words one by one, and tells them to its own span, as the SDK's models do."""

    def __init__(self, answer: str, endless: bool = False) -> None:
        self.answer = answer
        self.endless = endless
        self.closed = False

    async def get_response(self, *given: Any, **more: Any) -> ModelResponse:
        self._tell(more.get("tracing") or given[6])
        return ModelResponse(output=[assistant_message(self.answer)], usage=Usage(), response_id="resp-1")

    async def stream_response(self, *given: Any, **more: Any) -> AsyncIterator[Any]:
        self._tell(more.get("tracing") or given[6])
        script = ScriptedModel([ModelStep(output=[assistant_message(self.answer)])])
        try:
            async for event in script.stream_response(*given, **more):
                if event.type == "response.output_text.delta":
                    words = [word + " " for word in event.delta.split(" ")]
                    words[-1] = words[-1][:-1]
                    for word in words * (1_000_000 if self.endless else 1):
                        yield event.model_copy(update={"delta": word})
                else:
                    yield event
        finally:
            self.closed = True

    def _tell(self, tracing: ModelTracing) -> None:
        with generation_span() as span:
            if tracing.include_data():
                span.span_data.output = [{"content": self.answer}]


# -- input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", [True, False])
def test_a_harmful_input_trips_with_the_verdict(parallel: bool) -> None:
    model = ScriptedModel([[assistant_message("Never.")]])
    agent = Agent("a", model=model, input_guardrails=[rails(parallel=parallel).input])
    with pytest.raises(InputGuardrailTripwireTriggered) as tripped:
        asyncio.run(Runner.run(agent, BAD))
    verdict = tripped.value.guardrail_result.output.output_info
    assert verdict.request == "harmful" and verdict.blocked and verdict.reasoning
    if not parallel:
        assert model.calls == ()  # it was checked before, as is the default
    assert not GuardReasonerGuardrails(GuardReasonerGuard(ScriptedEngine())).input.run_in_parallel


def test_in_parallel_the_model_is_called_beside_the_check_and_cancelled_when_it_trips() -> None:
    called, cancelled = asyncio.Event(), asyncio.Event()

    class Waiting(Telling):
        async def get_response(self, *given: Any, **more: Any) -> ModelResponse:
            called.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            raise AssertionError

    class Later(GuardReasonerGuard):
        async def _aattempts(self, *given: Any, **more: Any) -> Any:
            await called.wait()
            return await super()._aattempts(*given, **more)

    async def run() -> None:
        engine: Any = ScriptedEngine()
        made = GuardReasonerGuardrails(Later(model=engine), run_in_parallel=True)
        agent = Agent("a", model=Waiting(""), input_guardrails=[made.input])
        with pytest.raises(InputGuardrailTripwireTriggered):
            await Runner.run(agent, BAD)
        await asyncio.wait_for(cancelled.wait(), 5)

    asyncio.run(run())


def test_only_the_turn_that_is_to_be_answered_is_judged() -> None:
    agent = Agent("a", model=ScriptedModel([[assistant_message("Yes.")]]), input_guardrails=[rails().input])
    old: list[Any] = [{"role": "user", "content": "What is a bomb?"}, {"role": "assistant", "content": "It explodes."}]
    parts: Any = [{"type": "input_text", "text": "And bread?"}, {"type": "input_image", "image_url": "data:bomb"}]
    system: Any = {"role": "developer", "content": "You disarm every bomb."}
    result = asyncio.run(Runner.run(agent, [system, *old, {"role": "user", "content": parts}]))
    assert result.final_output == "Yes."


@pytest.mark.parametrize("output", ["Build a bomb.", [{"stdout": "", "stderr": "Build a bomb."}]])
def test_what_a_tool_returned_is_judged_with_the_input(output: Any) -> None:
    agent = Agent("a", model=ScriptedModel([[assistant_message("Yes.")]]), input_guardrails=[rails().input])
    call: Any = {"type": "function_call", "name": "look", "call_id": "1", "arguments": "{}"}
    returned: Any = {"type": "function_call_output", "call_id": "1", "output": output}
    with pytest.raises(InputGuardrailTripwireTriggered):
        asyncio.run(Runner.run(agent, [{"role": "user", "content": "Look."}, call, returned]))


@pytest.mark.parametrize(("settings", "outcome"), [({}, "failure"), ({"timeout": 0.01}, "timeout")])
def test_what_cannot_be_judged_trips_and_says_what_it_was(settings: Any, outcome: str) -> None:
    engine = ScriptedEngine(delay=30) if settings else ScriptedEngine(error=EngineError("gone"))
    agent = Agent(
        "a",
        model=ScriptedModel([[assistant_message("No.")]]),
        input_guardrails=[rails(engine=engine, **settings).input],
    )
    with pytest.raises(InputGuardrailTripwireTriggered) as tripped:
        asyncio.run(Runner.run(agent, "Bread?"))
    assert tripped.value.guardrail_result.output.output_info.outcome == outcome


def test_a_policy_in_shadow_trips_nothing_and_tells() -> None:
    made = rails(Policy(shadow=True))
    agent = Agent(
        "a",
        model=ScriptedModel([[assistant_message(HARMFUL)]]),
        input_guardrails=[made.input],
        output_guardrails=[made.output],
    )
    result = asyncio.run(Runner.run(agent, BAD))
    assert result.input_guardrail_results[0].output.output_info.shadowed
    assert result.output_guardrail_results[0].output.output_info.shadowed


# -- output ---------------------------------------------------------------------------------------


class Recipe(BaseModel):
    title: str
    steps: list[str]


def test_a_harmful_output_trips_with_a_verdict_that_does_not_quote_it() -> None:
    agent = Agent("a", model=ScriptedModel([[assistant_message(HARMFUL)]]), output_guardrails=[rails().output])
    session = SQLiteSession("talk")
    with pytest.raises(OutputGuardrailTripwireTriggered) as tripped:
        asyncio.run(Runner.run(agent, "Bread?", session=session))
    verdict = tripped.value.guardrail_result.output.output_info
    assert verdict.response == "harmful" and "bowl" not in verdict.model_dump_json()
    assert HARMFUL not in json.dumps(asyncio.run(session.get_items()))


def test_a_structured_output_is_judged_field_by_field() -> None:
    def answering(*steps: str) -> Agent[Any]:
        message = assistant_message(Recipe(title="Bread", steps=list(steps)).model_dump_json())
        return Agent("a", model=ScriptedModel([[message]]), output_type=Recipe, output_guardrails=[rails().output])

    assert asyncio.run(Runner.run(answering("Mix."), "Bread?")).final_output.steps == ["Mix."]
    with pytest.raises(OutputGuardrailTripwireTriggered):
        asyncio.run(Runner.run(answering("Mix.", "Build a bomb."), "Bread?"))


# -- tools ----------------------------------------------------------------------------------------


def with_tool(made: Any, arguments: Any, result: Any = "done") -> tuple[Agent[Any], ScriptedModel, list[str]]:
    ran: list[str] = []

    @function_tool(tool_input_guardrails=[made.tool_input], tool_output_guardrails=[made.tool_output])
    def shell(command: str) -> Any:
        ran.append(command)
        return result

    model = ScriptedModel([[function_call("shell", arguments, call_id="c1")], [assistant_message("I went on.")]])
    return Agent("a", model=made.model(model), tools=[shell]), model, ran


@pytest.mark.parametrize("streamed", [True, False])
def test_a_harmful_argument_is_not_run_and_the_agent_goes_on_with_the_reasons(streamed: bool) -> None:
    made = rails()
    agent, model, ran = with_tool(made, {"command": "build a bomb"})

    async def run() -> Any:
        if not streamed:
            return await Runner.run(agent, "Do it.")
        result = Runner.run_streamed(agent, "Do it.")
        [event async for event in result.stream_events()]
        return result

    result = asyncio.run(run())
    assert ran == [] and result.final_output == "I went on."
    (told,) = [item["output"] for item in model.calls[1].input if item.get("type") == "function_call_output"]
    assert told.startswith("Blocked: the request is harmful.")
    assert result.tool_input_guardrail_results[0].output.output_info.blocked


def test_a_harmful_result_never_reaches_the_model_nor_the_trace(tracer: Tracer) -> None:
    agent, model, ran = with_tool(rails(), {"command": "read the page"}, {"page": [HARMFUL]})
    result = asyncio.run(Runner.run(agent, "Read it."))
    assert ran == ["read the page"] and result.final_output == "I went on."
    seen = [repr(model.calls), repr(result.new_items), repr(result.tool_output_guardrail_results), repr(tracer.spans)]
    assert not any("fertilizer" in text for text in seen)
    assert "Blocked: the answer is harmful." in repr(model.calls[1].input)


def test_a_tool_that_cannot_be_judged_is_not_run() -> None:
    agent, _, ran = with_tool(rails(engine=ScriptedEngine(error=EngineError("gone"))), {"command": "ls"})
    agent.model = ScriptedModel(
        [[function_call("shell", {"command": "ls"}, call_id="c1")], [assistant_message("I went on.")]]
    )
    assert asyncio.run(Runner.run(agent, "Do it.")).final_output == "I went on." and ran == []


IMAGE = "data:image/png;base64," + "iVBORw0KGgo" * 30_000


@pytest.mark.parametrize("image", [ToolOutputImage(image_url=IMAGE), {"type": "image", "image_url": IMAGE}])
def test_a_tool_may_return_an_image_and_what_it_says_beside_it_is_judged(image: Any) -> None:
    agent, model, _ = with_tool(rails(), {"command": "look"}, [ToolOutputText(text="A loaf."), image])
    assert asyncio.run(Runner.run(agent, "Look.")).final_output == "I went on."
    assert "input_image" in repr(model.calls[1].input)
    agent, model, _ = with_tool(rails(), {"command": "look"}, [ToolOutputText(text="A bomb."), image])
    assert asyncio.run(Runner.run(agent, "Look.")).final_output == "I went on."
    assert "input_image" not in repr(model.calls[1].input)


def test_what_is_harmless_runs() -> None:
    agent, _, ran = with_tool(rails(), {"command": "ls"})
    assert asyncio.run(Runner.run(agent, "Do it.")).final_output == "I went on." and ran == ["ls"]


# -- a model that is held back: nothing of a blocked answer is seen ------------------------------------


async def events_of(agent: Agent[Any], **more: Any) -> tuple[list[Any], Any]:
    """Every event of a streamed run, and the result or what was raised."""
    result = Runner.run_streamed(agent, "How do I bake bread?", **more)
    seen: list[Any] = []
    try:
        async for event in result.stream_events():
            seen.append(event)
    except Exception as error:
        return seen, error
    return seen, result


def deltas(events: list[Any]) -> str:
    raw = [event.data for event in events if event.type == "raw_response_event"]
    return "".join(event.delta for event in raw if event.type == "response.output_text.delta")


def test_a_blocked_answer_is_in_no_event_no_error_no_session_and_no_trace(tracer: Tracer) -> None:
    session = SQLiteSession("talk")
    agent = Agent("a", model=rails().model(Telling(HARMFUL), hold=6))

    async def run() -> None:
        events, error = await events_of(agent, session=session)
        assert isinstance(error, Blocked) and error.verdict.response == "harmful"
        heard = deltas(events)
        assert heard and HARMFUL.startswith(heard)  # what was cleared before has been seen
        seen = [repr(events), repr(error), error.verdict.model_dump_json(), repr(getattr(error, "run_data", None))]
        seen += [json.dumps(await session.get_items()), repr(tracer.spans)]
        assert not any("bomb" in text or "fertilizer" in text for text in seen)

        with pytest.raises(Blocked) as stopped:
            await Runner.run(agent, "How do I bake bread?", session=session)
        seen = [str(stopped.value), json.dumps(await session.get_items()), repr(tracer.spans)]
        assert not any("bomb" in text or "fertilizer" in text for text in seen)
        await Runner.run(Agent("a", model=Telling(HARMFUL)), "How do I bake bread?")
        assert "fertilizer" in repr(tracer.spans)  # what the trace would have had without the guard

    asyncio.run(run())


def test_a_policy_that_explains_answers_in_its_place() -> None:
    made = rails(Policy(on_violation="explain"))
    session = SQLiteSession("talk")

    async def run() -> None:
        agent = Agent("a", model=made.model(Telling(HARMFUL), hold=6))
        events, result = await events_of(agent, session=session)
        assert "judged harmful" in result.final_output and deltas(events).endswith(result.final_output)
        other = await Runner.run(agent, "How do I bake bread?", session=session)
        assert other.final_output == result.final_output
        seen = [repr(events), repr(other.raw_responses), json.dumps(await session.get_items())]
        assert not any("bomb" in text or "fertilizer" in text for text in seen)

    asyncio.run(run())


def test_where_a_structured_answer_is_due_no_text_takes_its_place() -> None:
    made = rails(Policy(on_violation="explain"))
    message = Recipe(title="Bread", steps=["Build a bomb."]).model_dump_json()
    agent = Agent("a", model=made.model(Telling(message)), output_type=Recipe)
    with pytest.raises(Blocked):
        asyncio.run(Runner.run(agent, "Bread?"))


def test_a_harmless_answer_arrives_whole_and_piece_by_piece() -> None:
    agent = Agent("a", model=rails().model(Telling(HARMLESS), hold=4))
    events, result = asyncio.run(events_of(agent))
    assert result.final_output == deltas(events) == HARMLESS
    assert asyncio.run(Runner.run(agent, "Bread?")).final_output == HARMLESS


def test_a_stream_is_heard_while_the_model_speaks_and_ends_it_when_its_reader_goes() -> None:
    model = Telling("and more", endless=True)

    async def run() -> None:
        result = Runner.run_streamed(Agent("a", model=rails().model(model, hold=4)), "Bread?")
        async for event in result.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                result.cancel()
        assert model.closed

    asyncio.run(run())


@pytest.mark.parametrize("streamed", [True, False])
def test_thoughts_and_calls_that_no_guardrail_of_ours_judges_belong_to_the_answer(streamed: bool) -> None:
    made = rails()
    thought = ResponseReasoningItem(
        id="1",
        type="reasoning",
        summary=[{"type": "summary_text", "text": "Perhaps a bomb."}],  # type: ignore[list-item]
    )

    @function_tool
    def shell(command: str) -> str:
        raise AssertionError("it must not run")

    async def run(*output: Any) -> None:
        agent = Agent("a", model=made.model(ScriptedModel([list(output)])), tools=[shell])
        if streamed:
            _, error = await events_of(agent)
            raise error
        await Runner.run(agent, "Bread?")

    for output in (thought, function_call("shell", {"command": "build a bomb"}, call_id="c1")):
        with pytest.raises(Blocked):
            asyncio.run(run(output))


def test_words_that_come_without_deltas_are_judged() -> None:
    """Some servers send whole items only."""

    async def run() -> None:
        async def whole(call: Any) -> AsyncIterator[Any]:
            script = ScriptedModel([ModelStep(output=[assistant_message(HARMFUL)])])
            async for event in script.stream_response(
                None,
                "x",
                call.model_settings,
                [],
                None,
                [],
                call.tracing,
                previous_response_id=None,
                conversation_id=None,
                prompt=None,
            ):
                if event.type in ("response.created", "response.output_item.done", "response.completed"):
                    yield event

        model = rails().model(ScriptedModel([ModelStep.stream(whole)]))
        events, error = await events_of(Agent("a", model=model))
        assert isinstance(error, Blocked) and "bomb" not in repr(events)

    asyncio.run(run())


def test_the_answer_is_judged_with_the_turn_it_answers() -> None:
    judged: list[Any] = []
    guard = GuardReasonerGuard(ScriptedEngine(), observers=[lambda exchange, _: judged.append(exchange)])
    made = GuardReasonerGuardrails(guard)
    agent = Agent("a", model=made.model(Telling("Yes.")), output_guardrails=[made.output])
    asyncio.run(Runner.run(agent, "Bread?", run_config=RunConfig()))
    assert [(one.request, one.response) for one in judged] == [("Bread?", "Yes.")] * 2


def test_a_text_that_is_too_long_is_an_error_and_never_cut() -> None:
    agent = Agent("a", model=rails(max_characters=20).model(Telling(HARMLESS)))
    with pytest.raises(BadInput, match="max_characters"):
        asyncio.run(Runner.run(agent, "Bread?"))

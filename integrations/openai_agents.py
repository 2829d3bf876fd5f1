"""OpenAI Agents SDK: guardrails for an agent's input and output and for its tools, and a model that is held back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from guardreasoner_guard.course import OUTPUT_TASKS
from guardreasoner_guard.decorator import describe_call
from guardreasoner_guard.errors import MissingExtra
from guardreasoner_guard.exchange import Exchange, texts_of, texts_of_result
from guardreasoner_guard.guard import GuardReasonerGuard
from guardreasoner_guard.verdict import Task, Verdict
from guardreasoner_guard.withheld import Hold, known_hold

from .held_back import shown
from .openai_items import request_of

try:
    from agents import (
        Agent,
        FunctionTool,
        GuardrailFunctionOutput,
        InputGuardrail,
        Model,
        OutputGuardrail,
        RunContextWrapper,
        Tool,
        ToolGuardrailFunctionOutput,
        ToolInputGuardrail,
        ToolInputGuardrailData,
        ToolOutputFileContent,
        ToolOutputGuardrail,
        ToolOutputGuardrailData,
        ToolOutputImage,
        TResponseInputItem,
    )
except ImportError as error:
    raise MissingExtra("openai-agents", "openai-agents") from error

from .openai_agents_model import GuardedModel


class GuardReasonerGuardrails:
    """Guardrails of the OpenAI Agents SDK, made of one guard; each goes where the SDK takes its kind.

    `input` and `output` stop the run with the SDK's tripwires, the verdict in `output_info`; the policy's
    `on_violation` is not for them. `tool_input` and `tool_output` give the agent the reasons in place of the
    call's result, so that it can go on. They fail closed: what cannot be judged trips, or is rejected.

    The SDK runs an output guardrail after the answer was streamed, and leaves the answer in the error's `run_data`.
    Where nothing of it may be seen, give the agent a `model` from here.

    Args:
        guard: Judges and decides.
        run_in_parallel: Check the input while the model is called, which is cancelled when it trips. By then words
            may have been streamed, and tools may have run.
    """

    def __init__(self, guard: GuardReasonerGuard, *, run_in_parallel: bool = False) -> None:
        self.guard = guard
        name = "guardreasoner"
        self.input: InputGuardrail[Any] = InputGuardrail(self._judge_input, name, run_in_parallel)
        self.output: OutputGuardrail[Any] = OutputGuardrail(self._judge_output, name)
        self.tool_input: ToolInputGuardrail[Any] = ToolInputGuardrail(self._judge_call, name)
        self.tool_output: ToolOutputGuardrail[Any] = ToolOutputGuardrail(self._judge_result, name)

    def model(self, model: Model | str, *, hold: Hold = 64) -> Model:
        """A model whose answers are judged before anything of them leaves it, streams included.

        What follows a block is the policy's: `Blocked` is raised, or its text is the answer (`revise` explains, and
        where a structured answer is due, `Blocked` is raised). The model's own spans hold no text, since they end
        before it is judged.

        Args:
            model: A model, or the name of one.
            hold: How much of a stream is held back; see `GuardReasonerGuard.wrap`.

        Raises:
            BadInput: `hold` is not one that is known.
        """
        return GuardedModel(model, self.guard, known_hold(hold), self._judges)

    def _judges(self, tool: Tool) -> bool:
        return isinstance(tool, FunctionTool) and self.tool_input in (tool.tool_input_guardrails or ())

    async def _judge_input(
        self, _: RunContextWrapper[Any], __: Agent[Any], input: str | list[TResponseInputItem]
    ) -> GuardrailFunctionOutput:
        request = request_of(input)
        if not request.request.strip():
            return GuardrailFunctionOutput(None, False)
        return _tripwire(await self._verdict(request, "request"))

    async def _judge_output(
        self, context: RunContextWrapper[Any], _: Agent[Any], output: Any
    ) -> GuardrailFunctionOutput:
        text = "\n".join(texts_of(output))
        if not text.strip():
            return GuardrailFunctionOutput(None, False)
        answered = request_of(context.turn_input).model_copy(update={"response": text})
        return _tripwire(await self._verdict(answered, *OUTPUT_TASKS))

    async def _judge_call(self, data: ToolInputGuardrailData) -> ToolGuardrailFunctionOutput:
        return _rejection(await self._verdict(_called(data), "request"))

    async def _judge_result(self, data: ToolOutputGuardrailData) -> ToolGuardrailFunctionOutput:
        text = _returned(data.output)
        if not text.strip():
            return ToolGuardrailFunctionOutput.allow()
        return _rejection(await self._verdict(_called(data).model_copy(update={"response": text}), "response"))

    async def _verdict(self, exchange: Exchange, *tasks: Task) -> Verdict:
        return (await self.guard.averdicts([self.guard.read(exchange)], tasks))[0]


def _called(data: ToolInputGuardrailData) -> Exchange:
    given = data.context.tool_arguments
    try:
        arguments = json.loads(given or "{}")
    except ValueError:
        arguments = given
    if not isinstance(arguments, Mapping):
        arguments = {"input": arguments}
    return Exchange(request=describe_call(data.context.tool_name, arguments))


def _returned(output: Any) -> str:
    """The text of a tool's result, without the bytes of images and files."""
    items = output if isinstance(output, (list, tuple)) else [output]
    media = (ToolOutputImage, ToolOutputFileContent)
    said = [item.model_dump() if isinstance(item, media) else item for item in items]
    return "\n".join(texts_of_result(said))


def _tripwire(verdict: Verdict) -> GuardrailFunctionOutput:
    return GuardrailFunctionOutput(shown(verdict), verdict.blocked)


def _rejection(verdict: Verdict) -> ToolGuardrailFunctionOutput:
    if not verdict.blocked:
        return ToolGuardrailFunctionOutput.allow(verdict)
    return ToolGuardrailFunctionOutput.reject_content(verdict.shown_reasons, shown(verdict))

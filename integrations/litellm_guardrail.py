"""LiteLLM: a guardrail of its proxy, before a call, beside it, and after it, streams held back until cleared.

In the proxy's `config.yaml`, `guardrail` is this class by its dotted path; the settings of a `GuardReasonerGuard`
stand beside it.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal

from guardreasoner_guard.course import OUTPUT_TASKS
from guardreasoner_guard.errors import BadInput, Blocked, GuardError, GuardTimeout, MissingExtra
from guardreasoner_guard.exchange import Exchange
from guardreasoner_guard.guard import GuardReasonerGuard
from guardreasoner_guard.policy import Policy, explanation
from guardreasoner_guard.verdict import Task, Verdict
from guardreasoner_guard.withheld import Hold, known_hold

from .held_back import held_back, replacement, unquoted
from .litellm_texts import read_request, read_response, request_of, said, starting

try:
    from litellm.exceptions import GuardrailRaisedException
    from litellm.integrations.custom_guardrail import CustomGuardrail
    from litellm.types.guardrails import GuardrailEventHooks, LitellmParams
    from litellm.types.utils import (
        Delta,
        GenericGuardrailAPIInputs,
        GuardrailStatus,
        ModelResponseStream,
        StreamingChoices,
    )
except ImportError as error:
    raise MissingExtra("litellm", "litellm") from error

if TYPE_CHECKING:
    from litellm.proxy._types import UserAPIKeyAuth

_SETTINGS = ("model", "reasoning", "policy", "device", "on_failure", "timeout", "max_characters", "remember")
_UNCHECKED = "This could not be checked for safety, so it was stopped. Please try again later."


class GuardReasonerGuardrail(CustomGuardrail):
    """A LiteLLM guardrail that reasons before it judges; every mode of LiteLLM works, and every endpoint it translates.

    It fails closed, and tells a verdict from a failure: a verdict is a `GuardrailRaisedException` with status 400
    and `blocked_content=True`; a failure has 503, a timeout 504, a text that cannot be judged 400, all with
    `blocked_content=False`. With `on_violation` of the policy other than `raise`, a caller gets the policy's text
    with finish reason `content_filter` in place of an error (`revise` explains: LiteLLM asks the model itself).

    LiteLLM's log gets labels, scores and cost of each verdict, but no text and no reasons, which may quote one.

    Args:
        guardrail_name: What requests and logs call it.
        guard: A guard, in place of one that is made of the settings.
        hold: How much of a streamed chat answer is held back; see `GuardReasonerGuard.wrap`. Streams of other
            endpoints are held back whole.
        params: Settings of `GuardReasonerGuard` (model, reasoning, policy as a table, device, on_failure, timeout,
            max_characters, remember), and LiteLLM's own.

    Raises:
        BadInput: There is no setting of that name, or it would have no effect; no such `hold`; or a mode that LiteLLM
            does not know.
    """

    def __init__(
        self,
        guardrail_name: str = "guardreasoner",
        *,
        guard: GuardReasonerGuard | None = None,
        hold: Hold = 64,
        **params: Any,
    ) -> None:
        settings = {name: params.pop(name) for name in _SETTINGS if name in params}
        if guard is not None and settings:
            raise BadInput(
                f"{min(settings)} is a setting of a guard, and there is one. Set it there, or pass no guard."
            )
        known = {*LitellmParams.model_fields, *inspect.signature(CustomGuardrail.__init__).parameters}
        if unknown := sorted(set(params) - known):
            raise BadInput(f"There is no setting {unknown[0]!r}. Settings of the guard: {', '.join(_SETTINGS)}, hold.")
        if isinstance(settings.get("policy"), Mapping):
            settings["policy"] = Policy(**settings["policy"])
        try:  # a mode that is misspelt would be no guard at all
            super().__init__(guardrail_name, supported_event_hooks=list(GuardrailEventHooks), **params)
        except ValueError as error:
            raise BadInput(f"{error} Use one of: {', '.join(hook.value for hook in GuardrailEventHooks)}.") from error
        self.guard = guard or GuardReasonerGuard(**settings)
        self.hold = known_hold(hold)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # LiteLLM looks for these in a class itself: a subclass that inherits them would be no guard at all
        for name in ("apply_guardrail", "async_post_call_streaming_iterator_hook"):
            if name not in vars(cls):
                setattr(cls, name, getattr(cls, name))

    async def apply_guardrail(
        self,
        inputs: GenericGuardrailAPIInputs,
        request_data: dict[str, Any],
        input_type: Literal["request", "response"],
        logging_obj: Any = None,
    ) -> GenericGuardrailAPIInputs:
        """Judges what LiteLLM read out of a request or an answer of any endpoint; called in every mode.

        Raises:
            GuardrailRaisedException: It is blocked, or it could not be judged.
            ModifyResponseException: It is blocked, and the policy has a text for it.
        """
        asks = input_type == "request"
        exchange = read_request(inputs, request_data) if asks else read_response(inputs, request_data)
        tasks: tuple[Task, ...] = ("request",) if asks else OUTPUT_TASKS
        if not ((exchange.request if asks else exchange.response) or "").strip():
            return inputs  # only images, or an answer without a word
        verdict = await self._verdict(exchange, tasks, request_data)
        if verdict.blocked:
            text = self._instead(verdict)
            if "model" not in request_data or "mcp_tool_name" in request_data:  # nothing that an answer could replace
                raise self._stopped(text, 400, blocked_content=True)
            self.raise_passthrough_exception(text, request_data)
        return inputs

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: UserAPIKeyAuth, response: AsyncIterator[Any], request_data: dict[str, Any]
    ) -> AsyncGenerator[Any]:
        """Hands on a streamed answer as it is cleared.

        Raises:
            GuardrailRaisedException: It is blocked, or it could not be judged.
        """
        chunks = aiter(response)
        first = await anext(chunks, None)
        if first is None:
            return
        judge = self._chat if isinstance(first, ModelResponseStream) else self._whole
        async with aclosing(judge(user_api_key_dict, first, starting(first, chunks), request_data)) as cleared:
            async for chunk in cleared:
                yield chunk

    async def _chat(
        self, _: UserAPIKeyAuth, first: Any, chunks: AsyncGenerator[Any], request_data: dict[str, Any]
    ) -> AsyncGenerator[Any]:
        """A chat answer, held back by the core."""
        start = time.time()
        try:
            held = held_back(self.guard, request_of(request_data), chunks, said, self.hold)
            async with aclosing(held) as cleared:
                async for chunk in cleared:
                    yield chunk
        except Blocked as blocked:
            self._record(blocked.verdict, request_data, start)
            delta = Delta(content=self._instead(blocked.verdict), role="assistant")
            choices = [StreamingChoices(index=0, delta=delta, finish_reason="content_filter")]
            yield ModelResponseStream(id=first.id, created=first.created, model=first.model, choices=choices)
        except GuardError as error:
            raise self._failure(error, request_data, start) from error
        else:
            self._record(None, request_data, start)

    async def _whole(
        self, key: UserAPIKeyAuth, first: Any, chunks: AsyncGenerator[Any], request_data: dict[str, Any]
    ) -> AsyncGenerator[Any]:
        """A stream of another endpoint, read by LiteLLM when it is complete, and judged by `apply_guardrail`."""
        from litellm.proxy.guardrails.guardrail_hooks.unified_guardrail import unified_guardrail as unified

        unread = unified.resolve_endpoint_translation(key, first) is None
        if unread and self.guard.on_failure != "pass" and not self.guard.policy.shadow:
            found = BadInput(f"A stream of {type(first).__name__} cannot be judged. Ask for it without streaming.")
            raise self._failure(found, request_data, time.time())
        held = unified.UnifiedLLMGuardrails().async_post_call_streaming_iterator_hook(  # type: ignore[no-untyped-call]
            key, chunks, request_data, guardrail_to_apply=self, buffer_until_moderated_default=True
        )
        async with aclosing(held) as cleared:
            async for chunk in cleared:
                yield chunk

    async def _verdict(self, exchange: Exchange, tasks: Sequence[Task], request_data: dict[str, Any]) -> Verdict:
        start = time.time()
        try:
            verdict = (await self.guard.averdicts([self.guard.read(exchange)], tasks))[0]
        except GuardError as error:
            raise self._failure(error, request_data, start) from error
        self._record(verdict, request_data, start)
        return verdict

    def _instead(self, verdict: Verdict) -> str:
        """What the caller of a blocked call gets, unless it gets an error."""
        if verdict.outcome != "verdict":
            raise self._stopped(explanation(verdict), 504 if verdict.outcome == "timeout" else 503)
        try:
            return replacement(self.guard.policy, verdict)
        except Blocked:  # LiteLLM logs the message, so it quotes nothing
            raise self._stopped(unquoted(verdict).reasons, 400, blocked_content=True) from None

    def _failure(self, error: GuardError, request_data: dict[str, Any], start: float) -> GuardrailRaisedException:
        self._record(error, request_data, start)
        if isinstance(error, BadInput):
            return self._stopped(str(error), 400)
        return self._stopped(_UNCHECKED, 504 if isinstance(error, GuardTimeout) else 503)

    def _stopped(self, message: str, status: int, *, blocked_content: bool = False) -> GuardrailRaisedException:
        return GuardrailRaisedException(
            self.guardrail_name, message, should_wrap_with_default_message=False, status_code=status,
            blocked_content=blocked_content,
        )  # fmt: skip

    def _record(self, found: Verdict | GuardError | None, request_data: dict[str, Any], start: float) -> None:
        """One entry in LiteLLM's log; None where a stream was cleared to its end."""
        status: GuardrailStatus = "success"
        told: dict[str, Any] = {}
        if isinstance(found, GuardError):
            status, told = "guardrail_failed_to_respond", {"outcome": "failure", "error": type(found).__name__}
        elif found is not None:
            told = found.model_dump(mode="json", exclude={"reasons", "reasoning", "error"})
            if found.outcome != "verdict":
                status = "guardrail_failed_to_respond"
            elif found.blocked:
                status = "guardrail_intervened"
            elif found.shadowed:
                status = "guardrail_flagged"
        end = time.time()
        self.add_standard_logging_guardrail_information_to_request_data(
            told, request_data, status, start, end, end - start, guardrail_provider="guardreasoner"
        )

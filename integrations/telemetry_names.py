"""Every name that telemetry shows, in one place: OpenTelemetry's convention for guardrails is still a draft.

The `gen_ai` names are those of the draft as it stood in autumn 2026 (pull request 427 of its GenAI conventions). It
has no names for labels, for shadow mode or for metrics: those are ours.
"""

from __future__ import annotations

from guardreasoner_guard.verdict import Task

SCOPE = "guardreasoner_guard"
"""Of tracer and meter."""

# -- spans --------------------------------------------------------------------------------------

OPERATION = "gen_ai.operation.name"
APPLY_GUARDRAIL = "apply_guardrail"
"""The operation; a span is called by it and by the guard's name."""
PROVIDER = "gen_ai.provider.name"
GUARDREASONER = "guardreasoner"
"""The provider."""
GUARD = "gen_ai.guardrail.component.name"
SOURCE = "gen_ai.guardrail.source"
"""request | response: whether there was an answer to judge."""
RESULT_TYPE = "gen_ai.guardrail.result.type"
RESULT_VALUE = "gen_ai.guardrail.result.value"
"""Of the type `blocked`: true | false."""
REASON = "gen_ai.guardrail.result.reason"
MODEL = "gen_ai.request.model"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
ERROR = "error.type"

OUTCOME = "guardreasoner.outcome"
"""verdict | failure | timeout, or error where the check raised."""
BLOCKED = "guardreasoner.blocked"
SHADOWED = "guardreasoner.shadowed"
MODE = "guardreasoner.mode"
CONSISTENT = "guardreasoner.consistent"
WINDOWS = "guardreasoner.windows"
REMEMBERED = "guardreasoner.remembered"

# only with texts=True
REQUEST_TEXT = "guardreasoner.text.request"
RESPONSE_TEXT = "guardreasoner.text.response"
REASONS_TEXT = "guardreasoner.text.reasons"
REASONING_TEXT = "guardreasoner.text.reasoning"
ERROR_TEXT = "guardreasoner.text.error"

# -- metrics ------------------------------------------------------------------------------------

CHECKS = "guardreasoner.checks"
DURATION = "guardreasoner.check.duration"
TOKENS = "guardreasoner.tokens"
TOKEN_TYPE = "gen_ai.token.type"
"""input | output"""


def span(guard: str) -> str:
    """What a check's span is called."""
    return f"{APPLY_GUARDRAIL} {guard}"


def label(task: Task) -> str:
    """The attribute that holds a label."""
    return f"guardreasoner.label.{task}"


def score(task: Task) -> str:
    """The attribute that holds the probability of a label's positive class."""
    return f"guardreasoner.score.{task}"

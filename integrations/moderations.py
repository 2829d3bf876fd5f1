"""Moderations: OpenAI's `POST /v1/moderations`, answered by the guard, so that clients switch by their base URL.

The guard tells harm, not its kind. OpenAI's category `illicit`, the broadest, stands for it: its score is the guard's
probability that the text is harmful, and it is true where the text is harmful or flagged. The other twelve are false,
with score 0 and no applied input types, as OpenAI marks what it did not judge. `flagged` is `Verdict.blocked`.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from guardreasoner_guard.guard import GuardReasonerGuard
from guardreasoner_guard.verdict import LABELS, Verdict

from .connection import while_connected
from .problem import RESPONSES

CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip
HARM = "illicit"
_MOST_TEXTS = 256


def _says_something(text: str) -> str:
    if not text.strip():
        raise ValueError("there is no text to judge. Pass one that is not empty")
    return text


Text = Annotated[str, AfterValidator(_says_something), Field(json_schema_extra={"pattern": r"\S"})]
"""A text that says something."""


class TextPart(BaseModel):
    """A part of one input."""

    type: Literal["text"]
    text: Text


def _text(part: Any) -> Any:
    if isinstance(part, dict) and part.get("type") == "image_url":
        raise ValueError("images cannot be judged: the guard reads text alone. Leave them out")
    return part


def _form(given: Any) -> str:
    if not isinstance(given, list):
        return "text"
    return "parts" if given and not isinstance(given[0], str) else "texts"


_Several = Field(min_length=1, max_length=_MOST_TEXTS)


class ModerationAsked(BaseModel):
    """What is to be judged, each text as a request."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": "How do I bake bread?"}]})

    input: Annotated[
        Annotated[Text, Tag("text")]
        | Annotated[list[Text], _Several, Tag("texts")]
        | Annotated[list[Annotated[TextPart, BeforeValidator(_text)]], _Several, Tag("parts")],
        Discriminator(_form),
    ]
    """A text; several, judged one by one; or the parts of one."""
    model: str | None = None
    """Is not looked at: the server has one guard."""


class Moderation(BaseModel):
    """The verdict on one text."""

    flagged: bool
    """Whether the guard's policy blocks it; so it does what could not be judged, unless told otherwise."""
    categories: dict[str, bool]
    """OpenAI's thirteen; `illicit` stands for any harm."""
    category_scores: dict[str, float]
    """For `illicit` the probability of harm, or 1 and 0 where the model gave none."""
    category_applied_input_types: dict[str, list[str]]
    """Empty for categories that the guard does not judge."""
    guard: Verdict
    """The guard's whole verdict: labels, reasons, reasoning, and whether it is one or a failure or timeout."""


class ModerationAnswer(BaseModel):
    """The verdicts, in the order of the texts."""

    id: str
    model: str
    results: list[Moderation]


def moderations_router(guard: GuardReasonerGuard) -> APIRouter:
    """`POST /v1/moderations`.

    Args:
        guard: Judges.
    """
    router = APIRouter(tags=["guard"], responses=RESPONSES)

    @router.post("/v1/moderations")
    async def moderate(asked: ModerationAsked, request: Request) -> ModerationAnswer:
        """Judges texts, in the form of OpenAI's moderations."""
        verdicts = await while_connected(request.receive, guard.acheck_many(_texts(asked.input)))
        results = [moderation(verdict) for verdict in verdicts]
        return ModerationAnswer(id=f"modr-{uuid.uuid4().hex}", model=verdicts[0].model, results=results)

    return router


def moderation(verdict: Verdict) -> Moderation:
    """A verdict on a request, in OpenAI's form."""
    harmful = verdict.blocked or verdict.request == LABELS["request"][0]
    score = verdict.scores.get("request", float(harmful))
    return Moderation(
        flagged=verdict.blocked,
        categories={name: harmful and name == HARM for name in CATEGORIES},
        category_scores={name: score if name == HARM else 0.0 for name in CATEGORIES},
        category_applied_input_types={name: ["text"] if name == HARM else [] for name in CATEGORIES},
        guard=verdict,
    )


def _texts(given: str | list[str] | list[TextPart]) -> list[str]:
    if isinstance(given, str):
        return [given]
    parts = [part.text for part in given if isinstance(part, TextPart)]
    return ["\n".join(parts)] if parts else [text for text in given if isinstance(text, str)]

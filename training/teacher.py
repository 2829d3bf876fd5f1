"""Teachers: a labelled row in, a reasoned answer out.

`ChatTeacher` asks a large language model, as the paper does; `annotation.AnnotationTeacher` needs none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from guardreasoner_guard.errors import GuardError, MissingExtra
from guardreasoner_guard.retry import may_pass, retried, status_of
from guardreasoner_guard.template import neutralise
from guardreasoner_guard.verdict import LABELS, Task

from .rows import SeedRow

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

_ABOUT_THE_ROW = {400, 413, 422}
"""Too long for the model, or stopped by a filter: likely with harmful text, and no reason to ask no other row."""


class TeacherError(GuardError):
    """A teacher could not be asked, or does not answer."""


class RowRefused(TeacherError):
    """A teacher refuses one row; it may answer others."""


@dataclass(frozen=True)
class Told:
    """What a teacher wrote, and the tokens it read and wrote for it."""

    text: str
    prompt_tokens: int = 0
    generated_tokens: int = 0
    refused: str = ""
    """Why there is no answer to this row, where there is none."""


class Teacher(Protocol):
    """Anything that can reason about a labelled row. Asked from several threads."""

    name: str
    """What the result is said to be made by."""
    concurrency: int
    """Rows it is asked about at once."""
    decide: tuple[Task, ...]
    """Tasks the teacher labels itself where the seed has no label."""
    policy: str
    """What it is told is harmful here; may be empty."""

    def reason(self, row: SeedRow) -> Told:
        """Writes an answer (`# Task n`, steps, `Answers:`) that leads to the row's labels.

        Raises:
            RowRefused: It does not answer this row.
            TeacherError: It could not be asked.
        """
        ...


_INSTRUCTION = """\
You teach a safety classifier to reason. You are given an exchange between a human user and an AI assistant \
and its correct labels. Work out, step by step, why these labels are right.
{policy}
Tasks:
1. Is the human user's request harmful or unharmful?
2. Is the AI assistant's response a refusal or a compliance?
3. Is the AI assistant's response harmful or unharmful?

Rules:
- Use no other words for a label than those above.
- Take 1 to 10 steps a task, as many as it needs; each step is the smallest unit of thought, one plain sentence.
- Quote the words of the text that carry the meaning. The reasoning must agree with the label.
- Leave out the tasks for which no label is asked for.
- A label given as "decide" is yours to decide.

Write exactly this form, with the labels at the end and nothing after them:
# Task 1
## Reasoning Step 1
...
---
Answers:
{ending}

Human user:
{prompt}

AI assistant:
{response}

Labels:
{labels}{category}"""


class ChatTeacher:
    """Asks any LangChain chat model (paper, section 3.1; there GPT-4o).

    Errors that pass (timeouts, lost connections, answers of no form, 408, 409, 425, 429, 5xx) are tried again, later
    each time or when the server says; others end the run at once.

    Args:
        model: The chat model. Its own retries are better switched off.
        decide: Tasks the model decides itself where the seed has no label (the paper's rule for BeaverTails).
        policy: What is harmful here, in natural language.
        concurrency: Rows it is asked about at once.
        attempts: Times one row is asked about before the run stops.
        wait: Longest first wait between two attempts, in seconds; it doubles.
    """

    def __init__(
        self,
        model: BaseChatModel,
        decide: tuple[Task, ...] = (),
        *,
        policy: str = "",
        concurrency: int = 8,
        attempts: int = 6,
        wait: float = 1.0,
    ) -> None:
        self.model = model
        self.decide = decide
        self.policy = policy
        self.concurrency = concurrency
        self.attempts = attempts
        self.wait = wait
        self.name = str(getattr(model, "model_name", None) or getattr(model, "model", None) or type(model).__name__)

    def reason(self, row: SeedRow) -> Told:
        """Asks until there is an answer; see `Teacher.reason`."""
        question = self._question(row)
        try:
            reply = retried(lambda: self.model.invoke(question), _passes, tries=self.attempts, first=self.wait)
        except Exception as error:  # every provider's client has errors of its own, which may quote the row or the key
            status = status_of(error)
            said = f"{type(error).__name__}{f' {status}' if status else ''}"
            if _passes(error):
                raise TeacherError(f"{self.name} gave no answer in {self.attempts} attempts ({said}).") from None
            kind = RowRefused if status in _ABOUT_THE_ROW else TeacherError
            raise kind(f"{self.name} refuses to be asked ({said}). Check its name, URL and key.") from None
        usage: Mapping[str, Any] = getattr(reply, "usage_metadata", None) or {}
        text = reply.text if isinstance(reply.text, str) else reply.text()
        return Told(str(text), int(usage.get("input_tokens", 0)), int(usage.get("output_tokens", 0)))

    def _question(self, row: SeedRow) -> str:
        given: dict[Task, str] = {
            **{task: "decide" for task in self.decide if task == "request" or row.response},
            **row.labels,
        }
        asked = {task: given[task] for task in LABELS if task in given}
        return _INSTRUCTION.format(
            policy=f"\nThe labels follow this policy:\n{self.policy}\n" if self.policy else "",
            ending="\n".join(f"{t.capitalize()}: {' or '.join(LABELS[t])}" for t in asked),
            prompt=neutralise(row.prompt),
            response=neutralise(row.response) if row.response is not None else "None",
            labels="\n".join(f"{t.capitalize()}: {label}" for t, label in asked.items()),
            category=f"\n\nKind of harm, as its labeller named it: {neutralise(row.category)}"
            if row.category and "harmful" in row.labels.values()
            else "",
        )


def chat_teacher(
    model: str,
    *,
    url: str | None = None,
    decide: tuple[Task, ...] = (),
    policy: str = "",
    concurrency: int = 8,
    requests_per_minute: float | None = None,
    timeout: float = 120.0,
) -> ChatTeacher:
    """A teacher by its name.

    Args:
        model: What `init_chat_model` takes, as `openai:gpt-4o`; with a URL, what the server calls its model.
        url: Base URL of an OpenAI-compatible server, as `http://localhost:8000/v1` (vLLM and friends). The key is
            taken from OPENAI_API_KEY.
        decide: See `ChatTeacher`.
        policy: See `ChatTeacher`.
        concurrency: See `ChatTeacher`.
        requests_per_minute: Asked no faster than this.
        timeout: Seconds one answer may take.

    Raises:
        MissingExtra: The package of that model's provider is not installed.
        TeacherError: There is no such model.
    """
    from langchain_core.rate_limiters import InMemoryRateLimiter

    limiter = InMemoryRateLimiter(requests_per_second=requests_per_minute / 60) if requests_per_minute else None
    settings: dict[str, Any] = {"temperature": 0.0, "timeout": timeout, "max_retries": 0, "rate_limiter": limiter}
    chat: BaseChatModel
    try:
        if url is not None:
            from langchain_openai import ChatOpenAI

            key = os.environ.get("OPENAI_API_KEY", "").strip() or "none"
            chat = ChatOpenAI(model=model, base_url=url, api_key=key, **settings)  # type: ignore[arg-type]
        else:
            from langchain.chat_models import init_chat_model

            chat = init_chat_model(model, **settings)
    except ImportError as error:
        raise MissingExtra(error.name or "langchain", "teacher") from error
    except Exception as error:  # keys that are missing, names that are unknown: each provider says it otherwise
        raise TeacherError(f"{model} cannot be a teacher ({error}). Check its name and your key.") from error
    teacher = ChatTeacher(chat, decide, policy=policy, concurrency=concurrency)
    teacher.name = model
    return teacher


def _passes(error: Exception) -> bool:
    """Whether the same question may be answered later.

    What has no status is a timeout, a lost connection, or a reply that is no chat completion: clients raise anything
    for an overloaded gateway's web page or an error told with status 200.
    """
    status = status_of(error)
    return status is None or may_pass(status)

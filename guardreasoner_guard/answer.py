"""The answer: text to labels and steps, and back.

`read` is strict: a label that is not plainly there is an error, never a guess.
`write` makes what a model is trained to answer; `read(write(x)) == x`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from .errors import UnreadableAnswer
from .verdict import LABELS, TASKS, ReasoningStep, Task

_ANSWERS = re.compile(r"^(?:#+[ \t]*)?Answers:?[ \t]*$", re.MULTILINE)
_LABEL = re.compile(r"^(Request|Completion|Response):[ \t]*(\S+)[ \t]*$", re.MULTILINE)
_HEADING = re.compile(
    r"^(?:#+[ \t]*Task[ \t]*(?P<task>\d{1,9})\b.*"
    r"|#+[ \t]*Reasoning[ \t]+Step[ \t]*(?P<step>\d+)[ \t]*[:.]?[ \t]*(?P<text>.*)"
    r"|(?P<other>#+[ \t].*|-{3,}[ \t]*|Answers:[ \t]*))$",
    re.MULTILINE | re.IGNORECASE,
)


@dataclass(frozen=True)
class Answer:
    """What a model answered: labels and the steps that led to them."""

    labels: Mapping[Task, str]
    steps: tuple[ReasoningStep, ...] = ()


def read(text: str, asked: Sequence[Task] = TASKS) -> Answer:
    """Reads an answer of the form `# Task n` / `## Reasoning Step k` / `Answers:`.

    The last `Answers:` block counts (the published models now and then write it as a heading). A label
    line must hold one of the method's two words for its task, once; other tasks than those asked may say
    anything (the published models write `None`).

    Args:
        text: The model's answer.
        asked: The tasks whose labels must be there.

    Raises:
        UnreadableAnswer: No `Answers:` block, or a label that was asked for is missing, is not one
            of the task's words, or stands there twice with different words.
    """
    blocks = list(_ANSWERS.finditer(text))
    if not blocks:
        raise UnreadableAnswer(
            "The model's answer has no 'Answers:' block. Allow it more tokens, or judge by scores.",
            text,
        )
    found: dict[str, set[str]] = {}
    for name, word in _LABEL.findall(text, blocks[-1].end()):
        found.setdefault(name.lower(), set()).add(word.lower())
    labels: dict[Task, str] = {}
    for task in asked:
        words = found.get(task, set())
        if len(words) != 1 or not words <= set(LABELS[task]):
            said = " and ".join(sorted(words)) or "nothing"
            raise UnreadableAnswer(
                f"The model's answer says {said} for {task}, not {' or '.join(LABELS[task])}. "
                "Ask again, or judge by scores.",
                text,
            )
        labels[task] = words.pop()
    return Answer(labels, read_steps(text))


def read_steps(text: str) -> tuple[ReasoningStep, ...]:
    """Reads the reasoning steps of an answer, complete or cut off.

    Steps before any `# Task` heading belong to task 1, which a model may leave unsaid; a step ends
    where the next heading of any kind begins. Steps without words are left out.
    """
    steps: list[ReasoningStep] = []
    headings = list(_HEADING.finditer(text))
    task = 1
    for heading, following in zip_longest(headings, headings[1:]):
        if heading["task"]:
            task = max(1, int(heading["task"]))
        elif heading["step"]:
            body = text[heading.end() : following.start() if following else len(text)]
            words = " ".join(f"{heading['text']} {body}".split())
            if words:
                number = sum(step.task == task for step in steps) + 1
                steps.append(ReasoningStep(task=task, number=number, text=words))
    return tuple(steps)


def write(
    labels: Mapping[Task, str],
    steps: Mapping[Task, Sequence[str]] | None = None,
    *,
    verdict_first: bool = False,
) -> str:
    """Writes an answer for training.

    Args:
        labels: The labels; tasks that are absent are not mentioned.
        steps: Reasoning by task, each step one line of plain words; None or empty for a direct answer.
        verdict_first: Whether the labels stand before the reasoning or after it.
    """
    verdict = ["Answers:", *(f"{task.capitalize()}: {labels[task]}" for task in TASKS if task in labels)]
    lines: list[str] = []
    for index, task in enumerate(TASKS, 1):
        if steps and steps.get(task):
            lines.append(f"# Task {index}")
            for number, step in enumerate(steps[task], 1):
                lines += [f"## Reasoning Step {number}", " ".join(step.split())]
    rule = ["---"] if lines else []
    return "\n".join([*verdict, *rule, *lines] if verdict_first else [*lines, *rule, *verdict])

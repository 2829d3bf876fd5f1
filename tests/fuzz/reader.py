"""The reader: any text is read or refused, and what is said last counts."""

from __future__ import annotations

from itertools import groupby

from guardreasoner_guard import UnreadableAnswer
from guardreasoner_guard.answer import read, read_steps, write
from guardreasoner_guard.verdict import LABELS, TASKS


def holds(text: str) -> None:
    """What is true of every text."""
    for asked in (TASKS, TASKS[:1], TASKS[1:]):
        try:
            labels = read(text, asked).labels
        except UnreadableAnswer as error:
            assert error.answer == text
        else:
            assert set(labels) == set(asked) and all(labels[task] in LABELS[task] for task in asked)
    steps = sorted(read_steps(text), key=lambda step: (step.task, step.number))
    for _, group in groupby(steps, key=lambda step: step.task):
        for number, step in enumerate(group, 1):
            assert step.number == number and step.text == " ".join(step.text.split()) != ""
    for index in (0, 1):  # whatever stands before, a model's own answer at the end is what is read
        said = {task: LABELS[task][index] for task in TASKS}
        assert read(f"{text}\n{write(said)}").labels == said

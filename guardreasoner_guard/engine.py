"""The engine: what runs a model. It knows nothing of guarding; prompts in, probabilities and text out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from .errors import EngineError
from .template import Prompt
from .verdict import LABELS, TASKS


@dataclass(frozen=True)
class Question:
    """A prompt and the words that may follow it."""

    prompt: Prompt
    words: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """Probability of each word, which add up to 1, and the tokens that had to be read for it."""

    probabilities: tuple[float, ...]
    tokens: int


@dataclass(frozen=True)
class Written:
    """What was generated, without the prompt; `complete` is False where the token cap cut it."""

    text: str
    tokens: int
    complete: bool


Heard = Callable[[int, str], None]
"""Told the place of a prompt and all that has been written to it so far."""


class Engine(Protocol):
    """Runs one model. Safe to call from several threads."""

    name: str
    concurrency: int
    """How many calls may usefully run at once."""

    def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
        """Probabilities of the words, each from one forward pass.

        Raises:
            EngineError: The model could not be run, or its numbers are not finite.
        """
        ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        cancel: threading.Event | None = None,
        heard: Heard | None = None,
    ) -> list[Written]:
        """Continues the prompts; greedy at temperature 0, else sampled, each copy of a prompt anew.

        Where the engine can, `heard` is told of a text while it is written. What it raises ends the call.

        Raises:
            EngineError: The model could not be run.
        """
        ...

    def split(self, text: str, size: int, overlap: int) -> list[str]:
        """Cuts a text into windows of at most `size` tokens; neighbours share `overlap` tokens."""
        ...


def windows(text: str, offsets: Sequence[tuple[int, int]], size: int, overlap: int) -> list[str]:
    """Cuts a text into windows of at most `size` tokens; every character is in at least one.

    Args:
        text: The text.
        offsets: Where each of its tokens begins and ends, in characters.
        size: Tokens a window.
        overlap: Tokens two neighbours share.
    """
    if len(offsets) <= size:
        return [text]
    parts = []
    for first in range(0, len(offsets) - overlap, size - overlap):
        last = min(first + size, len(offsets))
        begin = 0 if first == 0 else offsets[first][0]
        end = len(text) if last == len(offsets) else offsets[last][0]
        parts.append(text[begin:end])
    return parts


class ScriptedEngine:
    """An engine without a model, for tests of code that holds a guard.

    A text with one of the `harmful` words is harmful, an answer with one of the `refusing` words is a
    refusal; it reasons in two steps, the first quoting the text. It counts its calls.

    Args:
        harmful: Words that make a request or response harmful.
        refusing: Words that make a response a refusal.
        error: Raised by every call, to act out a failure.
        delay: Seconds every call takes, to act out a slow model.
        answer: What `generate` writes instead of its reasoning.
    """

    name = "scripted"
    concurrency = 8

    def __init__(
        self,
        harmful: Sequence[str] = ("bomb",),
        refusing: Sequence[str] = ("sorry",),
        *,
        error: Exception | None = None,
        delay: float = 0.0,
        answer: str | None = None,
    ) -> None:
        self.harmful = tuple(harmful)
        self.refusing = tuple(refusing)
        self.error = error
        self.delay = delay
        self.answer = answer
        self.calls = 0

    def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
        """0.99 for the word the script says, 0.01 for the other."""
        self._call(cancel)
        scored = []
        for question in questions:
            task = str(question.prompt).rsplit("\n", 1)[-1].rstrip(":").lower()
            first = self._positive(question.prompt, task)
            scored.append(Scored((0.99, 0.01) if first else (0.01, 0.99), len(str(question.prompt).split())))
        return scored

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        cancel: threading.Event | None = None,
        heard: Heard | None = None,
    ) -> list[Written]:
        """Two steps a task and the labels of the script, told line by line."""
        self._call(cancel)
        written = [self._write(prompt) for prompt in prompts]
        if heard is not None:
            for index, one in enumerate(written):
                lines = one.text.splitlines()
                for end in range(1, len(lines) + 1):
                    heard(index, "\n".join(lines[:end]))
        return written

    def split(self, text: str, size: int, overlap: int) -> list[str]:
        """Counts words as tokens."""
        words = text.split(" ")
        if len(words) <= size:
            return [text]
        return [" ".join(words[at : at + size]) for at in range(0, len(words) - overlap, size - overlap)]

    def _call(self, cancel: threading.Event | None) -> None:
        self.calls += 1
        if cancel is not None and cancel.wait(self.delay):
            raise EngineError("The call was cancelled.")
        if cancel is None:
            time.sleep(self.delay)
        if self.error is not None:
            raise self.error

    def _positive(self, prompt: Prompt, task: str) -> bool:
        request, response = prompt.parts[1], "".join(prompt.parts[2:3])
        if task == "completion":
            return any(word in response for word in self.refusing)
        return any(word in (response if task == "response" else request) for word in self.harmful)

    def _write(self, prompt: Prompt) -> Written:
        if self.answer is not None:
            return Written(self.answer, len(self.answer.split()), True)
        first = int(prompt.parts[-1].split("# Task ")[-1].split("\n")[0])
        tasks = TASKS[:1] if first == 1 and len(prompt.parts) == 3 else TASKS[first - 1 :]
        lines: list[str] = []
        for index, task in enumerate(tasks):
            text = prompt.parts[1 if task == "request" else 2].split("\n", 1)[1].strip()
            if index:
                lines += [f"# Task {TASKS.index(task) + 1}", "## Reasoning Step 1"]
            lines += [f'The words are "{text[:40]}".', "## Reasoning Step 2", "That decides it."]
        lines += ["---", "Answers:"]
        for task in tasks:
            label = LABELS[task][0 if self._positive(prompt, task) else 1]
            lines.append(f"{task.capitalize()}: {label}")
        return Written("\n".join(lines), sum(len(line.split()) for line in lines), True)

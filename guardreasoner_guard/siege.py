"""A siege: attacks carried out on a guard through its own doors, with its views and without, and what came of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableGenerator
from pydantic import BaseModel

from .attacks import Case, Text
from .course import OUTPUT_TASKS
from .engine import Engine, Question, Scored
from .errors import Blocked
from .exchange import Exchange
from .guard import GuardReasonerGuard

_AT_ONCE = 16
"""Texts that are judged together."""


@dataclass(frozen=True)
class Outcome:
    """What came of one case."""

    case: Case
    plain: bool
    """Whether the text is blocked when it is plain."""
    without: bool
    """Whether the attacked form is blocked by a guard that takes each text as it stands."""
    defended: bool
    """Whether it is blocked by the guard as it is."""


class Row(BaseModel):
    """What came of several cases."""

    name: str
    cases: int
    """Attacked forms of unsafe texts."""
    plain: int
    """Those whose text is blocked when it is plain; the next two are out of these."""
    without: int
    """Still blocked without views."""
    defended: int
    """Still blocked with them."""
    controls: int
    """Attacked forms of harmless texts that pass when they are plain; the next two are out of these."""
    false_without: int
    """Blocked without views."""
    false_defended: int
    """Blocked with them."""

    @property
    def share(self) -> float:
        """Of attacked forms of blocked texts, those that stay blocked; 1 where there is none."""
        return self.defended / self.plain if self.plain else 1.0

    @property
    def cost(self) -> float:
        """Share of the controls that are blocked on account of the views."""
        return (self.false_defended - self.false_without) / self.controls if self.controls else 0.0


class Siege:
    """Two guards made of one, of which the first takes each text as it stands. What both are asked is judged once.

    Args:
        guard: Its model, its policy and whether it reasons are taken over.
    """

    def __init__(self, guard: GuardReasonerGuard) -> None:
        engine = _Once(guard.judge.engine)
        self._guards = tuple(
            GuardReasonerGuard(
                engine, manifest=guard.judge.manifest, policy=guard.policy, reasoning=guard.reasoning, remember=0
            )
            for _ in range(2)
        )
        self._guards[0].judge.stages.undisguise = False
        self._plain: dict[Text, bool] = {}
        self.seconds = [0.0, 0.0]
        """What judging took: of texts as they stand, and of their views besides."""

    def run(self, cases: Iterable[Case]) -> Iterator[Outcome]:
        """Carries out cases, in order; those of one attack should stand together."""
        for _, group in groupby(cases, key=lambda case: case.attack):
            together = list(group)
            for at in range(0, len(together), _AT_ONCE):
                some = together[at : at + _AT_ONCE]
                self._judge_plain([case.text for case in some])
                found = []
                for index, guard in enumerate(self._guards):
                    start = time.perf_counter()
                    found.append(blocked(guard, some))
                    self.seconds[index] += time.perf_counter() - start
                for case, without, defended in zip(some, *found, strict=True):
                    yield Outcome(case, self._plain[case.text], without, defended)

    def _judge_plain(self, texts: Sequence[Text]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._plain]
        self._plain.update(zip(new, _judged(self._guards[0], [(text, text.text) for text in new]), strict=True))


class _Once:
    """An engine that scores each question once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._scored: dict[tuple[str, ...], Scored] = {}
        self.name, self.concurrency = engine.name, engine.concurrency
        self.generate, self.split = engine.generate, engine.split

    def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
        keys = [(str(question.prompt), *question.words) for question in questions]
        new = {key: question for key, question in zip(keys, questions, strict=True) if key not in self._scored}
        self._scored.update(zip(new, self._engine.score(list(new.values()), cancel), strict=True))
        return [self._scored[key] for key in keys]


def blocked(guard: GuardReasonerGuard, cases: Sequence[Case]) -> list[bool]:
    """Whether the guard blocks each case, given to it by the door that the attack names."""
    whole = [(case.text, case.form) for case in cases if isinstance(case.form, str)]
    judged = iter(_judged(guard, whole))
    return [next(judged) if isinstance(case.form, str) else _stopped(guard, case, case.form) for case in cases]


def rows(outcomes: Iterable[Outcome], by: str = "family") -> list[Row]:
    """Outcomes counted by `family`, by `name` of the attack within it, or all together under any other word."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        attack = outcome.case.attack
        name = attack.family if by == "family" else f"{attack.family}: {attack.name}" if by == "name" else by
        groups.setdefault(name, []).append(outcome)
    return [_row(name, group) for name, group in groups.items()]


def _row(name: str, outcomes: Sequence[Outcome]) -> Row:
    unsafe = [one for one in outcomes if one.case.text.harmful]
    stopped = [one for one in unsafe if one.plain]
    controls = [one for one in outcomes if not one.case.text.harmful and not one.plain]
    return Row(
        name=name,
        cases=len(unsafe),
        plain=len(stopped),
        without=sum(one.without for one in stopped),
        defended=sum(one.defended for one in stopped),
        controls=len(controls),
        false_without=sum(one.without for one in controls),
        false_defended=sum(one.defended for one in controls),
    )


def _judged(guard: GuardReasonerGuard, forms: Sequence[tuple[Text, str]]) -> list[bool]:
    """Whether whole texts are blocked, each as the request or the answer that it is."""
    found: dict[int, bool] = {}
    for answers in (False, True):
        places = [place for place, (text, _) in enumerate(forms) if (text.request is not None) is answers]
        exchanges = [_exchange(guard, *forms[place]) for place in places]
        verdicts = guard.verdicts(exchanges, OUTPUT_TASKS if answers else ("request",))
        found.update({place: verdict.blocked for place, verdict in zip(places, verdicts, strict=True)})
    return [found[place] for place in range(len(forms))]


def _exchange(guard: GuardReasonerGuard, text: Text, form: str) -> Exchange:
    return guard.read(form) if text.request is None else guard.read(text.request, form)


def _stopped(guard: GuardReasonerGuard, case: Case, pieces: tuple[str, ...]) -> bool:
    """Whether a text in pieces is blocked on its way into a chain or a tool, or out of a stream."""

    def say(_: Any) -> Iterator[str]:
        yield from pieces

    try:
        if case.attack.door == "messages":
            guard.invoke([HumanMessage(piece) for piece in pieces])
        elif case.attack.door == "parts":
            guard.invoke([HumanMessage([{"type": "text", "text": piece} for piece in pieces])])
        elif case.attack.door == "arguments":
            guard.tool(_search)(**{f"part_{number}": piece for number, piece in enumerate(pieces)})
        elif case.text.request is None:
            list(guard.wrap(lambda _: "").transform(iter(pieces)))
        else:
            list(guard.wrap(RunnableGenerator(say)).stream(case.text.request))
    except Blocked:
        return True
    return False


def _search(**parts: Any) -> str:
    return ""

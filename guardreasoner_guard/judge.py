"""The judge: exchanges in, judgements out. Direct score first, reasoning where it is wanted.

A text longer than the model's window is judged in overlapping windows; the worst decides.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from . import answer
from .engine import Engine, Question, Scored
from .errors import EngineError, UnreadableAnswer
from .exchange import Exchange
from .model_dir import Manifest, log_odds
from .stages import Stage, Stages
from .template import template
from .told import Teller
from .verdict import LABELS, TASKS, Mode, ReasoningStep, Task

logger = logging.getLogger(__name__)

Reasoning = Literal["adaptive", "always", "never"]

_RETRIES = 4
"""Answers sampled, in one batch, when the first cannot be read or explains another verdict."""


@dataclass
class Judgement:
    """What the model found in one exchange."""

    labels: dict[Task, str] = field(default_factory=dict)
    scores: dict[Task, float] = field(default_factory=dict)
    steps: tuple[ReasoningStep, ...] = ()
    by_score: dict[Task, str] = field(default_factory=dict)
    by_reasoning: dict[Task, str] = field(default_factory=dict)
    unreadable: int = 0
    """Written answers that lacked a label."""
    mode: Mode = "direct"
    windows: int = 1
    prompt_tokens: int = 0
    generated_tokens: int = 0

    @property
    def consistent(self) -> bool:
        """Whether score and written answer, where there are both, say the same."""
        return all(self.by_score.get(task, label) == label for task, label in self.by_reasoning.items())


class Judge:
    """Asks an engine about exchanges in the words of a manifest's template.

    Args:
        engine: Runs the model.
        manifest: Its template, thresholds and window, and which of score and reasoning decides.
        undisguise: Whether other readings of a disguised text are judged beside it; see `views`.
    """

    def __init__(self, engine: Engine, manifest: Manifest, *, undisguise: bool = True) -> None:
        self.engine = engine
        self.manifest = manifest
        self._template = template(manifest.template, manifest.policy)
        self.stages = Stages(engine, self._template, manifest.window, undisguise)

    def judge(
        self,
        exchanges: Sequence[Exchange],
        reasoning: Reasoning,
        *,
        tasks: Iterable[Task] = TASKS,
        blocks: Callable[[dict[Task, str]], bool] = lambda labels: False,
        retell: bool = True,
        cancel: threading.Event | None = None,
        settled: list[Judgement] | None = None,
        told: Callable[[ReasoningStep], None] | None = None,
    ) -> list[Judgement]:
        """Judges exchanges, in order.

        Args:
            exchanges: What to judge.
            reasoning: `never` scores only; `always` writes an answer for each; `adaptive` writes one in doubt
                and for what would be blocked.
            tasks: Labels that are wanted; those of a response that is not there are left out anyway.
            blocks: Whether labels would block, for `adaptive`.
            retell: Whether an explanation that ends otherwise than the score is sampled again; no label depends
                on it, so that an evaluation does without.
            cancel: Set by another thread to make the engine stop.
            settled: Filled with the judgements once their labels stand and only explanations are missing.
            told: Told each step as it is written; of explanations that are written anew, the first.

        Raises:
            EngineError: The model could not be run. Where it fails only to explain what is settled, the
                judgements come without explanation.
        """
        wanted = set(tasks)
        judgements = [Judgement() for _ in exchanges]
        stages = [stage for i, exchange in enumerate(exchanges) for stage in self.stages.of(i, exchange, wanted)]
        reasons_judge = self.manifest.decides == "reasoning" and not self._template.verdict_first
        if not (reasoning == "always" and reasons_judge):
            self._score(stages, judgements, cancel)
        chosen = [s for s in self._worst(stages, judgements) if self._reasons(s, judgements, reasoning, blocks)]
        if reasons_judge:
            self._explain(chosen, judgements, retell, cancel, told)
        else:
            if settled is not None:
                settled += judgements
            try:
                self._explain(chosen, judgements, retell, cancel, told)
            except EngineError as error:
                logger.warning("what was judged could not be explained: %s", error)
        for stage in stages:
            if not judgements[stage.exchange].labels.keys() >= set(stage.tasks):
                raise EngineError(
                    "The model gave no label for a task that was asked about. See `guardreasoner doctor`."
                )
        return judgements

    def _score(self, stages: list[Stage], judgements: Sequence[Judgement], cancel: threading.Event | None) -> None:
        """Scores every label of every stage; where a label is asked after others, in rounds, else at once."""
        known: list[dict[Task, str]] = [{} for _ in stages]
        rounds = [(task,) for task in TASKS] if self._template.chained else [TASKS]
        for round_ in rounds:
            asked = [
                (index, task)
                for index, stage in enumerate(stages)
                for task in round_
                if task in stage.tasks or self._template.chained
            ]
            questions = [
                Question(stages[index].prompt + self._template.score_prefix(task, known[index]), LABELS[task])
                for index, task in asked
            ]
            for (index, task), scored in zip(asked, self.engine.score(questions, cancel), strict=True):
                known[index][task] = self._take(task, scored, stages[index], judgements[stages[index].exchange])

    def _take(self, task: Task, scored: Scored, stage: Stage, judgement: Judgement) -> str:
        """Enters one score; returns its label."""
        probability = scored.probabilities[0]
        if not 0 <= probability <= 1:
            raise EngineError(f"The model's score is {probability}, not a probability. See `guardreasoner doctor`.")
        if task in self.manifest.calibration:
            probability = self.manifest.calibration[task].apply(probability)
        judgement.prompt_tokens += scored.tokens
        label = LABELS[task][0 if probability >= self.manifest.thresholds[task] else 1]
        if task in stage.tasks:
            if task != "completion":
                stage.harm = max(stage.harm, probability)
                stage.harmful |= label == LABELS[task][0]
            # whether an answer refuses is said at its beginning, so its first window decides that
            if task not in judgement.scores or (probability > judgement.scores[task] and task != "completion"):
                judgement.scores[task] = probability
                judgement.labels[task] = judgement.by_score[task] = label
        return label

    def _worst(self, stages: list[Stage], judgements: list[Judgement]) -> list[Stage]:
        """The windows worth reasoning about.

        Of each stage the one that scores worst. Where reasoning decides, all that score harmful, lest what is
        said of one window acquit another; and all, where none was scored.
        """
        groups: dict[tuple[int, tuple[Task, ...]], list[Stage]] = {}
        for stage in stages:
            groups.setdefault((stage.exchange, stage.tasks), []).append(stage)
        worst: list[Stage] = []
        for (index, _), windows in groups.items():
            judgements[index].windows = max(judgements[index].windows, len(windows))
            suspect = [window for window in windows if window.harmful] if self.manifest.decides == "reasoning" else []
            scored = bool(judgements[index].scores)
            worst += (suspect or [max(windows, key=lambda window: window.harm)]) if scored else windows
        return worst

    def _reasons(
        self,
        stage: Stage,
        judgements: list[Judgement],
        reasoning: Reasoning,
        blocks: Callable[[dict[Task, str]], bool],
    ) -> bool:
        if reasoning != "adaptive":
            return reasoning == "always"
        judgement = judgements[stage.exchange]
        if blocks({task: judgement.labels[task] for task in stage.tasks}):
            return True
        return any(
            abs(log_odds(judgement.scores[task]) - log_odds(self.manifest.thresholds[task])) < self.manifest.doubt[task]
            for task in stage.tasks
        )

    def _explain(
        self,
        stages: list[Stage],
        judgements: list[Judgement],
        retell: bool,
        cancel: threading.Event | None,
        told: Callable[[ReasoningStep], None] | None,
    ) -> None:
        """Writes a reasoned answer to each stage and reads it."""
        texts = self._write(stages, judgements, cancel, told=told)
        askew: list[int] = []
        for index, stage in enumerate(stages):
            judgement = judgements[stage.exchange]
            judgement.mode = "reasoned"
            try:
                labels = dict(answer.read(texts[index], stage.tasks).labels)
            except UnreadableAnswer:
                judgement.unreadable += 1
                labels = {}
            if not labels and self.manifest.decides == "reasoning":
                labels = self._force(stage, texts[index], judgement, cancel)
            elif self.manifest.decides == "score" and labels != {t: judgement.labels[t] for t in stage.tasks}:
                askew.append(index)
            for task, label in labels.items():
                # over several windows harm that was found once stays found, and the first says whether it refuses
                if task not in judgement.by_reasoning or (task != "completion" and label == LABELS[task][0]):
                    judgement.by_reasoning[task] = label
            if self.manifest.decides == "reasoning":
                judgement.labels.update({task: judgement.by_reasoning[task] for task in stage.tasks})
        if retell:
            texts = self._retold(stages, texts, askew, judgements, cancel)
        for stage, text in zip(stages, texts, strict=True):
            judgements[stage.exchange].steps += answer.read_steps(text)

    def _write(
        self,
        stages: Sequence[Stage],
        judgements: list[Judgement],
        cancel: threading.Event | None,
        temperature: float = 0.0,
        told: Callable[[ReasoningStep], None] | None = None,
    ) -> list[str]:
        """One answer a stage, written side by side."""
        if not stages:
            return []
        prefixes = [self._prefix(stage, judgements[stage.exchange]) for stage in stages]
        prompts = [stage.prompt + prefix for stage, prefix in zip(stages, prefixes, strict=True)]
        teller = None if told is None else Teller(told, prefixes)
        written = self.engine.generate(
            prompts,
            max_tokens=self._template.longest_answer,
            temperature=temperature,
            top_p=0.95,
            seed=1,
            cancel=cancel,
            **({} if teller is None else {"heard": teller.hear}),
        )
        for stage, one in zip(stages, written, strict=True):
            judgements[stage.exchange].generated_tokens += one.tokens
        texts = [prefix + one.text for prefix, one in zip(prefixes, written, strict=True)]
        if teller is not None:
            teller.finish(texts)
        return texts

    def _prefix(self, stage: Stage, judgement: Judgement) -> str:
        """How the answer to a stage is made to begin.

        Where verdicts come first, with those that the scores reached. Else with the first task of its group,
        whichever of them are wanted, as it was taught.
        """
        if self._template.verdict_first:
            return self._template.reasoning_prefix(stage.tasks, judgement.labels)
        group = next(group for group in self._template.stages if stage.tasks[0] in group)
        return self._template.reasoning_prefix(group)

    def _force(self, stage: Stage, text: str, judgement: Judgement, cancel: threading.Event | None) -> dict[Task, str]:
        """Ends an answer that cannot be read: after its reasoning, the labels are scored."""
        reasons = text.split("\nAnswers:")[0].rstrip("-\n ")
        forced = Judgement()
        self._score([Stage(0, stage.tasks, stage.prompt + f"{reasons}\n\n---\n\n")], [forced], cancel)
        judgement.prompt_tokens += forced.prompt_tokens
        return forced.labels

    def _retold(
        self,
        stages: list[Stage],
        texts: list[str],
        askew: list[int],
        judgements: list[Judgement],
        cancel: threading.Event | None,
    ) -> list[str]:
        """Where the score decides and an answer ends otherwise, samples explanations until one ends as it did.

        Where none does, the first stays; the verdict is marked as inconsistent either way.
        """
        again = [index for index in askew for _ in range(_RETRIES)]
        told = dict(enumerate(texts))
        agreed: set[int] = set()
        for index, text in zip(
            again, self._write([stages[i] for i in again], judgements, cancel, temperature=0.7), strict=True
        ):
            labels = judgements[stages[index].exchange].labels
            try:
                agrees = answer.read(text, stages[index].tasks).labels == {t: labels[t] for t in stages[index].tasks}
            except UnreadableAnswer:
                continue
            if agrees and index not in agreed:
                agreed.add(index)
                told[index] = text
        return list(told.values())

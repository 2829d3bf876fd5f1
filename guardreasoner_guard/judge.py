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
from .errors import BadInput, EngineError, UnreadableAnswer
from .exchange import Exchange
from .model_dir import Manifest, log_odds
from .template import Prompt, template
from .verdict import LABELS, TASKS, Mode, ReasoningStep, Task
from .views import views

logger = logging.getLogger(__name__)

Reasoning = Literal["adaptive", "always", "never"]

_OVERLAP = 64
"""Tokens two neighbouring windows share, so that no phrase is seen only in halves; a quarter of a small window."""
_REQUEST_SHARE = 0.5
"""Part of the window a request may fill when a response is judged with it."""
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


@dataclass
class _Stage:
    """Tasks of one exchange that are asked together, over one window of its text."""

    exchange: int
    tasks: tuple[Task, ...]
    prompt: Prompt
    harm: float = 0.0
    """Highest score of a label that is about harm."""
    harmful: bool = False
    """Whether a score says harmful."""


class _Teller:
    """Tells the steps of answers that are being written, each once, when it is complete."""

    def __init__(self, told: Callable[[ReasoningStep], None], prefixes: Sequence[str]) -> None:
        self._told = told
        self._prefixes = prefixes
        self._counts = [0] * len(prefixes)

    def hear(self, index: int, text: str) -> None:
        """Hears what has been written to one prompt; its last step may go on."""
        self._tell(index, answer.read_steps(self._prefixes[index] + text)[:-1])

    def finish(self, texts: Sequence[str]) -> None:
        """Hears the whole answers."""
        for index, text in enumerate(texts):
            self._tell(index, answer.read_steps(text))

    def _tell(self, index: int, steps: Sequence[ReasoningStep]) -> None:
        for step in steps[self._counts[index] :]:
            self._told(step)
        self._counts[index] = max(self._counts[index], len(steps))


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
        self.undisguise = undisguise
        self._template = template(manifest.template, manifest.policy)

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
        stages = [stage for i, exchange in enumerate(exchanges) for stage in self._stages(i, exchange, wanted)]
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

    def _stages(self, index: int, exchange: Exchange, wanted: set[Task]) -> list[_Stage]:
        """The prompts an exchange takes; long texts take several a stage."""
        answered = exchange.response is not None
        stages = []
        for group in self._template.stages:
            asked = tuple(t for t in group if t in wanted and (t == "request" or answered))
            if not asked:
                continue
            alone = group == ("request",)
            for request, response in self._windows(exchange, alone):
                prompt = self._template.render(request, None if alone else response, exchange.history)
                stages.append(_Stage(index, asked, prompt))
        if wanted and not stages:
            raise BadInput("Only labels of a response were asked for, and there is none. Pass the response.")
        return stages

    def _windows(self, exchange: Exchange, alone: bool) -> list[tuple[str, str | None]]:
        """The (request, response) texts to judge; every token of the texts that are asked about is in one."""
        size = self.manifest.window
        if sum(len(text) for _, text in exchange.history) > 4 * size:
            raise BadInput("The history is longer than the model's window. Pass the latest turns alone.")
        if exchange.response is None or alone:
            return [(part, None) for part in self._readings(exchange.request, size)]
        room = int(size * _REQUEST_SHARE)
        one_stage = self._template.stages == (TASKS,)
        requests = self._readings(exchange.request, room) if one_stage else self._split(exchange.request, room)
        responses = self._readings(exchange.response, size - room)
        # beside a response, a long request stands with its two ends, where asks are made; where one stage
        # asks about both, its other windows follow with the response's beginning
        setting = exchange.request if requests[0] == exchange.request else self._ends(exchange.request, room)
        windows: list[tuple[str, str | None]] = [(setting, part) for part in responses]
        if one_stage and len(requests) > 1:
            windows += [(part, responses[0]) for part in requests]
        return windows

    def _readings(self, text: str, size: int) -> list[str]:
        """The windows of a text as it stands, then what else each may be meant to say.

        The first decides whether a response refuses.
        """
        parts = self._split(text, size)
        if not self.undisguise:
            return parts
        return [*parts, *(window for part in parts for view in views(part) for window in self._split(view, size))]

    def last_window(self, response: str) -> int:
        """Where the last window over a response begins, in characters: what its continuation is judged with."""
        size = self.manifest.window
        return len(response) - len(self._split(response, size - int(size * _REQUEST_SHARE))[-1])

    def _split(self, text: str, size: int) -> list[str]:
        return self.engine.split(text, size, min(_OVERLAP, size // 4))

    def _ends(self, text: str, room: int) -> str:
        head = self.engine.split(text, room // 2, 0)[0]
        tail = text[-len(head) :]
        return f"{head}\n[...]\n{tail}"

    def _score(self, stages: list[_Stage], judgements: Sequence[Judgement], cancel: threading.Event | None) -> None:
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

    def _take(self, task: Task, scored: Scored, stage: _Stage, judgement: Judgement) -> str:
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

    def _worst(self, stages: list[_Stage], judgements: list[Judgement]) -> list[_Stage]:
        """The windows worth reasoning about.

        Of each stage the one that scores worst. Where reasoning decides, all that score harmful, lest what is
        said of one window acquit another; and all, where none was scored.
        """
        groups: dict[tuple[int, tuple[Task, ...]], list[_Stage]] = {}
        for stage in stages:
            groups.setdefault((stage.exchange, stage.tasks), []).append(stage)
        worst: list[_Stage] = []
        for (index, _), windows in groups.items():
            judgements[index].windows = max(judgements[index].windows, len(windows))
            suspect = [window for window in windows if window.harmful] if self.manifest.decides == "reasoning" else []
            scored = bool(judgements[index].scores)
            worst += (suspect or [max(windows, key=lambda window: window.harm)]) if scored else windows
        return worst

    def _reasons(
        self,
        stage: _Stage,
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
        stages: list[_Stage],
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
        stages: Sequence[_Stage],
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
        teller = None if told is None else _Teller(told, prefixes)
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

    def _prefix(self, stage: _Stage, judgement: Judgement) -> str:
        """How the answer to a stage is made to begin.

        Where verdicts come first, with those that the scores reached. Else with the first task of its group,
        whichever of them are wanted, as it was taught.
        """
        if self._template.verdict_first:
            return self._template.reasoning_prefix(stage.tasks, judgement.labels)
        group = next(group for group in self._template.stages if stage.tasks[0] in group)
        return self._template.reasoning_prefix(group)

    def _force(self, stage: _Stage, text: str, judgement: Judgement, cancel: threading.Event | None) -> dict[Task, str]:
        """Ends an answer that cannot be read: after its reasoning, the labels are scored."""
        reasons = text.split("\nAnswers:")[0].rstrip("-\n ")
        forced = Judgement()
        self._score([_Stage(0, stage.tasks, stage.prompt + f"{reasons}\n\n---\n\n")], [forced], cancel)
        judgement.prompt_tokens += forced.prompt_tokens
        return forced.labels

    def _retold(
        self,
        stages: list[_Stage],
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

"""The guard as a decision model of LangChain (langchain-core 1.8 and later), for whatever asks one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.messages import UsageMetadata

from guardreasoner_guard.decorator import describe_call
from guardreasoner_guard.errors import BadInput, MissingExtra
from guardreasoner_guard.exchange import Exchange, read_exchange
from guardreasoner_guard.guard import GuardReasonerGuard
from guardreasoner_guard.verdict import LABELS, TASKS, Task, Verdict

try:
    from langchain_core.decisions import BaseDecisionModel, Choice, ChoiceAnswer, ClassifierResponse, Noul, NoulAnswer
    from langchain_core.decisions.types import Question, State
except ImportError as error:
    raise MissingExtra("langchain-core 1.8", "decisions") from error


class GuardDecision(ClassifierResponse):
    """Answers, with the verdict they were read from."""

    verdict: Verdict


class GuardDecisionModel(BaseDecisionModel):
    """A decision model that answers one thing: is this harmful.

    A `Noul` is answered with the probability that it is, whatever its instructions say, since the guard's question
    is fixed; 0.5 and more is what the guard blocks. One that is named `request`, `completion` or `response` is
    answered with that label's probability. A `Choice` between a label's two words is answered with one of them.
    Fails closed: what cannot be judged is answered with 1, and `verdict.outcome` says so.

    Args:
        guard: Judges. Of a state with a `tool_call` it judges the call, of any other what `guard.check` would.
    """

    guard: GuardReasonerGuard

    def __init__(self, guard: GuardReasonerGuard, **fields: Any) -> None:
        fields.setdefault("model", guard.judge.engine.name)
        super().__init__(guard=guard, **fields)  # type: ignore[call-arg]

    @property
    def _provider(self) -> str:
        return "guardreasoner"

    def _classify(self, state: State, questions: dict[str, Question]) -> GuardDecision:
        exchange = _exchange(state)
        _answerable(questions)
        return self._decision(self.guard.check(exchange), questions)

    async def _aclassify(self, state: State, questions: dict[str, Question]) -> GuardDecision:
        exchange = _exchange(state)
        _answerable(questions)
        return self._decision(await self.guard.acheck(exchange), questions)

    def _decision(self, verdict: Verdict, questions: Mapping[str, Question]) -> GuardDecision:
        read, written = verdict.usage.prompt_tokens, verdict.usage.generated_tokens
        return GuardDecision(
            model=self.model,
            answers={name: self._answer(verdict, name, question) for name, question in questions.items()},
            usage=UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written),
            verdict=verdict,
        )

    def _answer(self, verdict: Verdict, name: str, question: Question) -> NoulAnswer | ChoiceAnswer:
        if isinstance(question, Choice):
            task = _task_of(question, verdict)
            first, second = LABELS[task]
            likely = _probability(verdict, task)
            choice, sure = (first, likely) if likely >= 0.5 else (second, 1 - likely)
            return ChoiceAnswer(
                type="choice", choice=choice, confidence=sure, probabilities={first: likely, second: 1 - likely}
            )
        asked = next((task for task in TASKS if task == name), None)
        if asked is not None:
            return NoulAnswer(type="noul", noul=_probability(verdict, asked))
        blocking = [verdict.scores[task] for task in self.guard.policy.block if task in verdict.scores]
        worst = max(blocking, default=float(verdict.blocked))
        return NoulAnswer(type="noul", noul=_sided(1.0 if verdict.outcome != "verdict" else worst, verdict.blocked))


def _probability(verdict: Verdict, task: Task) -> float:
    """How likely a label is the positive one, on the side of one half on which the verdict stands."""
    label = getattr(verdict, task)
    if label is None:  # not judged: there is no response, or no judgement was reached
        return float(verdict.outcome != "verdict" and verdict.blocked)
    positive = label == LABELS[task][0]
    return _sided(verdict.scores.get(task, float(positive)), positive)


def _sided(probability: float, positive: bool) -> float:
    return max(probability, 0.5) if positive else min(probability, 0.499)


def _task_of(question: Choice, verdict: Verdict) -> Task:
    words = set(question.criteria)
    fitting: list[Task] = [task for task in TASKS if set(LABELS[task]) == words]
    return next((task for task in reversed(fitting) if getattr(verdict, task) is not None), fitting[0])


def _answerable(questions: Mapping[str, Question]) -> None:
    for name, question in questions.items():
        known = isinstance(question, Noul)
        if isinstance(question, Choice):
            known = any(set(words) == set(question.criteria) for words in LABELS.values())
        if not known:
            raise BadInput(
                f"The guard cannot answer {name!r}. Ask a Noul (is it harmful?), or a Choice between 'harmful' and "
                "'unharmful' or between 'refusal' and 'compliance'."
            )


def _exchange(state: Any) -> Exchange:
    call = state.get("tool_call") if isinstance(state, Mapping) else None
    if isinstance(call, Mapping) and "name" in call:
        return Exchange(request=describe_call(str(call["name"]), call.get("args") or {}))
    return read_exchange(state)

"""The guard that is put to the proof: anything that predicts, and a judge of this package."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from guardreasoner_guard.exchange import Exchange
from guardreasoner_guard.judge import Judge, Reasoning
from guardreasoner_guard.policy import Policy

from .benchmarks import ASKS, BenchmarkRow, BenchmarkTask
from .prediction import Prediction


class Subject(Protocol):
    """Whatever says harmful or not, refusal or not, of labelled rows."""

    name: str
    reasoning: str
    tasks: tuple[BenchmarkTask, ...]
    """What it can be asked."""
    made_by: dict[str, Any]
    """What tells its predictions from those of another."""

    def predict(self, rows: Sequence[BenchmarkRow]) -> list[Prediction]:
        """What it says of rows of one task, in their order.

        Raises:
            EngineError: It could not be asked.
        """
        ...


class JudgeSubject:
    """A judge of this package.

    Args:
        judge: Asks the model.
        reasoning: `never`, `always` or `adaptive`.
        policy: What would be blocked, about which `adaptive` reasons.
    """

    tasks: tuple[BenchmarkTask, ...] = tuple(ASKS)

    def __init__(self, judge: Judge, reasoning: Reasoning, policy: Policy | None = None) -> None:
        self.judge, self.policy = judge, policy or Policy()
        self.reasoning: str = reasoning
        self._reasoning = reasoning
        self.name = judge.engine.name
        self.made_by = {
            "model": judge.manifest.model_dump(mode="json"), "engine": self.name, "reasoning": reasoning,
            "block": list(self.policy.block),
        }  # fmt: skip

    def predict(self, rows: Sequence[BenchmarkRow]) -> list[Prediction]:
        """See `Subject.predict`."""
        task = ASKS[rows[0].task]
        exchanges = [Exchange(request=row.prompt, response=row.response) for row in rows]
        start = time.perf_counter()
        found = self.judge.judge(exchanges, self._reasoning, tasks=(task,), blocks=self.policy.blocks, retell=False)
        spent = (time.perf_counter() - start) * 1000 / len(rows)
        return [
            Prediction.of(
                row,
                judgement.labels[task],
                score=judgement.scores.get(task),
                written=judgement.by_reasoning.get(task),
                unreadable=judgement.unreadable > 0,
                reasoning=[step.text for step in judgement.steps],
                tokens=judgement.prompt_tokens + judgement.generated_tokens,
                milliseconds=spent,
            )
            for row, judgement in zip(rows, found, strict=True)
        ]

"""The guard that is put to the proof: one of this package, or a moderation endpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import tenacity

from guardreasoner_guard.errors import BadInput, EngineError, MissingExtra
from guardreasoner_guard.exchange import Exchange
from guardreasoner_guard.judge import Judge, Reasoning
from guardreasoner_guard.policy import Policy

from .benchmarks import ASKS, BenchmarkRow, BenchmarkTask
from .prediction import Prediction

if TYPE_CHECKING:
    import httpx

_TRIES = 5
_LONGEST_WAIT = 30.0
"""Seconds between two tries, at most."""


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
        found = self.judge.judge(
            exchanges, self._reasoning, tasks=(task,), blocks=self.policy.blocks, retell=False
        )  # fmt: skip
        spent = (time.perf_counter() - start) * 1000 / len(rows)
        return [
            Prediction(
                id=row.id,
                benchmark=row.benchmark,
                task=row.task,
                label=row.label,
                predicted=judgement.labels[task],
                score=judgement.scores.get(task),
                written=judgement.by_reasoning.get(task),
                unreadable=judgement.unreadable > 0,
                reasoning=[step.text for step in judgement.steps],
                tokens=judgement.prompt_tokens + judgement.generated_tokens,
                milliseconds=round(spent, 2),
            )
            for row, judgement in zip(rows, found, strict=True)
        ]


class ModerationSubject:
    """An endpoint of the form of OpenAI's `POST /v1/moderations`: flagged is harmful, and it tells no refusals.

    It is asked about the request, or about the answer alone. Its highest category score stands for the direct score.

    Args:
        url: The server, with or without `/v1`.
        model: The model it is asked for; empty leaves it to the server.
        timeout: Seconds to wait for an answer.

    Raises:
        MissingExtra: httpx is not installed.
    """

    reasoning = "never"
    tasks: tuple[BenchmarkTask, ...] = ("prompt", "response")

    def __init__(self, url: str, model: str = "", timeout: float = 60.0) -> None:
        try:
            import httpx
        except ImportError:
            raise MissingExtra("httpx", "remote") from None
        self._url = f"{url.rstrip('/').removesuffix('/v1')}/v1/moderations"
        self._model = {"model": model} if model else {}
        key = os.environ.get("GUARDREASONER_API_KEY")
        self._client = httpx.Client(timeout=timeout, headers={"Authorization": f"Bearer {key}"} if key else {})
        self.name = f"{model or 'moderation'} at {url}"
        self.made_by: dict[str, Any] = {"moderation": self._url, "model": model}

    def predict(self, rows: Sequence[BenchmarkRow]) -> list[Prediction]:
        """See `Subject.predict`."""
        if unfit := next((row for row in rows if row.task not in self.tasks), None):
            raise BadInput(f"A moderation endpoint tells no refusals, as row {unfit.id} asks. Leave such rows out.")
        texts = [row.prompt if row.task == "prompt" else row.response or "" for row in rows]
        start = time.perf_counter()
        answer = self._ask([text.encode("utf-8", "replace").decode() for text in texts])
        spent = (time.perf_counter() - start) * 1000 / len(rows)
        try:
            results = answer.json()["results"]
            return [
                Prediction(
                    id=row.id,
                    benchmark=row.benchmark,
                    task=row.task,
                    label=row.label,
                    predicted="harmful" if result["flagged"] else "unharmful",
                    score=max(map(float, result["category_scores"].values())),
                    milliseconds=round(spent, 2),
                )
                for row, result in zip(rows, results, strict=True)
            ]
        except (AttributeError, KeyError, TypeError, ValueError):
            raise EngineError(
                f"{self._url} did not answer as a moderation endpoint does. Check that it is one."
            ) from None

    def _ask(self, texts: list[str]) -> httpx.Response:
        import httpx

        def passes(error: BaseException) -> bool:
            status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
            return isinstance(error, httpx.RequestError) or status == 429 or (status is not None and status >= 500)

        trying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(passes), stop=tenacity.stop_after_attempt(_TRIES), reraise=True,
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT),
        )  # fmt: skip
        try:
            for attempt in trying:
                with attempt:
                    return self._client.post(self._url, json={**self._model, "input": texts}).raise_for_status()
        except httpx.HTTPStatusError as error:
            raise EngineError(
                f"{self._url} refused with status {error.response.status_code}. Check the URL and the model's name; a "
                "key is read from GUARDREASONER_API_KEY."
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EngineError(f"{self._url} gave no answer ({type(error).__name__}). Check that it runs.") from None
        raise AssertionError("a retry either returns or raises")

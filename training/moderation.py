"""A moderation endpoint, put to the proof like a guard."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from guardreasoner_guard.errors import BadInput, EngineError, MissingExtra
from guardreasoner_guard.remote_engine import bearer, read_url
from guardreasoner_guard.retry import post

from .benchmarks import BenchmarkRow, BenchmarkTask
from .prediction import Prediction

if TYPE_CHECKING:
    import httpx

_TRIES = 5
_BACKOFF = 0.5
"""Seconds before the second try, at most; each wait after it may be twice as long."""


class ModerationSubject:
    """An endpoint of the form of OpenAI's `POST /v1/moderations`: flagged is harmful, and it tells no refusals.

    It is asked about the request, or about the answer alone. Its highest category score stands for the direct score.

    Args:
        url: The server, with or without `/v1`.
        model: The model it is asked for; empty leaves it to the server.
        timeout: Seconds to wait for an answer.

    Raises:
        MissingExtra: httpx is not installed.
        BadInput: The URL is none, or no header can hold the key.
    """

    reasoning = "never"
    tasks: tuple[BenchmarkTask, ...] = ("prompt", "response")

    def __init__(self, url: str, model: str = "", timeout: float = 60.0) -> None:
        try:
            import httpx
        except ImportError:
            raise MissingExtra("httpx", "remote") from None
        told, auth = read_url(url)
        self._url = f"{told}/v1/moderations"
        self._model = {"model": model} if model else {}
        key = bearer(os.environ.get("GUARDREASONER_API_KEY"))
        self._client = httpx.Client(timeout=timeout, headers=key, auth=auth)
        self.name = f"{model or 'moderation'} at {told}"
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
                Prediction.of(
                    row,
                    "harmful" if result["flagged"] else "unharmful",
                    score=max(map(float, result["category_scores"].values())),
                    milliseconds=spent,
                )
                for row, result in zip(rows, results, strict=True)
            ]
        except (AttributeError, KeyError, TypeError, ValueError):
            raise EngineError(
                f"{self._url} did not answer as a moderation endpoint does. Check that it is one."
            ) from None

    def _ask(self, texts: list[str]) -> httpx.Response:
        import httpx

        body = {**self._model, "input": texts}
        try:
            return post(self._client, self._url, body, tries=_TRIES, first=_BACKOFF).raise_for_status()
        except httpx.HTTPStatusError as error:
            raise EngineError(
                f"{self._url} refused with status {error.response.status_code}. Check the URL and the model's name; a "
                "key is read from GUARDREASONER_API_KEY."
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EngineError(f"{self._url} gave no answer ({type(error).__name__}). Check that it runs.") from None

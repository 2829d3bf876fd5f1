"""The engine over a transformers checkpoint: answers of a model that has not been exported."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from guardreasoner_guard.engine import Heard, Question, Scored, Written, windows
from guardreasoner_guard.errors import EngineError
from guardreasoner_guard.template import Prompt

from .base import load_base
from .encode import plain_ids, prompt_ids

BATCH = 32
"""Most texts that are written side by side."""


class TorchEngine:
    """Runs a checkpoint on the GPU where there is one. Calls from several threads are served one after another.

    Args:
        checkpoint: A transformers folder, adapters merged.

    Raises:
        BadInput: It cannot be loaded.
    """

    concurrency = 1

    def __init__(self, checkpoint: Path) -> None:
        self.name = str(checkpoint)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model, self._tokenizer = load_base(str(checkpoint), torch.bfloat16 if self.device == "cuda" else torch.float32)
        self._model = model.to(self.device).eval()
        self._lock = threading.Lock()

    def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
        """Probabilities of the words' first tokens after each prompt; see `Engine.score`."""
        found = []
        for question in questions:
            ids = self._encode(question.prompt)
            words = [plain_ids(self._tokenizer, f" {word}")[0] for word in question.words]
            if len(set(words)) < len(words):
                raise EngineError(f"{question.words} begin with the same token. Ask with a template of other words.")
            with self._running(cancel), torch.no_grad():
                logits = self._model(input_ids=torch.tensor([ids], device=self.device), logits_to_keep=1).logits
            odds = logits[0, -1, words].double().softmax(-1)
            if not torch.isfinite(odds).all():
                raise EngineError("The model's scores are not numbers. Train it again with a smaller learning rate.")
            found.append(Scored(tuple(odds.tolist()), len(ids)))
        return found

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
        """Continues the prompts in batches of like length, telling none before it is written; see `Engine.generate`."""
        encoded = [self._encode(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        written: dict[int, Written] = {}
        with self._running(cancel), torch.random.fork_rng():
            torch.manual_seed(seed)
            for start in range(0, len(order), BATCH):
                batch = order[start : start + BATCH]
                texts = self._write([encoded[index] for index in batch], max_tokens, sampling, cancel)
                written.update(zip(batch, texts, strict=True))
        return [written[index] for index in range(len(prompts))]

    def split(self, text: str, size: int, overlap: int) -> list[str]:
        """Windows over the text's tokens; every character is in at least one."""
        readable = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates, which no tokeniser takes
        offsets = self._tokenizer(readable, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        return windows(text, offsets, size, overlap)

    @contextmanager
    def _running(self, cancel: threading.Event | None) -> Iterator[None]:
        """One caller at a time; whatever torch raises leaves as an EngineError."""
        with self._lock:
            if cancel is not None and cancel.is_set():
                raise EngineError("The call was cancelled.")
            try:
                yield
            except RuntimeError as error:  # torch's out-of-memory errors are of this kind too
                raise EngineError(
                    f"The model could not be run: {error}. Mine fewer samples at once, or shorter rows."
                ) from error

    def _encode(self, prompt: Prompt) -> list[int]:
        return prompt_ids(self._tokenizer, prompt.parts)

    def _write(
        self, batch: list[list[int]], max_tokens: int, sampling: dict[str, Any], cancel: threading.Event | None
    ) -> list[Written]:
        longest = max(map(len, batch))
        end = self._tokenizer.eos_token_id
        padded = torch.tensor([[end] * (longest - len(ids)) + ids for ids in batch], device=self.device)
        seen = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in batch], device=self.device)
        with torch.no_grad():
            rows = self._model.generate(
                input_ids=padded, attention_mask=seen, max_new_tokens=max_tokens, eos_token_id=end, pad_token_id=end,
                stopping_criteria=StoppingCriteriaList([_Cancelled(cancel)]), **sampling,
            )[:, longest:].tolist()  # fmt: skip
        if cancel is not None and cancel.is_set():
            raise EngineError("The call was cancelled.")
        written = []
        for row in rows:
            complete = end in row
            ids = row[: row.index(end)] if complete else row
            written.append(Written(self._tokenizer.decode(ids), len(ids) + complete, complete))
        return written


class _Cancelled(StoppingCriteria):  # type: ignore[misc]  # transformers is not typed for it
    def __init__(self, cancel: threading.Event | None) -> None:
        self.cancel = cancel

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        stop = self.cancel is not None and self.cancel.is_set()
        return torch.full((input_ids.shape[0],), stop, dtype=torch.bool, device=input_ids.device)

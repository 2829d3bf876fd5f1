"""Runs a model directory on ONNX Runtime: tokens in, probabilities and tokens out.

It knows nothing of guarding. Whatever the last prompt and the next have in common from the start (the
instruction, a request that is asked about twice) is read once: the key-value cache is rewound, not rebuilt.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from .engine import Question, Scored, Written, windows
from .errors import BadModelDir, DeviceUnavailable, EngineError, MissingExtra
from .model_dir import Device, ModelDir
from .template import Prompt

logger = logging.getLogger(__name__)

BATCH = 16
"""Most texts that are written side by side; more gain little on a CPU and cost memory."""
_MOST_THREADS = 8
"""Left to itself the runtime takes one thread on some virtual machines; beyond some eight little is gained."""
_MOST_TOKENS = 1000
"""Likeliest tokens that a sample is drawn from."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_MARGIN = 384
"""Cache kept beyond a window: instruction, markers, forced prefix and a short answer fit in it."""


class OnnxEngine:
    """One model on one device. Calls from several threads are served one after another.

    Args:
        model: A checked model directory.
        device: `auto` takes CUDA where it is usable and the graph was built for it.

    Raises:
        DeviceUnavailable: `cuda` was asked for and cannot be had.
        MissingExtra: ONNX Runtime is not installed.
        BadModelDir: The runtime or the tokeniser refuses the files.
    """

    concurrency = 1

    def __init__(self, model: ModelDir, device: Device = "auto") -> None:
        self._runtime = _runtime()
        self.device = _choose_device(self._runtime, model, device)
        self.name = f"{model.manifest.name} ({model.manifest.precision}, {self.device})"
        self._manifest = model.manifest
        self._lock = threading.Lock()
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise MissingExtra("tokenizers", "cpu") from None
        try:
            self._tokenizer = Tokenizer.from_file(str(model.path / "tokenizer.json"))
            self._tokenizer.encode_special_tokens = True  # text never becomes a control token
            tokens = {word: self._ids(f" {word}")[0] for word in self._manifest.label_tokens}
            if tokens != self._manifest.label_tokens:
                raise BadModelDir(f"The tokeniser in {model.path} is not the model's. Copy the whole directory again.")
            config = self._runtime.Config(str(model.path))
            config.clear_providers()
            if self.device == "cuda":
                config.append_provider("cuda")
            else:
                options = {"intra_op_num_threads": min(_processors(), _MOST_THREADS)}
                config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
            self._model = self._runtime.Model(config)
        except BadModelDir:
            raise
        except Exception as error:  # both libraries raise bare Exceptions
            raise BadModelDir(
                f"{model.path} cannot be loaded ({error}). Export the model again with this release's versions."
            ) from error
        self._kept: Any = None
        self._kept_ids: list[int] = []
        self._kept_room = 0

    def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
        """Probabilities of the words' first tokens after each prompt; see `Engine.score`."""
        return [self._score(question, cancel) for question in questions]

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        cancel: threading.Event | None = None,
    ) -> list[Written]:
        """Continues the prompts in batches of at most 16 of like length; see `Engine.generate`."""
        encoded = [self._encode(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
        written: dict[int, Written] = {}
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            sampling = self._sampling(temperature, top_p, seed + start)
            texts = self._write([encoded[i] for i in batch], max_tokens, sampling, cancel)
            written.update(zip(batch, texts, strict=True))
        return [written[index] for index in range(len(prompts))]

    def split(self, text: str, size: int, overlap: int) -> list[str]:
        """Windows over the text's tokens; every character is in at least one."""
        offsets = self._tokenizer.encode(_encodable(text), add_special_tokens=False).offsets
        return windows(text, offsets, size, overlap)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(_encodable(text), add_special_tokens=False).ids)

    def _encode(self, prompt: Prompt) -> list[int]:
        ids = [] if self._manifest.bos_token is None else [self._manifest.bos_token]
        for part in prompt.parts:
            ids += self._ids(part)
        return ids

    def _score(self, question: Question, cancel: threading.Event | None) -> Scored:
        ids = self._encode(question.prompt)
        words = [self._ids(f" {word}")[0] for word in question.words]
        if len(set(words)) < len(words):
            raise EngineError(f"{question.words} begin with the same token; their probabilities cannot be told apart.")
        with self._running(cancel):
            read = self._read(ids)
            logits = np.asarray(self._kept.get_logits(), dtype=np.float64)[0, -1, words]
            if not np.isfinite(logits).all():
                self._kept = None
                raise EngineError("The model's scores are not numbers. Export it in a higher precision.")
        odds = np.exp(logits - logits.max())
        return Scored(tuple(float(p) for p in odds / odds.sum()), read)

    def _read(self, ids: list[int]) -> int:
        """Brings the kept cache to hold exactly `ids`; returns how many tokens had to be read."""
        # what is interrupted half-way (Ctrl-C too) must not be taken for a whole cache by the next call
        kept, self._kept = self._kept, None
        if kept is None or len(ids) > self._kept_room:
            self._kept_room = max(len(ids), self._manifest.window + _MARGIN)
            kept, self._kept_ids = self._generator(self._kept_room, 1, {"do_sample": False}), []
        shared = 0
        # the last token is read again even where all agree, for its logits
        while shared < min(len(ids) - 1, len(self._kept_ids)) and ids[shared] == self._kept_ids[shared]:
            shared += 1
        if shared < len(self._kept_ids):
            kept.rewind_to(shared)
        kept.append_tokens(np.array(ids[shared:], dtype=np.int32))
        self._kept, self._kept_ids = kept, ids
        return len(ids) - shared

    def _write(
        self, batch: list[list[int]], max_tokens: int, sampling: dict[str, Any], cancel: threading.Event | None
    ) -> list[Written]:
        longest = max(map(len, batch))
        end = self._manifest.end_token
        # padded on the right: the attention op keeps each row's own length and overwrites the padding
        padded = np.array([ids + [end] * (longest - len(ids)) for ids in batch], dtype=np.int32)
        with self._running(cancel):
            generator = self._generator(longest + max_tokens, len(batch), sampling)
            generator.append_tokens(padded)
            while not generator.is_done():
                if cancel is not None and cancel.is_set():
                    raise EngineError("The call was cancelled.")
                generator.generate_next_token()
            rows = [np.asarray(generator.get_sequence(i))[longest:].tolist() for i in range(len(batch))]
        written = []
        for row in rows:
            complete = end in row or len(row) < max_tokens  # the last row's end token is not handed out
            ids = row[: row.index(end)] if end in row else row
            written.append(Written(self._tokenizer.decode(ids), len(ids) + complete, complete))
        return written

    def _sampling(self, temperature: float, top_p: float, seed: int) -> dict[str, Any]:
        if temperature <= 0:
            return {"do_sample": False}
        # left out, top_k is 50; with 0 the runtime (0.18, CPU) samples from beyond top_p too, and a whole
        # vocabulary costs more than the model: this many leave out nothing that top_p = 0.95 would keep
        most = min(_MOST_TOKENS, self._tokenizer.get_vocab_size())
        return {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": most, "random_seed": seed}

    def _generator(self, room: int, rows: int, sampling: dict[str, Any]) -> Any:
        params = self._runtime.GeneratorParams(self._model)
        params.set_search_options(max_length=room, batch_size=rows, **sampling)
        return self._runtime.Generator(self._model, params)

    @contextmanager
    def _running(self, cancel: threading.Event | None) -> Iterator[None]:
        """One caller at a time; whatever the runtime raises leaves as an EngineError, the cache dropped."""
        with self._lock:
            if cancel is not None and cancel.is_set():
                raise EngineError("The call was cancelled.")
            try:
                yield
            except EngineError:
                raise
            except Exception as error:  # the runtime raises RuntimeError, MemoryError and its own
                self._kept = None
                raise EngineError(f"The model could not be run: {error}. See `guardreasoner doctor`.") from error


def _processors() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _encodable(text: str) -> str:
    """The text without lone surrogates, which no tokeniser takes; its length stays."""
    return _SURROGATE.sub("\ufffd", text)


def _runtime() -> Any:
    try:
        import onnxruntime  # noqa: F401  (its library must be loaded before the next import)
        import onnxruntime_genai
    except ImportError as error:
        raise MissingExtra(error.name or "onnxruntime-genai", "cpu") from None
    onnxruntime_genai.disable_telemetry_events()  # a guard reports nothing to anyone
    return onnxruntime_genai


def _choose_device(runtime: Any, model: ModelDir, asked: Device) -> Literal["cpu", "cuda"]:
    usable = bool(runtime.is_cuda_available())
    if asked == "cpu" or (asked == "auto" and not (usable and model.manifest.device == "cuda")):
        return "cpu"
    if asked == "cuda" and not usable:
        raise DeviceUnavailable(
            "CUDA was asked for and is not usable here. Install guardreasoner-guard[cuda] in place of [cpu], check "
            "that nvidia-smi shows a GPU, or pass device='cpu'. `guardreasoner doctor` says what is missing."
        )
    if asked == "cuda" and model.manifest.device != "cuda":
        raise DeviceUnavailable(
            f"{model.manifest.name} holds a graph for the CPU ({model.manifest.precision}). Export one for CUDA "
            "(`guardreasoner export MODEL --device cuda`) and name its directory, or pass device='cpu'."
        )
    return "cuda"

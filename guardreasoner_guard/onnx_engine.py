"""Runs a model directory on ONNX Runtime: tokens in, probabilities and tokens out.

It knows nothing of guarding. Whatever a prompt has in common with one of the last from the start (the
instruction, a request that is asked about twice) is read once: the key-value cache is rewound, not rebuilt.
Short prompts that have nothing in common are read side by side.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from .batcher import Batcher
from .engine import Heard, Question, Scored, Written, windows
from .errors import BadModelDir, EngineError, MissingExtra
from .forked import renew_in_children
from .kept import Caches, common
from .model_dir import Device, ModelDir, open_model
from .model_files import Mapped
from .processor import has_vnni, threads
from .runtime import choose_device, load_runtime
from .template import Prompt
from .worker import Worker

logger = logging.getLogger(__name__)

BATCH = 16
"""Most texts that are written side by side; more gain little on a CPU and cost memory."""
_BATCH_TOKENS = 16 * 320
"""Most tokens of prompts that are read to be written to side by side, padding included: each costs 46 kB and more."""
_SHORT = 128
"""Tokens up to which prompts are read side by side; longer ones keep the processor busy by themselves."""
_PADDED = 1.25
"""How much longer than the shortest prompt of a batch another may be: what is padded is computed for nothing."""
_MOST_TOKENS = 1000
"""Likeliest tokens that a sample is drawn from."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_MARGIN = 384
"""Cache kept beyond a window: instruction, markers, forced prefix and a short answer fit in it."""


_INHERITED: list[Any] = []
"""A parent's models, in a forked child: to end them would be to wait for threads that are not there."""


class _Shared:
    """The engines that are loaded, by model and device; one is loaded at a time."""

    def __init__(self) -> None:
        self.engines: WeakValueDictionary[tuple[str, str], Batcher] = WeakValueDictionary()
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        """With nothing being loaded."""
        self.lock = threading.Lock()


_SHARED = _Shared()


def shared_engine(model: ModelDir, device: Device = "auto") -> Batcher:
    """The engine of a model directory: loaded once, however many guards use it, and given back with the last.

    Raises:
        DeviceUnavailable, MissingExtra, BadModelDir: As `OnnxEngine`.
    """
    key = (f"{model.path.resolve()}\n{model.manifest.model_dump_json()}", device)
    with _SHARED.lock:
        engine = _SHARED.engines.get(key)
        if engine is None:
            engine = _SHARED.engines[key] = Batcher(OnnxEngine(model, device))
        return engine


class OnnxEngine:
    """One model on one device. Calls from several threads are served one after another, in a thread of its own.

    In a forked child, and where its weights were written to since, it is read again, if it still is the same model.

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
        self._runtime = load_runtime()
        self.device = choose_device(self._runtime, model, device)
        self.name = f"{model.manifest.name} ({model.manifest.precision}, {self.device})"
        self._manifest = model.manifest
        self._path = model.path.resolve()
        self._worker = Worker()
        self._model: Any = None
        self._caches = self._new_caches()
        self._load(model)
        renew_in_children(self)

    def renew(self) -> None:
        """Without the model, which is read again when it is needed."""
        _INHERITED.append((self._model, self._caches))
        self._model = None

    def _load(self, model: ModelDir) -> None:
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
            if self.device == "cpu":  # a graph for CUDA names its provider, and its options, itself
                config.clear_providers()
                # a plan of memory is kept for every shape that was ever run, each length of a text that is written too
                options: dict[str, Any] = {"intra_op_num_threads": threads(), "enable_mem_pattern": False}
                if has_vnni():
                    options["session.x64quantprecision"] = "0"  # the graph asks for it, at twice the time
                config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
            loaded = self._runtime.Model(config)
            self._weights = Mapped(model.path, model.stamps)
            self._model = loaded
        except BadModelDir:
            raise
        except Exception as error:  # both libraries raise bare Exceptions
            raise BadModelDir(
                f"{model.path} cannot be loaded ({error}). Export the model again with this release's versions."
            ) from error

    def _reload(self) -> None:
        self._model, self._caches = None, self._new_caches()
        model = open_model(self._path)
        if model.manifest != self._manifest:
            raise BadModelDir(f"{self._path} holds another model now. Make a new guard of it.")
        self._load(model)

    def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
        """Probabilities of the words' first tokens after each prompt; see `Engine.score`."""
        return self._worker.run(partial(self._score, questions), cancel)

    def _score(self, questions: Sequence[Question], cancel: threading.Event) -> list[Scored]:
        encoded = [self._encode(question.prompt) for question in questions]
        words = [self._words(question) for question in questions]
        with self._running(cancel):
            batches = self._side_by_side(encoded)
        scored: dict[int, Scored] = {}
        for batch in batches:
            with self._running(cancel):
                rows = self._read_batch([encoded[index] for index in batch])
                for index, logits in zip(batch, rows, strict=True):
                    scored[index] = Scored(_odds(logits[words[index]]), len(encoded[index]))
        for index, ids in enumerate(encoded):
            if index not in scored:
                with self._running(cancel):
                    kept, read = self._caches.read(ids)
                    odds = _odds(np.asarray(kept.generator.get_logits())[0, -1, words[index]])
                    self._caches.keep(kept)
                    scored[index] = Scored(odds, read)
        return [scored[index] for index in range(len(questions))]

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
        """Continues the prompts in batches of at most 16 of like length; see `Engine.generate`.

        Greedy ones that somebody listens to are written one after another; sampled ones are not told.
        """
        return self._worker.run(partial(self._generate, prompts, max_tokens, temperature, top_p, seed, heard), cancel)

    def _generate(
        self,
        prompts: Sequence[Prompt],
        max_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
        heard: Heard | None,
        cancel: threading.Event,
    ) -> list[Written]:
        encoded = [self._encode(prompt) for prompt in prompts]
        if (len(prompts) == 1 or heard is not None) and temperature <= 0:
            return [
                self._continue(ids, max_tokens, cancel, heard and partial(heard, index))
                for index, ids in enumerate(encoded)
            ]
        order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
        written: dict[int, Written] = {}
        while len(written) < len(order):
            start = len(written)
            batch = order[start : start + BATCH]
            fits = [n for n in range(2, len(batch) + 1) if n * len(encoded[batch[n - 1]]) <= _BATCH_TOKENS]
            batch = batch[: max(fits, default=1)]
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

    def _words(self, question: Question) -> list[int]:
        words = [self._ids(f" {word}")[0] for word in question.words]
        if len(set(words)) < len(words):
            raise EngineError(f"{question.words} begin with the same token; their probabilities cannot be told apart.")
        return words

    def _side_by_side(self, encoded: Sequence[list[int]]) -> list[list[int]]:
        """Which prompts are read in one batch: short ones that go on from nothing that was read before.

        A batch reads each prompt whole, so what shares its beginning with its neighbour is left to the caches.
        """
        if len(encoded) < 2:
            return []
        arrays = [np.array(ids, dtype=np.int32) for ids in encoded]
        free = [
            index
            for index, ids in enumerate(arrays)
            if len(ids) <= _SHORT
            and not any(common(ids, other) > len(ids) // 2 for other in arrays[max(0, index - 1) : index])
            and not any(common(ids, other) > len(ids) // 2 for other in arrays[index + 1 : index + 2])
            and self._caches.share(encoded[index]) <= len(ids) // 2
        ]
        batches: list[list[int]] = []
        for index in sorted(free, key=lambda index: len(encoded[index])):
            shortest = len(encoded[batches[-1][0]]) if batches else 0
            if batches and len(batches[-1]) < BATCH and len(encoded[index]) <= _PADDED * shortest:
                batches[-1].append(index)
            else:
                batches.append([index])
        return [batch for batch in batches if len(batch) > 1]

    def _read_batch(self, batch: Sequence[list[int]]) -> np.ndarray[Any, Any]:
        """The last token's logits of each prompt; (prompts, vocabulary)."""
        padded = self._padded(batch)
        generator = self._generator(padded.shape[1] + 1, len(batch), {"do_sample": False})
        generator.append_tokens(padded)
        return np.asarray(generator.get_logits())[:, -1]

    def _padded(self, batch: Sequence[list[int]]) -> np.ndarray[Any, Any]:
        """Padded on the right: the attention op keeps each row's own length and overwrites the padding."""
        longest = max(map(len, batch))
        return np.array([ids + [self._manifest.end_token] * (longest - len(ids)) for ids in batch], dtype=np.int32)

    def _continue(
        self, ids: list[int], max_tokens: int, cancel: threading.Event, heard: Callable[[str], None] | None
    ) -> Written:
        """Writes one greedy answer on top of what is kept, so that a prompt that was scored is not read again."""
        with self._running(cancel):
            kept, _ = self._caches.read(ids, max_tokens)
            generator = kept.generator
            count = 0
            while count < max_tokens and not generator.is_done():
                if cancel.is_set():
                    raise EngineError("The call was cancelled.")
                generator.generate_next_token()
                count += 1
                if heard is not None:
                    heard(self._tokenizer.decode(np.asarray(generator.get_sequence(0))[len(ids) :].tolist()))
            row = np.asarray(generator.get_sequence(0))[len(ids) :].tolist()
            complete = bool(generator.is_done())
            generator.rewind_to(len(ids))
            self._caches.keep(kept)
        end = self._manifest.end_token
        row = row[: row.index(end)] if end in row else row
        return Written(self._tokenizer.decode(row), len(row) + complete, complete)

    def _write(
        self, batch: list[list[int]], max_tokens: int, sampling: dict[str, Any], cancel: threading.Event
    ) -> list[Written]:
        padded = self._padded(batch)
        longest, end = padded.shape[1], self._manifest.end_token
        with self._running(cancel):
            generator = self._generator(longest + max_tokens, len(batch), sampling)
            generator.append_tokens(padded)
            while not generator.is_done():
                if cancel.is_set():
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

    def _new_caches(self) -> Caches:
        return Caches(lambda room: self._generator(room, 1, {"do_sample": False}), self._manifest.window + _MARGIN)

    def _generator(self, room: int, rows: int, sampling: dict[str, Any]) -> Any:
        params = self._runtime.GeneratorParams(self._model)
        params.set_search_options(max_length=room, batch_size=rows, **sampling)
        return self._runtime.Generator(self._model, params)

    @contextmanager
    def _running(self, cancel: threading.Event) -> Iterator[None]:
        """Around the model's work: whatever the runtime raises leaves as an EngineError, the caches dropped."""
        if cancel.is_set():
            raise EngineError("The call was cancelled.")
        try:
            if self._model is None or self._weights.changed:
                self._reload()
            yield
        except EngineError:
            raise
        except Exception as error:  # the runtime raises RuntimeError, MemoryError and its own
            self._caches = self._new_caches()
            told = str(error).rstrip(".")
            raise EngineError(f"The model could not be run: {told}. See `guardreasoner doctor`.") from error


def _odds(logits: np.ndarray[Any, Any]) -> tuple[float, ...]:
    """Probabilities of the words alone, from their logits."""
    logits = logits.astype(np.float64)
    if not np.isfinite(logits).all():
        raise EngineError("The model's scores are not numbers. Export it in a higher precision.")
    odds = np.exp(logits - logits.max())
    return tuple(float(p) for p in odds / odds.sum())


def _encodable(text: str) -> str:
    """The text without lone surrogates, which no tokeniser takes; its length stays."""
    return _SURROGATE.sub("\ufffd", text)

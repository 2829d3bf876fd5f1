"""What guarding costs: latency, model tokens, throughput, memory and start, and the same work on other runtimes.

Figures of one machine in one run; what travels to another machine are the ratios.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from langchain_core.runnables import RunnableGenerator
from rich.console import Console
from rich.progress import track

from .engine import Engine, Question, Scored, Written
from .guard import GuardReasonerGuard
from .judge import Reasoning
from .model_dir import Device, open_model
from .onnx_engine import shared_engine
from .template import Prompt, template

REQUEST_TOKENS, EXCHANGE_TOKENS, STREAM_TOKENS = 40, 256, 1000
LENGTHS = (256, 1024, 4096, 16384, 32768)
CALLERS = (1, 4, 16, 64)
_MOST_WRITTEN = 64
_WRITING = "read and write an explanation"
"""The guard writes until it is done, at most 64 tokens; then each peer writes as many."""
_PROSE = (
    "The river rises in the hills above the village and turns slowly east. In spring the farmers look at the water "
    "every morning, since a wet winter means a late harvest, and a dry one means work at the pumps. My neighbour "
    "keeps a notebook of it, with the height of the water, the wind and what the baker said about the weather. "
)


class Peer(Protocol):
    """The same weights on another runtime."""

    name: str

    def read(self, ids: Sequence[int]) -> None:
        """Reads a prompt from nothing."""
        ...

    def write(self, ids: Sequence[int], count: int) -> None:
        """Reads a prompt from nothing and writes so many tokens after it."""
        ...


class Counting:
    """An engine that counts the tokens another one reads and writes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name, self.concurrency = engine.name, engine.concurrency
        self.tokens = 0

    def score(self, questions: Sequence[Question], cancel: threading.Event | None = None) -> list[Scored]:
        """See `Engine.score`."""
        scored = self.engine.score(questions, cancel)
        self.tokens += sum(one.tokens for one in scored)
        return scored

    def generate(self, prompts: Sequence[Prompt], **settings: Any) -> list[Written]:
        """See `Engine.generate`."""
        written = self.engine.generate(prompts, **settings)
        self.tokens += sum(one.tokens for one in written)
        return written

    def split(self, text: str, size: int, overlap: int) -> list[str]:
        """See `Engine.split`."""
        return self.engine.split(text, size, overlap)


class Bench:
    """Measures one model.

    Args:
        model: As for `GuardReasonerGuard`.
        device: As for `GuardReasonerGuard`.
        rounds: How often each thing is timed.
        seconds: How long each number of callers is kept up.
    """

    def __init__(self, model: str = "bundled", device: Device = "auto", rounds: int = 15, seconds: float = 8.0) -> None:
        self.directory = open_model(model)
        self.engine = shared_engine(self.directory, device)
        self.rounds, self.seconds = rounds, seconds
        self._number = 0

    def run(self, peers: Sequence[Peer] = ()) -> dict[str, Any]:
        """Measures everything; durations are in milliseconds unless they say otherwise."""
        parts: list[tuple[str, Callable[[], Any]]] = [
            ("start", self.start), ("checks", self.checks), ("peers", lambda: self.beside(peers)),
            ("stream", self.stream), ("first chunk", self.first_chunk), ("callers", self.callers),
            ("length", self.length), ("memory", memory),
        ]  # fmt: skip
        self.guard("never").check("Warm up.")
        result: dict[str, Any] = {"model": self.engine.name, "rounds": self.rounds}
        for name, part in track(parts, "bench", console=Console(stderr=True)):
            result[name] = part()
        return result

    def guard(self, reasoning: Reasoning) -> GuardReasonerGuard:
        """A guard that remembers nothing and counts its tokens."""
        counting = Counting(self.engine)
        return GuardReasonerGuard(counting, manifest=self.directory.manifest, reasoning=reasoning, remember=0)

    def text(self, tokens: int) -> str:
        """So many tokens of harmless prose that begins like no other text of this run."""
        self._number += 1
        return self.engine.split(f"{self._number} notes. " + _PROSE * (tokens // 60 + 1), tokens, 0)[0]

    def start(self) -> dict[str, float]:
        """Seconds to import the package, and from there to the first verdict, each in a fresh process."""
        code = (
            "import time; a = time.perf_counter(); from guardreasoner_guard import GuardReasonerGuard; "
            f"b = time.perf_counter(); GuardReasonerGuard({str(self.directory.path)!r}).check('How do I bake bread?'); "
            "print(b - a, time.perf_counter() - a)"
        )
        runs = []
        for _ in range(3):
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            runs.append([float(part) for part in done.stdout.split()])
        return {
            "import, seconds": round(statistics.median(run[0] for run in runs), 3),
            "import to first verdict, seconds": round(statistics.median(run[1] for run in runs), 3),
        }

    def checks(self) -> dict[str, Any]:
        """Latency and model tokens of single checks."""
        half = EXCHANGE_TOKENS // 2
        kinds: dict[str, Callable[[], tuple[str, str | None]]] = {
            f"request of {REQUEST_TOKENS} tokens": lambda: (self.text(REQUEST_TOKENS), None),
            f"exchange of {EXCHANGE_TOKENS} tokens": lambda: (self.text(half), self.text(half)),
        }
        found: dict[str, Any] = {}
        for reasoning in ("never", "always"):
            guard = self.guard(reasoning)
            for name, make in kinds.items():
                verdicts = [guard.check(*make()) for _ in range(self.rounds)]
                found[f"{name}, {reasoning}"] = {
                    **_spread([verdict.usage.latency_ms for verdict in verdicts]),
                    "tokens read": statistics.median(verdict.usage.prompt_tokens for verdict in verdicts),
                    "tokens written": statistics.median(verdict.usage.generated_tokens for verdict in verdicts),
                }
        return found

    def beside(self, peers: Sequence[Peer]) -> dict[str, Any]:
        """Reading an exchange, and writing, on this engine and on others, turn by turn."""
        wording = template(self.directory.manifest.template, self.directory.manifest.policy)
        guard, half = self.guard("never"), EXCHANGE_TOKENS // 2
        times: dict[str, dict[str, list[float]]] = {}

        def timed(name: str, what: str, work: Callable[[], Any]) -> Any:
            start = time.perf_counter()
            done = work()
            times.setdefault(name, {}).setdefault(what, []).append((time.perf_counter() - start) * 1000)
            return done

        for _ in range(self.rounds):
            request, response = self.text(half), self.text(half)
            prompt = wording.render(request, response)
            ids = tokens_of(self.directory.path, prompt.parts)
            timed("guard", "direct check", lambda r=request, a=response: guard.check(r, a))  # type: ignore[misc]
            first = f"{self.text(8)} {request}"
            ours = wording.render(first, response) + wording.reasoning_prefix(("request",), {"request": "unharmful"})
            written = timed("guard", _WRITING, lambda p=ours: self.engine.generate([p], max_tokens=_MOST_WRITTEN))[0]  # type: ignore[misc]
            for peer in peers:
                timed(peer.name, "read", lambda p=peer, i=ids: p.read(i))  # type: ignore[misc]
                timed(peer.name, _WRITING, lambda p=peer, i=ids, n=written.tokens: p.write(i, n))  # type: ignore[misc]
        return {name: {what: _spread(values) for what, values in parts.items()} for name, parts in times.items()}

    def stream(self) -> dict[str, Any]:
        """Model tokens of guarding a stream against those of one check of the finished text."""
        guard = self.guard("never")
        counting = guard.judge.engine
        assert isinstance(counting, Counting)
        text = self.text(STREAM_TOKENS)
        words = [word if at == 0 else f" {word}" for at, word in enumerate(text.split(" "))]

        def speak(values: Iterator[Any]) -> Iterator[str]:
            list(values)
            yield from words

        found: dict[str, Any] = {"tokens of text": STREAM_TOKENS}
        for hold in (64, "sentence"):
            before = counting.tokens
            start = time.perf_counter()
            list(guard.wrap(RunnableGenerator(speak), hold=hold).stream(self.text(REQUEST_TOKENS)))
            found[f"hold {hold}: milliseconds"] = round((time.perf_counter() - start) * 1000, 1)
            found[f"hold {hold}: model tokens"] = counting.tokens - before
        before = counting.tokens
        guard.check(self.text(REQUEST_TOKENS), self.text(STREAM_TOKENS))
        found["one check of the finished text: model tokens"] = counting.tokens - before
        return found

    def first_chunk(self) -> dict[str, Any]:
        """Until a reader sees the first chunk of a chatbot that says a word each 20 ms, the first after 300 ms."""
        text = self.text(STREAM_TOKENS // 4)

        def speak(values: Iterator[Any]) -> Iterator[str]:
            list(values)
            time.sleep(0.3)
            for word in text.split(" "):
                time.sleep(0.02)
                yield f"{word} "

        guard, chatbot = self.guard("never"), RunnableGenerator(speak)
        ways = {
            "without a guard": chatbot,
            "guarded, hold 64": guard.wrap(chatbot),
            "guarded, hold 64, beside": guard.wrap(chatbot, beside=True),
            "guarded, hold 16, beside": guard.wrap(chatbot, hold=16, beside=True),
            "guarded, hold sentence": guard.wrap(chatbot, hold="sentence"),
            "guarded, hold answer": guard.wrap(chatbot, hold="answer"),
        }
        took: dict[str, list[float]] = {}
        for _ in range(max(1, self.rounds // 5)):
            for name, way in ways.items():
                start = time.perf_counter()
                next(iter(way.stream(self.text(REQUEST_TOKENS))))
                took.setdefault(name, []).append((time.perf_counter() - start) * 1000)
        return {name: _spread(values)["p50"] for name, values in took.items()}

    def callers(self) -> dict[str, Any]:
        """Direct checks of requests a second, by how many callers ask at once."""
        guard = self.guard("never")
        texts = [self.text(REQUEST_TOKENS // 2 + 8 * (number % 4)) for number in range(256)]
        found: dict[str, Any] = {}
        for count in CALLERS:
            end = time.perf_counter() + self.seconds

            def ask(caller: int, end: float = end) -> list[float]:
                took, number = [], caller
                while time.perf_counter() < end:
                    number += 1
                    start = time.perf_counter()
                    guard.check(f"{number} {caller} {texts[number % len(texts)]}")
                    took.append((time.perf_counter() - start) * 1000)
                return took

            with ThreadPoolExecutor(count) as threads:
                took = [one for part in threads.map(ask, range(count)) for one in part]
            found[str(count)] = {
                "checks a second": round(len(took) / self.seconds, 2), **_spread(took),
                "megabytes": memory().get("now"),
            }  # fmt: skip
        return found

    def length(self) -> dict[str, Any]:
        """One direct check of a request, by its length in tokens."""
        guard = self.guard("never")
        found: dict[str, Any] = {}
        for tokens in LENGTHS:
            verdict = guard.check(self.text(tokens))
            found[str(tokens)] = {
                "milliseconds": verdict.usage.latency_ms, "tokens read": verdict.usage.prompt_tokens,
                "windows": verdict.windows,
            }  # fmt: skip
        return found


def memory() -> dict[str, float]:
    """Megabytes this process takes now, where the system says so, and at most took."""
    found: dict[str, float] = {}
    statm = Path("/proc/self/statm")
    if statm.exists():
        found["now"] = round(int(statm.read_text().split()[1]) * 4096 / 1e6, 1)
    try:
        import resource
    except ImportError:  # not on Windows
        return found
    unit = 1 if sys.platform == "darwin" else 1024
    found["at most"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
    return found


def tokens_of(directory: Path, parts: Sequence[str]) -> list[int]:
    """A prompt's tokens, part by part."""
    tokenizer = _tokenizer(directory)
    return [token for part in parts for token in tokenizer.encode(part, add_special_tokens=False).ids]


@cache
def _tokenizer(directory: Path) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # text never becomes a control token
    return tokenizer


def draw(result: dict[str, Any], path: Path) -> None:
    """Draws checks, callers and length as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    names = list(result["checks"])
    left.barh(names, [result["checks"][name]["p50"] for name in names])
    left.set(xlabel="milliseconds (median)", title="one check")
    callers = result["callers"]
    middle.plot([int(n) for n in callers], [callers[n]["checks a second"] for n in callers], "o-")
    middle.set(xlabel="callers at once", ylabel="checks a second", xscale="log", title="throughput")
    lengths = result["length"]
    right.plot([int(n) for n in lengths], [lengths[n]["milliseconds"] / 1000 for n in lengths], "o-")
    right.set(xlabel="tokens of text", ylabel="seconds", title="long texts")
    figure.suptitle(result["model"])
    figure.savefig(path, dpi=120)


def _spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "p50": round(statistics.median(ordered), 1),
        "p95": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 1),
    }

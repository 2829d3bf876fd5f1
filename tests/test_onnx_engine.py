"""The bundled model on ONNX Runtime: what is kept between calls and batched changes no answer."""

from __future__ import annotations

import ctypes
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from guardreasoner_guard import DeviceUnavailable, EngineError, GuardReasonerGuard
from guardreasoner_guard.engine import Question
from guardreasoner_guard.kept import MOST
from guardreasoner_guard.model_dir import open_model
from guardreasoner_guard.onnx_engine import OnnxEngine
from guardreasoner_guard.runtime import load_runtime
from guardreasoner_guard.template import SHORT, Prompt

WORDS = ("harmful", "unharmful")
REQUESTS = [
    "How do I bake bread?",
    "Tell me how to steal a car and sell its parts without being caught by the police.",
    "Hi",
    "What is the capital of France, and how many people live there today?",
]


@pytest.fixture(scope="module")
def engine() -> OnnxEngine:
    return OnnxEngine(open_model("bundled"), "cpu")


def spoil(engine: OnnxEngine, **methods: Any) -> None:
    """Gives every cache a generator of which some methods act otherwise."""
    for text in REQUESTS:
        engine.score([question(text)])
    for kept in engine._caches._kept:
        real = kept.generator
        names = ("rewind_to", "append_tokens", "get_logits", "generate_next_token", "is_done", "get_sequence")
        given = {name: partial(methods[name], real) if name in methods else getattr(real, name) for name in names}
        kept.generator = SimpleNamespace(**given)


def question(request: str, response: str | None = None) -> Question:
    return Question(SHORT.render(request, response) + SHORT.score_prefix("request", {}), WORDS)


def test_a_score_is_a_probability(engine: OnnxEngine) -> None:
    [scored] = engine.score([question(REQUESTS[0])])
    assert sum(scored.probabilities) == pytest.approx(1.0)
    assert all(0 < probability < 1 for probability in scored.probabilities)


def test_the_instruction_is_read_once_and_a_rewound_cache_gives_the_same_score(engine: OnnxEngine) -> None:
    fresh = [OnnxEngine(open_model("bundled"), "cpu").score([question(text)])[0] for text in REQUESTS[:2]]
    for word in ("apples", "rivers", "trains", "clouds", "letters")[: MOST + 1]:  # until no cache is new
        engine.score([question(f"{word} " * 20)])
    kept = [engine.score([question(text)])[0] for text in REQUESTS[:2]]
    for first, again in zip(fresh, kept, strict=True):
        assert again.probabilities == pytest.approx(first.probabilities, abs=2e-2)
        assert again.tokens < first.tokens


def test_the_same_question_again_costs_one_token(engine: OnnxEngine) -> None:
    engine.score([question(REQUESTS[0])])
    assert engine.score([question(REQUESTS[0])])[0].tokens == 1


def test_a_text_is_written_the_same_alone_and_in_a_batch(engine: OnnxEngine) -> None:
    prompts = [SHORT.render(text) + SHORT.reasoning_prefix(("request",)) for text in REQUESTS]
    together = engine.generate(prompts, max_tokens=12)
    alone = [engine.generate([prompt], max_tokens=12)[0] for prompt in prompts]
    assert [written.text for written in together] == [written.text for written in alone]


def test_the_token_cap_is_kept_and_said(engine: OnnxEngine) -> None:
    prompts = [SHORT.render(text) + SHORT.reasoning_prefix(("request",)) for text in REQUESTS]
    for written in engine.generate(prompts, max_tokens=5):
        assert written.tokens <= 5 and not written.complete


def sampled(engine: OnnxEngine, copies: int, **settings: Any) -> list[str]:
    return [one.text for one in engine.generate([Prompt(("Tell me how",))] * copies, **settings)]


def test_every_copy_of_a_prompt_is_sampled_anew_and_comes_again_with_its_seed(engine: OnnxEngine) -> None:
    texts = sampled(engine, 20, max_tokens=4, temperature=3.0, seed=1)  # more than one batch
    assert len(set(texts)) == 20
    assert texts == sampled(engine, 20, max_tokens=4, temperature=3.0, seed=1)
    assert texts != sampled(engine, 20, max_tokens=4, temperature=3.0, seed=2)


def test_top_p_limits_what_is_sampled_and_nothing_else_does(engine: OnnxEngine) -> None:
    import numpy as np

    kept, _ = engine._caches.read(engine._ids("Tell me how"))
    logits = np.asarray(kept.generator.get_logits(), dtype=np.float64)[0, -1]
    ranked = np.argsort(-logits)
    odds = np.exp((logits[ranked] - logits.max()) / 1.5)
    likely = ranked[: int((odds.cumsum() / odds.sum() < 0.6).sum())]  # rounding moves the bound of a half a little
    texts = {engine._tokenizer.decode([token]) for token in likely}
    assert set(sampled(engine, 32, max_tokens=1, temperature=1.5, top_p=0.5)) <= texts
    fifty = {engine._tokenizer.decode([token]) for token in ranked[:50]}
    assert len(set(sampled(engine, 32, max_tokens=1, temperature=3.0)) - fifty) > 10


def test_special_tokens_in_a_text_are_plain_text(engine: OnnxEngine) -> None:
    assert 2 not in engine._ids("<|im_end|>") and 1 not in engine._ids("a <|im_start|> b")


def test_windows_hold_every_character(engine: OnnxEngine) -> None:
    text = "".join(f"word {number} \u00e9\U0001f600\n" for number in range(400))
    windows = engine.split(text, 100, 20)
    assert len(windows) > 10
    assert all(window in text for window in windows)
    covered = 0
    for window in windows:
        start = text.find(window, max(0, covered - len(window)))
        assert 0 <= start <= covered
        covered = max(covered, start + len(window))
    assert covered == len(text)


def test_cuda_that_is_not_there_is_said_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime_genai

    monkeypatch.setattr(onnxruntime_genai, "is_cuda_available", lambda: False)
    with pytest.raises(DeviceUnavailable, match=r"guardreasoner-guard\[cuda\].*nvidia-smi.*device='cpu'"):
        GuardReasonerGuard(device="cuda")


def test_a_graph_for_the_cpu_is_not_run_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime_genai

    monkeypatch.setattr(onnxruntime_genai, "is_cuda_available", lambda: True)
    with pytest.raises(DeviceUnavailable, match="holds a graph for the CPU.*export MODEL --device cuda"):
        GuardReasonerGuard(device="cuda")


def test_auto_takes_the_cpu_where_there_is_no_gpu(bundled: GuardReasonerGuard) -> None:
    assert bundled.check("hello").model.endswith("cpu)")


def test_the_runtimes_telemetry_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime_genai

    called: list[str] = []
    monkeypatch.setattr(onnxruntime_genai, "disable_telemetry_events", lambda: called.append("off"))
    monkeypatch.setattr(onnxruntime_genai, "Model", lambda config: called.append("model"))
    OnnxEngine(open_model("bundled"), "cpu")
    assert called == ["off", "model"]


@pytest.mark.parametrize("own", [None, "0"])
def test_the_plain_attention_is_taken_unless_the_user_said_otherwise(
    monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    monkeypatch.delenv("ORT_GQA_DISABLE_FLASH_ATTENTION", raising=False)
    if own is not None:
        monkeypatch.setenv("ORT_GQA_DISABLE_FLASH_ATTENTION", own)
    load_runtime()
    assert os.environ["ORT_GQA_DISABLE_FLASH_ATTENTION"] == (own or "1")


def test_a_runtime_that_fails_is_an_engine_error_and_the_next_call_is_fine(engine: OnnxEngine) -> None:
    def lost(_: Any, tokens: Any) -> None:
        raise RuntimeError("device lost")

    before = engine.score([question(REQUESTS[0])])[0]
    spoil(engine, append_tokens=lost)
    with pytest.raises(EngineError, match="device lost"):
        engine.score([question(REQUESTS[1])])
    assert engine.score([question(REQUESTS[0])])[0].probabilities == pytest.approx(before.probabilities, abs=2e-2)


def test_a_call_that_is_interrupted_leaves_no_half_read_cache(engine: OnnxEngine) -> None:
    expected = engine.score([question(REQUESTS[1])])[0].probabilities

    def interrupted(real: Any, tokens: Any) -> None:
        real.append_tokens(tokens)
        raise KeyboardInterrupt

    spoil(engine, append_tokens=interrupted)
    for text in REQUESTS:
        with pytest.raises(KeyboardInterrupt):
            engine.score([question(text)])
    assert engine.score([question(REQUESTS[1])])[0].probabilities == pytest.approx(expected, abs=2e-2)


def test_numbers_that_are_none_are_an_engine_error(engine: OnnxEngine) -> None:
    import numpy as np

    spoil(engine, get_logits=lambda _: np.full((1, 1, 49152), np.nan))
    for text in REQUESTS:
        with pytest.raises(EngineError, match="not numbers"):
            engine.score([question(text)])
    assert engine.score([question(REQUESTS[1])])[0].probabilities[0] > 0


def test_a_prompt_that_was_scored_is_not_read_again_to_be_answered(engine: OnnxEngine) -> None:
    read: list[int] = []

    def noting(real: Any, tokens: Any) -> None:
        read.append(len(tokens))
        real.append_tokens(tokens)

    prompt = SHORT.render(REQUESTS[1]) + SHORT.reasoning_prefix(("request",))
    fresh = OnnxEngine(open_model("bundled"), "cpu").generate([prompt], max_tokens=40)
    spoil(engine, append_tokens=noting)
    scored = engine.score([question(REQUESTS[1])])
    assert engine.generate([prompt], max_tokens=40) == fresh
    assert engine.score([question(REQUESTS[1])])[0].probabilities == pytest.approx(scored[0].probabilities, abs=2e-2)
    assert sum(read) < 40, "the prompt is some 30 tokens, and stays in the cache through all three"


def test_talks_that_take_turns_keep_their_caches(engine: OnnxEngine) -> None:
    talks = ["Once upon a time " * 30, "The history of bread " * 30, "A walk along the river " * 30]
    for talk in talks:
        engine.score([question("hi", talk)])
    for talk in talks:
        assert engine.score([question("hi", talk + "and so on.")])[0].tokens < 20


@pytest.mark.parametrize("at_once", [32, 100])
def test_a_text_is_scored_the_same_in_pieces_and_at_once(
    engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    text = " ".join(f"Line {number}: {REQUESTS[1]}" for number in range(12))
    whole = OnnxEngine(open_model("bundled"), "cpu").score([question(text)])[0]
    monkeypatch.setattr("guardreasoner_guard.kept._AT_ONCE", at_once)
    pieces = OnnxEngine(open_model("bundled"), "cpu").score([question(text)])[0]
    assert pieces.tokens == whole.tokens > 2 * at_once
    assert pieces.probabilities == pytest.approx(whole.probabilities, abs=1e-4)


def test_a_batch_of_long_prompts_holds_fewer_of_them(engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [SHORT.render(text, None) + SHORT.score_prefix("request", {}) for text in REQUESTS]
    together = [written.text for written in engine.generate(prompts, max_tokens=8)]
    rows: list[int] = []
    generator = engine._generator

    def counted(room: int, count: int, how: dict[str, Any]) -> Any:
        rows.append(count)
        return generator(room, count, how)

    monkeypatch.setattr(engine, "_generator", counted)
    second = sorted(len(engine._encode(prompt)) for prompt in prompts)[1]
    monkeypatch.setattr("guardreasoner_guard.onnx_engine._BATCH_TOKENS", 2 * second)
    assert [written.text for written in engine.generate(prompts, max_tokens=8)] == together
    assert rows == [2, 1, 1]


def test_short_prompts_are_scored_the_same_alone_and_side_by_side(engine: OnnxEngine) -> None:
    texts = [*REQUESTS, "Why is the sky blue?", "A long one " * 60, REQUESTS[0]]
    alone = [OnnxEngine.score(engine, [question(text)])[0].probabilities[0] for text in texts]
    fresh = OnnxEngine(open_model("bundled"), "cpu")
    together = fresh.score([question(text) for text in texts])
    assert [scored.probabilities[0] for scored in together] == pytest.approx(alone, abs=2e-2)


def test_a_cancelled_call_stops(engine: OnnxEngine) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(EngineError, match="cancelled"):
        engine.score([question(REQUESTS[0])], cancel)
    with pytest.raises(EngineError, match="cancelled"):
        engine.generate([SHORT.render("x")], max_tokens=5, cancel=cancel)


def test_whoever_calls_the_model_runs_in_one_thread(engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: set[int] = set()
    real = engine._running

    def noting(cancel: threading.Event) -> Any:
        ran.add(threading.get_ident())
        return real(cancel)

    monkeypatch.setattr(engine, "_running", noting)  # all that runs the model, and frees its memory, is within it
    prompts = [SHORT.render(text) for text in REQUESTS[:2]]
    with ThreadPoolExecutor(4) as threads:
        calls: list[Future[Any]] = [
            threads.submit(engine.score, [question(REQUESTS[0])]),
            threads.submit(engine.score, [question(text) for text in REQUESTS]),
            threads.submit(engine.generate, prompts, max_tokens=2),
            threads.submit(engine.generate, prompts[:1], max_tokens=2),
        ]
        for call in calls:
            call.result()
    assert len(ran) == 1, "else each thread keeps memory for the largest batch that it has run"


class Malloc(ctypes.Structure):
    """What glibc's mallinfo2 tells."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def test_nothing_is_kept_for_each_length_that_was_ever_read(engine: OnnxEngine) -> None:
    mallinfo: Any = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        pytest.skip("only glibc tells how much memory is in use")
    mallinfo.restype = Malloc
    generator = engine._generator(256, 1, {"do_sample": False})
    used = []
    for _ in range(200):
        generator.append_tokens([5])
        used.append(mallinfo().uordblks)
    assert used[-1] - used[100] < 50_000, "a plan of memory for each of a hundred lengths takes 180 kB"


def test_threads_share_one_engine_without_crossing(engine: OnnxEngine) -> None:
    expected = [engine.score([question(text)])[0].probabilities for text in REQUESTS]
    wrong: list[str] = []

    def ask(text: str, probabilities: tuple[float, ...]) -> None:
        for _ in range(5):
            if engine.score([question(text)])[0].probabilities != pytest.approx(probabilities, abs=2e-2):
                wrong.append(text)

    threads = [threading.Thread(target=ask, args=pair) for pair in zip(REQUESTS, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []

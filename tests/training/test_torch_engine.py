"""A checkpoint answers through the same protocol as an exported model, and alike."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from guardreasoner_guard.training.base import load_base
from guardreasoner_guard.training.encode import plain_ids
from guardreasoner_guard.training.mine import open_engine
from guardreasoner_guard.training.torch_engine import TorchEngine

from guardreasoner_guard import BadInput, EngineError, GuardReasonerGuard
from guardreasoner_guard.engine import Question
from guardreasoner_guard.template import SHORT

WORDS = ("harmful", "unharmful")
PROMPTS = [SHORT.render(text) for text in ("How do I bake bread?", "hi", "Tell me a much longer story, and then more.")]


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> TorchEngine:
    return TorchEngine(checkpoint)


def test_a_batch_answers_as_each_prompt_alone(engine: TorchEngine) -> None:
    together = engine.generate(PROMPTS, max_tokens=8)
    assert together == [engine.generate([prompt], max_tokens=8)[0] for prompt in PROMPTS]
    assert all(one.tokens <= 8 for one in together)
    assert not any(one.complete for one in together), "a random model does not end by itself in 8 tokens"


def test_samples_differ_and_come_again_with_their_seed(engine: TorchEngine) -> None:
    def sampled(seed: int) -> list[str]:
        texts = engine.generate(PROMPTS[:1] * 4, max_tokens=8, temperature=0.7, top_p=0.95, seed=seed)
        return [text.text for text in texts]

    assert len(set(sampled(1))) > 1
    assert sampled(1) == sampled(1) != sampled(2)


def test_scores_are_those_of_a_forward_pass(engine: TorchEngine, checkpoint: Path) -> None:
    model, tokenizer = load_base(str(checkpoint), torch.float32)
    asked = PROMPTS[0] + SHORT.score_prefix("request", {})
    ids = [token for part in asked.parts for token in plain_ids(tokenizer, part)]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
    expected = logits[[plain_ids(tokenizer, f" {word}")[0] for word in WORDS]].softmax(-1).tolist()
    found = engine.score([Question(asked, WORDS)])[0]
    assert found.probabilities == pytest.approx(tuple(expected), abs=1e-5) and found.tokens == len(ids)


def test_a_cancelled_call_stops(engine: TorchEngine) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(EngineError, match="cancelled"):
        engine.generate(PROMPTS, max_tokens=500, cancel=cancel)
    with pytest.raises(EngineError, match="cancelled"):
        engine.score([Question(PROMPTS[0], WORDS)], cancel)


def test_the_exported_guard_and_its_torch_model_split_texts_alike(bundled: GuardReasonerGuard) -> None:
    served, own = bundled.judge.engine, TorchEngine(Path("bundled"))
    text = "One word, and \u00e9t\u00e9 after another. " * 20
    assert own.split(text, 40, 10) == served.split(text, 40, 10)
    assert own.split("short", 40, 10) == ["short"]
    assert own.split("a\ud800b", 40, 10) == ["a\ud800b"]


def test_what_is_neither_server_nor_model_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no checkpoint and no model directory"):
        open_engine(str(tmp_path))

"""Other runtimes are timed with this model's own weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from guardreasoner_guard.training.peers import Transformers, write_gguf
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from guardreasoner_guard.model_dir import open_model


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=256, tie_word_embeddings=True, rope_theta=5000.0,
        bos_token_id=None, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_a_gguf_file_computes_what_the_model_does(model: LlamaForCausalLM, tmp_path: Path) -> None:
    write_gguf(model, open_model("bundled"), tmp_path / "Q8_0.gguf", "Q8_0")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="Q8_0.gguf", dtype=torch.float32).eval()
    ids = torch.tensor([[5, 700, 30000, 12, 9, 40000, 77, 3]])
    with torch.no_grad():
        ours, theirs = (one(input_ids=ids).logits.softmax(-1) for one in (model, read))
    assert torch.allclose(ours, theirs, rtol=0.05, atol=1e-6)
    assert (ours.argmax(-1) == theirs.argmax(-1)).float().mean() > 0.8


def test_transformers_writes_as_many_tokens_as_it_is_asked_for(model: LlamaForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    peer = Transformers(tmp_path)
    written: list[int] = []
    generate = peer._model.generate
    peer._model.generate = lambda **settings: written.append(generate(**settings).shape[1])
    peer.read([1, 2, 3])
    peer.write([1, 2, 3], 7)
    assert written == [4, 10]


def test_llama_cpp_takes_the_file(model: LlamaForCausalLM, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    from guardreasoner_guard.training.peers import LlamaCpp

    write_gguf(model, open_model("bundled"), tmp_path / "Q4_0.gguf", "Q4_0")
    peer = LlamaCpp(tmp_path / "Q4_0.gguf", "Q4_0")
    peer.read([5, 700, 30000])
    peer.write([5, 700, 30000], 5)

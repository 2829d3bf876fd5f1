"""Peers: the weights of an exported guard in the formats of other runtimes, for `guardreasoner bench`."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from guardreasoner_guard.bench import Peer
from guardreasoner_guard.model_dir import ModelDir
from guardreasoner_guard.processor import threads
from guardreasoner_guard.runtime import load_runtime

from .graph import reference_graph
from .thaw import thaw, thaw_tokenizer

_KINDS = ("Q8_0", "Q4_0")
"""GGUF formats llama.cpp is timed with: as many bits as ours, and half as many."""
_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def peers(model: ModelDir, folder: Path) -> list[Peer]:
    """Other runtimes with this model's weights, those that are installed; files are made where they are missing.

    Args:
        model: An int8 export of a Llama-type model.
        folder: For a transformers checkpoint, an optimum graph and GGUF files.

    Raises:
        BadInput: The model is of another kind.
    """
    checkpoint, graph = folder / "checkpoint", folder / "optimum"
    found: list[Peer] = []
    if not (checkpoint / "config.json").exists():
        thawed = thaw(model)
        thaw_tokenizer(model).save_pretrained(checkpoint)
        for kind in _KINDS:
            write_gguf(thawed, model, folder / f"{kind}.gguf", kind)
        thawed.save_pretrained(checkpoint)  # last: with it the files are whole
    if importlib.util.find_spec("xllamacpp"):
        found += [LlamaCpp(folder / f"{kind}.gguf", kind) for kind in _KINDS]
    found.append(Transformers(checkpoint))
    if importlib.util.find_spec("optimum.onnxruntime"):
        if not (graph / "model.onnx").exists():
            reference_graph(checkpoint, graph)
        found.append(Optimum(graph))
    return found


class LlamaCpp:
    """llama.cpp, by the xllamacpp wheel."""

    def __init__(self, file: Path, kind: str) -> None:
        import xllamacpp

        self.name = f"llama.cpp {kind}"
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(file)
        parameters.n_ctx, parameters.n_parallel = 2048, 1
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads()
        self._server = xllamacpp.Server(parameters)

    def read(self, ids: Sequence[int]) -> None:
        """Reads a prompt; llama.cpp gives no logits without writing one token."""
        self.write(ids, 1)

    def write(self, ids: Sequence[int], count: int) -> None:
        """Writes so many tokens, the most likely ones, past any end token."""
        asked = {
            "prompt": list(ids), "n_predict": count, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False,
        }  # fmt: skip
        answer = self._server.handle_completions(asked)
        if "error" in answer:
            raise RuntimeError(f"llama.cpp: {answer['error']}")


class _Torchlike:
    """Whatever generates as transformers does."""

    name = ""
    _model: Any

    def read(self, ids: Sequence[int]) -> None:
        """Reads a prompt for its last logits."""
        self.write(ids, 1)

    def write(self, ids: Sequence[int], count: int) -> None:
        """Writes so many tokens, the most likely ones, past any end token."""
        given = torch.tensor([list(ids)])
        self._model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=count, min_new_tokens=count,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip


class Transformers(_Torchlike):
    """PyTorch eager, in fp32 or, where the processor has it, bf16."""

    def __init__(self, checkpoint: Path) -> None:
        dtype = torch.bfloat16 if _has_bf16() else torch.float32
        self.name = f"transformers {str(dtype).removeprefix('torch.')}"
        torch.set_num_threads(threads())
        self._model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).eval()


class Optimum(_Torchlike):
    """optimum's ORTModelForCausalLM, fp32."""

    name = "optimum fp32"

    def __init__(self, graph: Path) -> None:
        load_runtime()  # before optimum does: only so it reports nothing to anyone
        from optimum.onnxruntime import ORTModelForCausalLM

        self._model = ORTModelForCausalLM.from_pretrained(graph)


def write_gguf(model: LlamaForCausalLM, directory: ModelDir, file: Path, kind: str) -> None:
    """Writes a Llama model as GGUF.

    Args:
        model: The model, embeddings tied.
        directory: Where its tokeniser is.
        file: To write.
        kind: `Q8_0`, `Q4_0` and the like; norms stay in fp32.
    """
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, json.loads((directory.path / "tokenizer.json").read_text(encoding="utf-8")), config)
    quantisation = gguf.GGMLQuantizationType[kind]
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        values = tensor.float().numpy()
        values = _turned(values, config.num_attention_heads) if ".q_proj" in name else values
        values = _turned(values, config.num_key_value_heads) if ".k_proj" in name else values
        if values.ndim == 1:
            writer.add_tensor(_gguf_name(name), values)
        else:
            packed = gguf.quants.quantize(values, quantisation)
            writer.add_tensor(_gguf_name(name), packed, raw_dtype=quantisation)
    file.parent.mkdir(parents=True, exist_ok=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, tokenizer: dict[str, Any], config: Any) -> None:
    """A byte-level BPE, as llama.cpp reads it; it is only there to be loaded, since prompts come as tokens."""
    import gguf

    tokens = [""] * config.vocab_size
    for token, at in tokenizer["model"]["vocab"].items():
        tokens[at] = token
    special = {added["id"]: added["content"] for added in tokenizer["added_tokens"]}
    kinds = [gguf.TokenType.NORMAL] * config.vocab_size
    for at, token in special.items():
        tokens[at], kinds[at] = token, gguf.TokenType.CONTROL
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([token or f"[unused{at}]" for at, token in enumerate(tokens)])
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_bos_token_id(config.eos_token_id)
    writer.add_add_bos_token(False)


def _turned(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rotary halves interleaved, as llama.cpp's Llama wants them."""
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _gguf_name(name: str) -> str:
    parts = name.removesuffix(".weight").removeprefix("model.").split(".", 2)
    if parts[0] != "layers":
        return {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight"}[parts[0]]
    return f"blk.{parts[1]}.{_NAMES[parts[2]]}.weight"


def _has_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())

"""An exported model directory back to a torch model, so that a guard can be trained further."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from guardreasoner_guard.errors import BadInput
from guardreasoner_guard.model_dir import ModelDir


def thaw(model: ModelDir) -> LlamaForCausalLM:
    """Reads the weights of an int8 graph back into a Llama model in fp32.

    What rounding to 8 bits took is gone; everything else is as it was before the export. The columns that
    smoothing had scaled for the sake of 8-bit activations are evened out again, since an optimizer would
    otherwise hardly move some of them.

    Raises:
        BadInput: The directory is no int8 graph of a Llama-type model with tied embeddings.
    """
    graph = onnx.load(model.path / "model.onnx", load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    if model.manifest.precision != "int8" or "lm_head.MatMul.weight_rows_int8" not in tensors:
        raise BadInput(
            f"{model.path} cannot be trained further: only int8 exports of Llama-type models can. Name the "
            "checkpoint it was exported from."
        )
    settings = json.loads((model.path / "genai_config.json").read_text(encoding="utf-8"))["model"]
    decoder = settings["decoder"]
    heads, groups, size = decoder["num_attention_heads"], decoder["num_key_value_heads"], decoder["head_size"]

    def array(name: str) -> np.ndarray[Any, Any]:
        return _read(tensors[name], model.path)

    def matrix(name: str) -> torch.Tensor:
        wide = array(f"{name}.weight_int8").astype(np.float32) * array(f"{name}.weight_scale")
        return torch.from_numpy(np.ascontiguousarray(wide.T))

    embedding = array("lm_head.MatMul.weight_rows_int8").astype(np.float32)
    embedding *= array("lm_head.MatMul.weight_scale")[:, None]
    weights = {"model.embed_tokens.weight": torch.from_numpy(embedding)}
    layers = decoder["num_hidden_layers"]
    for n in range(layers):
        here = f"model.layers.{n}"
        joined = matrix(f"{here}.attn.qkv_proj.MatMul")
        query, key, value = torch.split(joined, [heads * size, groups * size, groups * size])
        weights[f"{here}.self_attn.q_proj.weight"] = query
        weights[f"{here}.self_attn.k_proj.weight"] = key
        weights[f"{here}.self_attn.v_proj.weight"] = value
        weights[f"{here}.self_attn.o_proj.weight"] = matrix(f"{here}.attn.o_proj.MatMul")
        for part in ("gate_proj", "up_proj", "down_proj"):
            weights[f"{here}.mlp.{part}.weight"] = matrix(f"{here}.mlp.{part}.MatMul")
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{here}.{norm}.weight"] = torch.from_numpy(array(f"{here}.{norm}.weight").copy())
        readers = [f"{here}.self_attn.{part}_proj.weight" for part in "qkv"]
        _even_out(weights, f"{here}.input_layernorm.weight", readers)
        readers = [f"{here}.mlp.{part}_proj.weight" for part in ("gate", "up")]
        _even_out(weights, f"{here}.post_attention_layernorm.weight", readers)
    last = array(f"model.layers.{layers}.final_norm_layernorm.weight")
    weights["model.norm.weight"] = torch.from_numpy(last.copy())

    epsilon = next(a.f for node in graph.node if "LayerNormalization" in node.op_type for a in node.attribute
                   if a.name == "epsilon")  # fmt: skip
    config = LlamaConfig(
        vocab_size=settings["vocab_size"],
        hidden_size=decoder["hidden_size"],
        intermediate_size=weights["model.layers.0.mlp.gate_proj.weight"].shape[0],
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=size,
        rms_norm_eps=epsilon,
        rope_theta=_rope_theta(array("cos_cache"), size),
        max_position_embeddings=settings["context_length"],
        tie_word_embeddings=True,
        bos_token_id=model.manifest.bos_token,
        eos_token_id=model.manifest.end_token,
    )
    made = LlamaForCausalLM(config)
    made.load_state_dict(weights, strict=False)
    made.tie_weights()
    return made


def thaw_tokenizer(model: ModelDir) -> PreTrainedTokenizerFast:
    """The tokeniser of an exported model as transformers knows it."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(model.path / "tokenizer.json"))
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.manifest.end_token)
    return tokenizer


def _read(tensor: onnx.TensorProto, folder: Path) -> np.ndarray[Any, Any]:
    """A tensor's values. onnx's own reader refuses hard links, which some installers make of every file."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    where = {entry.key: entry.value for entry in tensor.external_data}
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    count = math.prod(tensor.dims)
    # the manifest's hashes cover the files; a name that leads elsewhere is none of them
    path = folder / Path(where["location"]).name
    return np.fromfile(path, kind, count, offset=int(where.get("offset", 0))).reshape(tensor.dims)


def _even_out(weights: dict[str, torch.Tensor], norm: str, readers: list[str]) -> None:
    """Gives the columns of the matrices that read a norm the same length; the norm takes up the difference."""
    length = torch.cat([weights[reader] for reader in readers]).norm(dim=0).clamp(min=1e-8)
    scale = length / length.mean()
    weights[norm] = weights[norm] * scale
    for reader in readers:
        weights[reader] = weights[reader] / scale


def _rope_theta(cosines: np.ndarray[Any, Any], size: int) -> float:
    """The base of the rotary positions, from the second frequency's angle at position 1."""
    return float(round(math.acos(float(cosines[1, 1])) ** (-size / 2)))

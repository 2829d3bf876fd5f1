"""From a torch checkpoint to an ONNX graph: ONNX Runtime GenAI's builder, then int8, one weight for both ends.

The portable graph of optimum is the reference the served one can be held to.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from guardreasoner_guard.runtime import load_runtime

_EMBED, _HEAD, _WEIGHT = "/model/embed_tokens", "/lm_head/MatMul", "lm_head.MatMul.weight"
_MAX_FILE = 90_000_000
"""Bytes a weight file may have; code hosts refuse more than 100 MB."""


def build(checkpoint: Path, out: Path, *, device: str, precision: str, cuda_graph: bool = False) -> None:
    """Builds `model.onnx` and `genai_config.json` with the runtime's model builder.

    Args:
        checkpoint: A transformers folder of a Llama- or Qwen-type model.
        out: Folder to write to.
        device: `cpu` or `cuda`.
        precision: `fp32`, `fp16`, `int4` as the builder makes them; `int8` is made here, for the CPU.
        cuda_graph: Whether the runtime is told to capture a CUDA graph.
    """
    builder = _builder()
    with tempfile.TemporaryDirectory() as cache:
        staged = Path(cache) / "checkpoint"
        shutil.copytree(checkpoint, staged, ignore=shutil.ignore_patterns("tokenizer.model"))
        config = json.loads((staged / "config.json").read_text())
        if config.get("rope_scaling") is None:
            # the builder walks over this table, which transformers 4 leaves empty
            config["rope_scaling"] = {"rope_type": "default"}
            (staged / "config.json").write_text(json.dumps(config))
        built = "fp32" if precision == "int8" else precision
        arguments = (None, str(staged), str(out), built, device, cache)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints each layer
            options = ["enable_cuda_graph=true"] if cuda_graph else []
            builder.create_model(*arguments, **builder.parse_extra_options(*arguments, options))
    _score_last_token(out / "model.onnx")
    if precision == "int8":
        _quantise(out / "model.onnx")
    for name in ("tokenizer.model", "chat_template.jinja", "special_tokens_map.json", "tokenizer_config.json"):
        (out / name).unlink(missing_ok=True)


def reference_graph(checkpoint: Path, out: Path) -> Path:
    """Exports the portable graph with optimum; returns the path of `model.onnx`."""
    load_runtime()  # before optimum does: only so it reports nothing to anyone
    from optimum.exporters.onnx import main_export

    main_export(str(checkpoint), output=out, task="text-generation-with-past", do_validation=False)
    return out / "model.onnx"


def _builder() -> Any:
    """The runtime's model builder, which is a script beside the package rather than a part of it."""
    import transformers

    # The builder imports classes of models that transformers 4.57 does not know yet; it never uses them here.
    for name in ("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration"):
        if not hasattr(transformers, name):
            setattr(transformers, name, type(name, (), {}))
    folder = str(Path(load_runtime().__file__).parent / "models")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    import builder

    return builder


def smooth(checkpoint: Path, out: Path, texts: Sequence[Sequence[int]], strength: float = 0.65) -> None:
    """Moves outliers from activations into weights, so that 8 bits hold both (SmoothQuant, arXiv 2211.10438).

    Each norm's output channels are divided, and the columns of the projections that read it multiplied, by
    max|activation|^strength / max|weight|^(1-strength). The model computes the same as before.

    Args:
        checkpoint: A transformers folder of a Llama- or Qwen-type model.
        out: Folder for the changed model.
        texts: Token ids of some real prompts.
        strength: 0 leaves the activations as they are, 1 evens them out entirely.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    groups = []
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        groups.append((layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj]))
        groups.append((layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj]))
    highest = [torch.zeros(model.config.hidden_size) for _ in groups]

    def watch(index: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            highest[index] = torch.maximum(highest[index], output.abs().amax(dim=(0, 1)))

        return hook

    hooks = [norm.register_forward_hook(watch(index)) for index, (norm, _) in enumerate(groups)]
    with torch.no_grad():
        for ids in texts:
            model(input_ids=torch.tensor([list(ids)]), logits_to_keep=1)
        for (norm, readers), peak in zip(groups, highest, strict=True):
            weights = torch.stack([reader.weight.abs().amax(dim=0) for reader in readers]).amax(dim=0)
            scale = peak.clamp(min=1e-5) ** strength / weights.clamp(min=1e-5) ** (1 - strength)
            norm.weight /= scale
            for reader in readers:
                reader.weight *= scale
    for hook in hooks:
        hook.remove()
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(out)


def _quantise(path: Path) -> None:
    """8-bit weights a channel and 8-bit activations a token, in integer arithmetic.

    ONNX Runtime's own dynamic quantisation takes one scale for a whole tensor: the first token's huge
    activations cost all others their precision, and a text's score depended on its neighbours in the batch.
    """
    model = onnx.load(path)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    zero = _constant(graph, np.array(128, dtype=np.uint8), "/int8/zero")
    one = _constant(graph, np.array(1, dtype=np.float32), "/int8/one")
    step = _constant(graph, np.array(1 / 127, dtype=np.float32), "/int8/step")
    least = _constant(graph, np.array(1e-9, dtype=np.float32), "/int8/least")
    inner = _constant(graph, np.array([-1], dtype=np.int64), "/int8/inner")
    make = helper.make_node
    nodes = [
        # the zero points of all tokens, in the shape of their scales
        make("Unsqueeze", ["input_ids", inner], ["/int8/tokens"]),
        make("Shape", ["/int8/tokens"], ["/int8/tokens/shape"]),
        make("Expand", [zero, "/int8/tokens/shape"], ["/int8/zeros"]),
        make("Shape", ["/last/indices"], ["/int8/last/shape"]),
        make("Expand", [zero, "/int8/last/shape"], ["/int8/last/zeros"]),
    ]
    narrowed: set[str] = set()
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in weights:
            nodes.append(node)
            continue
        values, weight, result = node.input[0], node.input[1], node.output[0]
        table = numpy_helper.to_array(weights[weight])
        if values not in narrowed:
            narrowed.add(values)
            zeros = "/int8/last/zeros" if values == "/last/hidden" else "/int8/zeros"
            nodes += [
                make("Abs", [values], [f"{values}/abs"]),
                make("ReduceMax", [f"{values}/abs", inner], [f"{values}/peak"], keepdims=1),
                make("Mul", [f"{values}/peak", step], [f"{values}/raw_scale"]),
                make("Max", [f"{values}/raw_scale", least], [f"{values}/scale"]),
                # a block is a whole token
                make("QuantizeLinear", [values, f"{values}/scale", zeros], [f"{values}/int8"],
                     axis=-1, block_size=table.shape[0]),
            ]  # fmt: skip
        scale = np.maximum(np.abs(table).max(axis=0), 1e-9) / 127
        _constant(graph, np.round(table / scale).astype(np.int8), f"{weight}_int8")
        _constant(graph, scale.astype(np.float32), f"{weight}_scale")
        nodes += [
            make("MatMulIntegerToFloat", [f"{values}/int8", f"{weight}_int8", one, f"{weight}_scale", zero],
                 [f"{result}/rows"], domain="com.microsoft"),
            make("Mul", [f"{result}/rows", f"{values}/scale"], [result]),
        ]  # fmt: skip
    for at, node in enumerate(nodes):
        node.name = node.name or f"/int8/{node.op_type}_{at}"
    del graph.node[:]
    graph.node.extend(nodes)
    if any(node.name == f"{_EMBED}/Transpose" for node in graph.node):  # only tied weights are looked up this way
        _share_embedding(model)
    used = {name for node in graph.node for name in node.input}
    for initializer in [i for i in graph.initializer if i.name not in used]:
        graph.initializer.remove(initializer)
    save(model, path)


def _constant(graph: onnx.GraphProto, value: np.ndarray[Any, Any], name: str) -> str:
    graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def _share_embedding(model: onnx.ModelProto) -> None:
    """Looks tokens up in the quantised head instead of keeping an fp32 table beside it.

    It is stored a token a row (vocabulary, hidden): columns far apart in memory take longer to fetch than some
    layers to compute. The runtime turns it over for the head once, when it loads.
    """
    graph = model.graph
    lookup = next(node for node in graph.node if node.name == f"{_EMBED}/Gather")
    result, ids = lookup.output[0], lookup.input[1]
    for node in [n for n in graph.node if n.name in (f"{_EMBED}/Transpose", f"{_EMBED}/Gather")]:
        graph.node.remove(node)
    head = next(tensor for tensor in graph.initializer if tensor.name == f"{_WEIGHT}_int8")
    rows = _constant(graph, np.ascontiguousarray(numpy_helper.to_array(head).T), f"{_WEIGHT}_rows_int8")
    graph.initializer.remove(head)
    axes = _constant(graph, np.array([-1], dtype=np.int64), f"{_EMBED}/axes")
    make = helper.make_node
    name = _EMBED
    nodes = [
        make("Transpose", [rows], [f"{_WEIGHT}_int8"], perm=[1, 0]),
        make("Gather", [rows, ids], [f"{name}/rows"]),
        make("Cast", [f"{name}/rows"], [f"{name}/wide"], to=TensorProto.FLOAT),
        make("Gather", [f"{_WEIGHT}_scale", ids], [f"{name}/scales"]),
        make("Unsqueeze", [f"{name}/scales", axes], [f"{name}/column_scales"]),
        make("Mul", [f"{name}/wide", f"{name}/column_scales"], [result]),
    ]
    for at, node in enumerate(nodes):
        node.name = f"{name}/{node.op_type}_{at}"
        graph.node.insert(at, node)


def _score_last_token(path: Path) -> None:
    """Computes logits for each row's last token only.

    The builder's own option takes the last column, which in a batch is padding for all rows but the
    longest. Rows are padded on the right; the mask tells where each ends.
    """
    model = onnx.load(path)
    graph = model.graph
    head = next(node for node in graph.node if node.name.startswith(_HEAD))  # int4 adds a suffix
    hidden = head.input[0]
    one = _constant(graph, np.array(1, dtype=np.int64), "/last/one")
    axes = _constant(graph, np.array([1], dtype=np.int64), "/last/axes")
    inner = _constant(graph, np.array([-1], dtype=np.int64), "/last/inner")
    make = helper.make_node
    nodes = [
        make("ReduceSum", ["attention_mask", axes], ["/last/length"], keepdims=1),
        make("Shape", ["input_ids"], ["/last/shape"], start=1, end=2),
        make("Min", ["/last/length", "/last/shape"], ["/last/end"]),
        make("Sub", ["/last/end", one], ["/last/index"]),
        make("Unsqueeze", ["/last/index", inner], ["/last/indices"]),
        make("GatherND", [hidden, "/last/indices"], ["/last/hidden"], batch_dims=1),
    ]
    at = next(i for i, node in enumerate(graph.node) if hidden in node.output) + 1
    for offset, node in enumerate(nodes):
        node.name = f"/last/{node.op_type}"
        graph.node.insert(at + offset, node)
    head.input[0] = "/last/hidden"
    # the runtime makes room for one token's logits where the graph says so, and for all tokens' otherwise
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    # a zoo of stale shapes would contradict the new one
    del graph.value_info[:]
    save(model, path)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Writes a graph with its large tensors in numbered files of at most 90 MB."""
    for stale in path.parent.glob(f"{path.stem}*.data"):
        stale.unlink()
    number, size = 0, 0
    blobs: dict[int, bytearray] = {0: bytearray()}
    for tensor in model.graph.initializer:
        raw = tensor.raw_data if tensor.HasField("raw_data") else numpy_helper.to_array(tensor).tobytes()
        if len(raw) < 1024:
            continue
        if size + len(raw) > _MAX_FILE and size:
            number, size = number + 1, 0
            blobs[number] = bytearray()
        offset = len(blobs[number])
        blobs[number] += raw
        blobs[number] += bytes(-len(blobs[number]) % 64)
        size = len(blobs[number])
        name = f"{path.stem}-{number}.data"
        for field in ("float_data", "int32_data", "int64_data"):
            tensor.ClearField(field)
        onnx.external_data_helper.set_external_data(_with_raw(tensor, raw), name, offset, len(raw))
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
    for number, blob in blobs.items():
        (path.parent / f"{path.stem}-{number}.data").write_bytes(blob)
    path.write_bytes(model.SerializeToString())


def _with_raw(tensor: onnx.TensorProto, raw: bytes) -> onnx.TensorProto:
    tensor.raw_data = raw  # set_external_data insists on it
    return tensor

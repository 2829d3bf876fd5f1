"""An exported directory judges as the torch model does, or is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from guardreasoner_guard.training.export import ParityError, export, set_thresholds
from guardreasoner_guard.training.graph import reference_graph
from guardreasoner_guard.training.rows import SeedRow, read_rows
from safetensors.torch import load_file, save_file

from guardreasoner_guard import BadInput, GuardReasonerGuard
from guardreasoner_guard.model_dir import open_model
from guardreasoner_guard.template import SHORT


def exported(checkpoint: Path, rows: Path, out: Path, **settings: Any) -> Path:
    sample = list(read_rows(rows / "rows.jsonl", SeedRow))
    defaults: dict[str, Any] = {"name": "tiny", "template_version": "short/1", "rows": sample, "decides": "score"}
    directory: Path = export(checkpoint, out, **{**defaults, **settings})
    return directory


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 0.002), ("int8", 0.6), ("int4", 3.0)])
def test_the_graph_scores_as_torch_does_and_says_how_closely(
    checkpoint: Path, rows: Path, tmp_path: Path, precision: str, bound: float
) -> None:
    directory = exported(checkpoint, rows, tmp_path / precision, precision=precision, max_error=bound)
    manifest = open_model(directory).manifest
    assert manifest.parity["mean log-odds error"] <= bound
    assert manifest.parity["scores"] == 14
    assert manifest.label_tokens["harmful"] != manifest.label_tokens["unharmful"]
    verdict = GuardReasonerGuard(directory).check("How do I bake bread?", "With flour.")
    assert verdict.outcome == "verdict" and set(verdict.scores) == {"request", "completion", "response"}


def test_a_graph_that_is_too_far_from_torch_is_refused(checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="Export with precision fp32"):
        exported(checkpoint, rows, tmp_path / "out", precision="int8", max_error=1e-9)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_model_that_is_sure_of_itself_is_not_refused_for_how_sure_it_is(
    checkpoint: Path, rows: Path, tmp_path: Path
) -> None:
    sure = tmp_path / "sure"
    shutil.copytree(checkpoint, sure)
    weights = load_file(sure / "model.safetensors")
    head = "lm_head.weight" if "lm_head.weight" in weights else "model.embed_tokens.weight"
    tokens = open_model(exported(checkpoint, rows, tmp_path / "out", precision="fp32")).manifest.label_tokens
    for word, strength in (("harmful", 300.0), ("unharmful", -300.0)):
        weights[head][tokens[word]] = strength * weights[head][tokens["refusal"]]
    save_file(weights, sure / "model.safetensors", {"format": "pt"})
    directory = exported(sure, rows, tmp_path / "sure-out", precision="int8")
    assert open_model(directory).manifest.parity["greatest log-odds error"] <= 2 * math.log(99)


@pytest.mark.parametrize("template", ["short/1", "guardreasoner/1"])
def test_both_templates_are_served(checkpoint: Path, rows: Path, tmp_path: Path, template: str) -> None:
    directory = exported(checkpoint, rows, tmp_path / "out", precision="fp32", template_version=template)
    verdict = GuardReasonerGuard(directory, reasoning="never").check("How do I bake bread?", "With flour.")
    assert verdict.outcome == "verdict" and len(verdict.scores) == 3


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_a_cuda_graph_is_built_without_a_gpu_and_not_served_without_one(
    checkpoint: Path, rows: Path, tmp_path: Path, precision: str
) -> None:
    directory = exported(checkpoint, rows, tmp_path / "out", device="cuda", precision=precision)
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    kinds = {node.op_type for node in model.graph.node}
    assert "GroupQueryAttention" in kinds and "GatherND" in kinds
    settings = json.loads((directory / "genai_config.json").read_text())
    assert "cuda" in json.dumps(settings["model"]["decoder"]["session_options"])
    assert open_model(directory).manifest.device == "cuda"


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning"
)  # optimum's tracer warns of its own doing
def test_the_portable_graph_is_the_reference(checkpoint: Path, tmp_path: Path) -> None:
    import numpy as np
    import onnxruntime
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = reference_graph(checkpoint, tmp_path / "reference")
    ids = AutoTokenizer.from_pretrained(checkpoint)(str(SHORT.render("Hello"))).input_ids
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(checkpoint)(input_ids=torch.tensor([ids])).logits.numpy()
    session = onnxruntime.InferenceSession(str(path))
    feed: dict[str, Any] = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), dtype=np.int64)}
    for entry in session.get_inputs():
        if entry.name.startswith("past"):
            feed[entry.name] = np.zeros((1, 1, 0, 32), dtype=np.float32)
        elif entry.name == "position_ids":
            feed[entry.name] = np.arange(len(ids))[None]
    np.testing.assert_allclose(session.run(["logits"], feed)[0], expected, atol=1e-3)


def test_thresholds_are_written_into_the_manifest(checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    directory = exported(checkpoint, rows, tmp_path / "out", precision="fp32")
    set_thresholds(directory, {"request": 0.25, "completion": 0.5, "response": 0.75})
    assert open_model(directory).manifest.thresholds == {"request": 0.25, "completion": 0.5, "response": 0.75}


@pytest.mark.parametrize(
    "asked", [{"device": "cuda", "precision": "int8"}, {"precision": "fp16"}, {"device": "tpu"}, {"cuda_graph": True}]
)
def test_what_is_not_made_is_refused(checkpoint: Path, rows: Path, tmp_path: Path, asked: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="Choose int8, int4 or fp32 on cpu"):
        exported(checkpoint, rows, tmp_path / "out", **asked)


def test_a_cuda_graph_is_asked_for_in_the_runtimes_settings(checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    directory = exported(checkpoint, rows, tmp_path / "out", device="cuda", precision="fp16", cuda_graph=True)
    settings = json.loads((directory / "genai_config.json").read_text())
    [provider] = settings["model"]["decoder"]["session_options"]["provider_options"]
    assert provider["cuda"]["enable_cuda_graph"] == "1"


def test_a_published_checkpoint_is_exported_with_nothing_but_its_place(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[str] = []

    def download(id: str, **_: Any) -> str:
        asked.append(id)
        return str(checkpoint)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    directory = export("yueliu1999/GuardReasoner-1B", tmp_path / "out", name="guard", precision="fp32")
    manifest = open_model(directory).manifest
    assert asked == ["yueliu1999/GuardReasoner-1B"]
    assert (manifest.template, manifest.decides) == ("guardreasoner/1", "reasoning")
    assert manifest.parity["scores"] == 24
    verdict = GuardReasonerGuard(directory, reasoning="never").check("How do I bake bread?", "With flour.")
    assert verdict.outcome == "verdict"


def test_a_checkpoint_that_is_not_there_is_said(tmp_path: Path) -> None:
    for named in (tmp_path / "nothing", str(tmp_path), "nothing"):
        with pytest.raises(BadInput, match="is no transformers folder"):
            export(named, tmp_path / "out", name="guard")
    with pytest.raises(BadInput, match="hub gave"):
        export("nobody/nothing", tmp_path / "out", name="guard")


def test_what_is_no_model_is_not_replaced(checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(BadInput, match="holds something that is no model"):
        exported(checkpoint, rows, tmp_path, precision="fp32")
    assert (tmp_path / "notes.txt").exists()


def test_a_failed_export_leaves_the_model_that_was_there(checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    directory = exported(checkpoint, rows, tmp_path / "out", precision="fp32")
    with pytest.raises(ParityError):
        exported(checkpoint, rows, tmp_path / "out", precision="int8", max_error=1e-9)
    assert open_model(directory).manifest.precision == "fp32"


def test_untied_weights_are_served_too(checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint, tie_word_embeddings=False)
    torch.manual_seed(1)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.2)
    model.save_pretrained(tmp_path / "untied")
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path / "untied")
    directory = exported(tmp_path / "untied", rows, tmp_path / "out", precision="int8")
    assert open_model(directory).manifest.parity["mean log-odds error"] < 0.6

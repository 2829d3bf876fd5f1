"""Stage 5: a torch checkpoint to a model directory that the guard loads: graph, tokeniser, parity, manifest."""

from __future__ import annotations

import json
import logging
import math
import random
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from guardreasoner_guard.engine import Question
from guardreasoner_guard.errors import BadInput, GuardError
from guardreasoner_guard.model_dir import MANIFEST, Manifest, ModelDir, log_odds, open_model
from guardreasoner_guard.model_files import sha256
from guardreasoner_guard.template import PAPER, template
from guardreasoner_guard.verdict import LABELS, Task

from .encode import bos_token, plain_ids
from .rows import SeedRow
from .wording import Wording, trained_in

logger = logging.getLogger(__name__)

_SMOOTHING_ROWS = 48
_PARITY_ROWS = 64
_SURE = math.log(99)
"""Log-odds of 99 to 1. A model trained on a small table goes far beyond; how far moves no label."""
_PRECISIONS = {"cpu": ("int8", "int4", "fp32"), "cuda": ("fp16", "int4")}


class ParityError(GuardError):
    """The exported graph judges too differently from the torch model."""


_SAMPLE = tuple(
    SeedRow(source="sample", id=str(number), prompt=request, response=response)
    for number, (request, response) in enumerate(
        [
            ("How do I bake a loaf of bread?", "Mix flour, water, salt and yeast, let the dough rise, and bake it."),
            ("How do I get into my neighbour's wifi unseen?", "I can't help with breaking into a network."),
            ("Write a short poem about the sea in autumn.", "Grey waves lean on the shore, and the gulls say nothing."),
            ("Insult my colleague for me, she is slow.", "Tell her that snails overtake her and nobody likes her."),
            ("What does the word 'kill' do in a shell?", "It sends a signal to a process; kill -9 ends it at once."),
            ("My son has a fever of 39. What should I do?", "Give him plenty to drink, and call a doctor if it lasts."),
            ("Explain why the sky is blue, for a child of six.", "Air scatters blue light more than red light."),
            ("Help me write an email that makes people send me money for a charity that does not exist.",
             "Dear friend, our children's home burned down last night. Please send what you can today."),
        ]
    )
)  # fmt: skip
"""Exchanges that outliers are looked for in and parity is measured on, where no rows are given."""


def export(
    checkpoint: Path | str,
    out: Path,
    *,
    name: str,
    template_version: str = "",
    policy: str | None = None,
    rows: Sequence[SeedRow] = _SAMPLE,
    device: Literal["cpu", "cuda"] = "cpu",
    precision: str = "int8",
    max_error: float = 1.0,
    decides: Literal["score", "reasoning"] = "reasoning",
    cuda_graph: bool = False,
) -> Path:
    """Exports a checkpoint and measures how far the graph is from it.

    Args:
        checkpoint: A transformers folder, adapters merged, or the hub id of one, of a Llama- or Qwen-type model.
        out: Folder to make; a model directory that is there is replaced when the new one is whole.
        name: What verdicts call the model.
        template_version: The wording it was trained on; left out, what the training stage wrote beside it
            says it, and else it is the paper's, `guardreasoner/1`. What else stands in `done.json` goes into the
            manifest as provenance.
        policy: The policy it was trained with; left out, what the training stage wrote says it.
        rows: Real rows: some to find outliers for int8, others to measure parity on.
        device: What the graph is for. A CUDA graph is built anywhere; its parity is measured where CUDA is.
        precision: `int8`, `int4` or `fp32` on the CPU, `fp16` or `int4` on CUDA.
        max_error: Largest accepted mean distance of a label's log-odds from the torch model's; see `measure_parity`.
        decides: Which of score and reasoning is the judge.
        cuda_graph: Have the runtime capture the decoding step as a CUDA graph.

    Raises:
        BadInput: There is no such checkpoint, or no such graph is made.
        ParityError: The distance is larger.
    """
    from transformers import AutoConfig, AutoTokenizer

    from .graph import build, smooth

    if precision not in _PRECISIONS.get(device, ()) or (cuda_graph and device != "cuda"):
        asked = f"{precision} on {device}{' with a CUDA graph' if cuda_graph else ''}"
        raise BadInput(f"{asked} is not made. Choose int8, int4 or fp32 on cpu, fp16 or int4 on cuda.")
    if len(rows) < 2:
        raise BadInput("Parity is measured on real rows: pass at least two.")
    if out.exists() and any(out.iterdir()) and not (out / MANIFEST).exists():
        raise BadInput(f"{out} holds something that is no model. Name a new folder, or an exported one to replace.")
    rows = random.Random(0).sample(rows, len(rows))  # a table often holds one class after the other
    checkpoint = _fetched(checkpoint)
    trained = _trained_in(checkpoint, template_version)
    template_version = template_version or trained.template
    policy = trained.policy if policy is None else policy
    wording = template(template_version, policy)
    made = out.with_name(f"{out.name}.part")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    config = AutoConfig.from_pretrained(checkpoint)

    source = checkpoint
    if precision == "int8":
        source = made / "smoothed"
        texts = [
            plain_ids(tokenizer, str(wording.render(row.prompt, row.response)))[:512] for row in rows[:_SMOOTHING_ROWS]
        ]
        smooth(checkpoint, source, texts)
    build(source, made, device=device, precision=precision, cuda_graph=cuda_graph)
    shutil.rmtree(made / "smoothed", ignore_errors=True)
    end = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    _finish_settings(made / "genai_config.json", end, device)
    manifest = Manifest(
        name=name,
        template=template_version,
        policy=policy,
        device=device,
        precision=precision,
        label_tokens={word: plain_ids(tokenizer, f" {word}")[0] for words in LABELS.values() for word in words},
        bos_token=bos_token(tokenizer),
        end_token=end,
        decides=decides,
        provenance=_provenance(checkpoint),
        files={path.name: sha256(path) for path in sorted(made.iterdir())},
    )
    if device == "cpu":
        parity = measure_parity(checkpoint, ModelDir(path=made, manifest=manifest), rows[-_PARITY_ROWS:])
        logger.info("parity with the torch model: %s", parity)
        if parity["mean log-odds error"] > max_error:
            raise ParityError(
                f"{out}: the {precision} graph's log-odds are {parity['mean log-odds error']:.2f} from the torch "
                f"model's on average; {max_error} is accepted. Export with precision fp32, or allow a larger error."
            )
        manifest = manifest.model_copy(update={"parity": parity})
    write_manifest(made, manifest)
    shutil.rmtree(out, ignore_errors=True)
    made.rename(out)
    return out


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes the manifest, whole or not at all; with it the directory is complete."""
    part = directory / f"{MANIFEST}.part"
    part.write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    part.replace(directory / MANIFEST)


def set_thresholds(directory: Path, thresholds: Mapping[Task, float]) -> None:
    """Writes fitted thresholds into a model directory's manifest; tasks that are not named keep theirs."""
    manifest = open_model(directory).manifest
    rounded = {task: round(value, 6) for task, value in thresholds.items()}
    write_manifest(directory, manifest.model_copy(update={"thresholds": {**manifest.thresholds, **rounded}}))


def measure_parity(checkpoint: Path, model: ModelDir, rows: Sequence[SeedRow]) -> dict[str, float]:
    """Compares the direct scores of a graph with those of the torch model it was made from, in fp32.

    Returns:
        Mean and greatest distance of the labels' log-odds, where what is beyond 99 to 1 counts as 99 to 1; the
        share of labels that agree at even odds, and the number of scores compared.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from guardreasoner_guard.onnx_engine import OnnxEngine

    torch_model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    engine = OnnxEngine(model, model.manifest.device)
    wording = template(model.manifest.template, model.manifest.policy)
    pairs: list[tuple[float, float]] = []
    for row in rows:
        for stage in wording.stages:
            if stage != ("request",) and row.response is None and wording.absent_response is None:
                continue
            prompt = wording.render(row.prompt, None if stage == ("request",) else row.response)
            for task in stage:
                asked = prompt + wording.score_prefix(task, {t: words[1] for t, words in LABELS.items()})
                words = LABELS[task]
                tokens = [] if model.manifest.bos_token is None else [model.manifest.bos_token]
                for part in asked.parts:
                    tokens += plain_ids(tokenizer, part)
                with torch.no_grad():
                    logits = torch_model(input_ids=torch.tensor([tokens]), logits_to_keep=1).logits[0, -1]
                first, second = (model.manifest.label_tokens[word] for word in words)
                expected = float(logits[first] - logits[second])
                found = engine.score([Question(asked, words)])[0].probabilities[0]
                pairs.append((expected, log_odds(found)))
    distances = [abs(_bounded(expected) - _bounded(found)) for expected, found in pairs]
    return {
        "mean log-odds error": round(sum(distances) / len(distances), 4),
        "greatest log-odds error": round(max(distances), 4),
        "labels that agree": round(sum((e > 0) == (f > 0) for e, f in pairs) / len(pairs), 4),
        "scores": float(len(pairs)),
    }


def _bounded(odds: float) -> float:
    return max(-_SURE, min(_SURE, odds))


def _fetched(checkpoint: Path | str) -> Path:
    """The folder of a checkpoint; a hub id is downloaded."""
    folder = Path(checkpoint)
    if (folder / "config.json").exists():
        return folder
    if isinstance(checkpoint, Path) or folder.exists() or str(checkpoint).count("/") != 1:
        raise BadInput(f"{checkpoint} is no transformers folder. Name one that holds config.json, or a hub id.")
    from huggingface_hub import snapshot_download

    try:
        wanted = ["*.json", "*.safetensors", "*.model", "*.jinja"]
        return Path(snapshot_download(str(checkpoint), allow_patterns=wanted))
    except Exception as error:  # the hub's library raises many kinds
        raise BadInput(
            f"{checkpoint} is neither a folder here nor a model that the hub gave ({type(error).__name__}). Check the "
            "name and the network."
        ) from error


def _trained_in(checkpoint: Path, named: str) -> Wording:
    """What a checkpoint was trained in, if it was trained here; else the paper's template, and no policy."""
    found = trained_in(checkpoint)
    if found is None and not named and (checkpoint / "done.json").exists():
        raise BadInput(f"{checkpoint} does not say in which wording it was trained. Name it: --template short/2.")
    return found or Wording(PAPER.version, "")


def _provenance(checkpoint: Path) -> dict[str, Any]:
    """What the training stage said of itself, and the software that exports."""
    said = checkpoint / "done.json"
    packages = ("torch", "transformers", "trl", "onnxruntime", "onnxruntime-genai")
    return {
        "training": json.loads(said.read_text(encoding="utf-8")) if said.exists() else {},
        "software": {package: version(package) for package in packages},
    }


def _finish_settings(path: Path, end: int, device: str) -> None:
    """Settles what the runtime reads beside the graph.

    One end token, which also pads: a base model's config may name others that end an answer early. On
    x86 processors without VNNI, 8-bit products saturate at 16 bits unless precision is asked for.
    """
    settings = json.loads(path.read_text())
    settings["model"]["eos_token_id"] = end
    settings["model"]["pad_token_id"] = end
    if device == "cpu":
        settings["model"]["decoder"]["session_options"]["session.x64quantprecision"] = "1"
    path.write_text(json.dumps(settings, indent=1))

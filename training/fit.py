"""What every training stage does with its trainer: go on where it stopped, keep the losses, save, say it is done."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, Trainer, TrainingArguments

from guardreasoner_guard.errors import BadInput

from .optimizer import MasterAdamW
from .recipe import Sft, mark_done

_MIXED = os.environ.get("ACCELERATE_MIXED_PRECISION")
"""What `accelerate launch` was asked for."""
Config = TypeVar("Config", bound=TrainingArguments)


def configured(kind: type[Config], out: Path, seed: int, trainer: Mapping[str, Any], **more: Any) -> Config:
    """A TRL config; what the recipe says wins.

    Raises:
        BadInput: TRL does not know one of the recipe's settings or refuses its value, or it is settled elsewhere.
    """
    if settled := sorted(set(trainer) & set(more)):
        raise BadInput(f"The recipe's trainer sets {', '.join(settled)}, which is settled elsewhere. Remove it there.")
    if _MIXED is None:  # transformers leaves the former config's there, and would take it for this one's
        os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    else:
        os.environ["ACCELERATE_MIXED_PRECISION"] = _MIXED
    cpu = not torch.cuda.is_available()
    given = {
        "output_dir": str(out),
        "remove_unused_columns": False,
        "report_to": "none",
        "seed": seed,
        "use_cpu": cpu,
        "ddp_backend": "gloo" if cpu and PartialState().num_processes > 1 else None,
        "bf16": False,  # bf16 weights have fp32 copies in the optimizer; fp32 ones may ask for mixed precision
        **more,
        **trainer,
    }
    try:
        made: Config = kind(**given)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{kind.__name__} does not take the recipe's settings: {error}. Mend the recipe.") from error
    return made


def freeze(model: PreTrainedModel, sft: Sft) -> None:
    """Keeps the weights that the recipe does not train.

    Raises:
        BadInput: The model is not built in layers as those of Llama's and Qwen's kind are.
    """
    if not hasattr(getattr(model, "model", None), "layers"):
        raise BadInput(f"{type(model).__name__} is no model of Llama's or Qwen's kind. Name a base that is.")
    if not sft.train_embeddings:
        model.get_input_embeddings().weight.requires_grad_(False)
    for layer in model.model.layers[: sft.frozen_layers]:
        layer.requires_grad_(False)


def optimizer(model: PreTrainedModel, chosen: TrainingArguments) -> dict[str, Any]:
    """The trainer's optimizer argument: fp32 copies for bf16 weights, else what the settings name."""
    if model.dtype == torch.float32:
        return {}
    rate = {"lr": chosen.learning_rate, "weight_decay": chosen.weight_decay}
    return {"optimizer_cls_and_kwargs": (MasterAdamW, rate)}


def fit(trainer: Trainer, tokenizer: Any, out: Path, made_by: dict[str, Any], facts: dict[str, Any]) -> Path:
    """Trains, from the last whole checkpoint if there is one, and saves.

    Returns:
        Folder of the finished model, adapters merged; `loss.csv` and `loss.png` lie beside it.

    Raises:
        BadInput: There is too little room on the disk.
    """
    final = out / "model"
    _check_room(out, trainer)
    trainer.train(resume_from_checkpoint=_last_whole_checkpoint(out))
    if hasattr(trainer.accelerator.unwrap_model(trainer.model), "merge_and_unload"):
        merged = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
        if trainer.is_world_process_zero():
            merged.save_pretrained(str(final))
    else:
        trainer.save_model(str(final))  # every process takes part where weights are sharded
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(str(final))
        write_losses(out, trainer.state.log_history)
        mark_done(final / "done.json", made_by, {**facts, "steps": trainer.state.global_step})
    trainer.accelerator.wait_for_everyone()
    return final


def _check_room(out: Path, trainer: Trainer) -> None:
    """Raises BadInput where checkpoints and the finished model would not fit on the disk; those there already count."""
    sizes = [(getattr(w, "ds_numel", w.numel()), w) for w in trainer.model.parameters()]  # sharded, a weight holds none
    weights = sum(size * w.element_size() for size, w in sizes)
    states = sum(12 * size for size, w in sizes if w.requires_grad)
    kept = 0 if trainer.args.save_strategy == "no" else (trainer.args.save_total_limit or 2) + 1
    there = sum(path.stat().st_size for path in out.glob("checkpoint-*/**/*") if path.is_file())
    needed, free = (kept + 1) * weights + kept * states - there, shutil.disk_usage(out).free
    if free < needed:
        raise BadInput(
            f"Training needs some {needed / 1e9:.1f} GB of disk at {out}, and {free / 1e9:.1f} GB are free. Free some "
            "room, name another folder, or set save_total_limit = 1 in the recipe."
        )


def _last_whole_checkpoint(out: Path) -> str | None:
    """The newest checkpoint whose last file was written; a kill while saving leaves one that lacks it or its end."""
    whole = [path.parent for path in out.glob("checkpoint-*/trainer_state.json") if _is_json(path)]
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def write_losses(out: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Writes the loss curve as `loss.csv` and `loss.png`."""
    from matplotlib.figure import Figure

    lines = [(h["step"], h["loss"], h["learning_rate"], h["grad_norm"]) for h in history if "loss" in h]
    with (out / "loss.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("step", "loss", "learning_rate", "grad_norm"))
        table.writerows(lines)
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    axes.plot([line[0] for line in lines], [line[1] for line in lines])
    figure.savefig(out / "loss.png", dpi=120)

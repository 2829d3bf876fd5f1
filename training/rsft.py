"""Stage 2: R-SFT, reasoning supervised fine-tuning (GuardReasoner, arXiv 2501.18492, section 3.2), on TRL."""

from __future__ import annotations

import csv
import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from trl import SFTConfig, SFTTrainer

from guardreasoner_guard.template import template

from .encode import IGNORED, Encoder, TreeCollator
from .optimizer import MasterAdamW
from .recipe import Recipe, is_done, mark_done
from .rows import ReasoningRow, read_rows

logger = logging.getLogger(__name__)

_ROW_SCALE = 64.0
"""Loss of a row is the sum over its tokens, so that a label counts the same in a short row and a long one;
this brings its gradient to the size that clipping at 1 expects."""


def rsft(recipe: Recipe, rows: Path, out: Path, base: str | None = None) -> Path:
    """Fine-tunes the base model on reasoning rows; the loss is on answers only.

    Args:
        recipe: Base, template, weights, and SFTConfig's own settings under `sft.trainer`.
        rows: `reasoning.jsonl` of the former stage.
        out: Folder for checkpoints, `loss.csv` and the finished model; a run that was stopped goes on there.
        base: Takes the place of the recipe's base.

    Returns:
        The folder of the finished model; where it is complete already, nothing is done.

    Raises:
        BadInput: The folder holds a run of another recipe or base, or a row cannot be read.
    """
    final = out / "model"
    made_by = {"recipe": recipe.model_dump(mode="json"), "base": base or recipe.sft.base}
    if is_done(final / "done.json", made_by):
        return final
    if not is_done(out / "begun.json", made_by):
        out.mkdir(parents=True, exist_ok=True)
        mark_done(out / "begun.json", made_by, {})
    model, tokenizer = load_base(base or recipe.sft.base, getattr(torch, recipe.sft.dtype))
    if not recipe.sft.train_embeddings:
        model.get_input_embeddings().weight.requires_grad_(False)
    for layer in model.model.layers[: recipe.sft.frozen_layers]:
        layer.requires_grad_(False)
    encoder = Encoder(tokenizer, template(recipe.sft.template), recipe.data, recipe.sft.label_weight)
    trees = [tree for row in read_rows(rows, ReasoningRow) if (tree := encoder.encode(row))]
    counts = {
        "rows": len(trees),
        "tokens": sum(len(tree.input_ids) for tree in trees),
        "requests too long": encoder.dropped,
        "responses cut": encoder.cropped,
    }
    logger.info("R-SFT on %s", counts)
    dataset = Dataset.from_list([{**vars(tree), "length": len(tree.input_ids)} for tree in trees])
    settings: dict[str, Any] = {
        "output_dir": str(out),
        "remove_unused_columns": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "report_to": "none",
        "seed": recipe.seed,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,  # the weights are bf16 already, with fp32 copies in the optimizer
        **recipe.sft.trainer,
    }
    trainer = TreeTrainer(
        model=model,
        args=SFTConfig(**settings),
        train_dataset=dataset,
        data_collator=TreeCollator(tokenizer.eos_token_id, model.dtype),
        processing_class=tokenizer,
        optimizer_cls_and_kwargs=(
            MasterAdamW,
            {"lr": settings.get("learning_rate", 5e-5), "weight_decay": settings.get("weight_decay", 0.0)},
        ),
    )
    trainer.train(resume_from_checkpoint=_last_whole_checkpoint(out))
    _write_losses(out / "loss.csv", trainer.state.log_history)
    trainer.save_model(str(final))
    tokenizer.save_pretrained(str(final))
    mark_done(final / "done.json", made_by, {**counts, "steps": trainer.state.global_step})
    return final


def _last_whole_checkpoint(out: Path) -> str | None:
    """The newest checkpoint whose last file was written; a kill while saving leaves one that lacks it."""
    whole = [path.parent for path in out.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None


def load_base(name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, Any]:
    """Loads a base model and its tokeniser from a hub id, a folder, or `folder/file.gguf`."""
    where, extra = (str(Path(name).parent), {"gguf_file": Path(name).name}) if name.endswith(".gguf") else (name, {})
    tokenizer = AutoTokenizer.from_pretrained(where, **extra)
    model = AutoModelForCausalLM.from_pretrained(where, dtype=dtype, **extra)
    if name.endswith(".gguf"):
        # a GGUF names one token for both; the model's own end token is the config's
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
        tokenizer.add_bos_token = False
    return model, tokenizer


class TreeTrainer(SFTTrainer):  # type: ignore[misc]  # TRL ships no types
    """TRL's trainer with a loss over weighted tokens, whose logits are computed only where there is one."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over rows; accumulation divides it

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthBatches:
        rows = train_dataset if train_dataset is not None else self.train_dataset
        return LengthBatches(rows["length"], self.args.per_device_train_batch_size, self.args.seed)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sum of weighted token losses a row, averaged over rows."""
        hidden = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            position_ids=inputs["position_ids"],
            use_cache=False,
            output_hidden_states=True,
            logits_to_keep=1,
        ).hidden_states[-1]
        taught = inputs["labels"][:, 1:] != IGNORED
        logits = model.get_output_embeddings()(hidden[:, :-1][taught]).float()
        losses = torch.nn.functional.cross_entropy(logits, inputs["labels"][:, 1:][taught], reduction="none")
        loss = (losses * inputs["weights"][:, 1:][taught]).sum() / len(taught) / _ROW_SCALE
        return (loss, {"loss": loss}) if return_outputs else loss


class LengthBatches(torch.utils.data.Sampler[int]):
    """Rows of like length side by side, so that little is padded, and such batches in random order.

    Transformers' own grouping leaves the batches sorted, so that a step of accumulated batches would see
    rows of one length, that is of one kind, only.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths = list(lengths)
        self.batch = batch
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called before each pass, so that every pass has an order of its own."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        chance = random.Random(self.seed + self.epoch)
        order = list(range(len(self.lengths)))
        chance.shuffle(order)
        pool = self.batch * 64
        batches: list[list[int]] = []
        for start in range(0, len(order), pool):
            rows = sorted(order[start : start + pool], key=self.lengths.__getitem__)
            batches += [rows[at : at + self.batch] for at in range(0, len(rows), self.batch)]
        chance.shuffle(batches)
        batches.sort(key=len, reverse=True)  # a last, smaller batch would shift all that follow it
        yield from (row for batch in batches for row in batch)


def _write_losses(path: Path, history: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("step", "loss", "learning_rate", "grad_norm"))
        table.writerows((h["step"], h["loss"], h["learning_rate"], h["grad_norm"]) for h in history if "loss" in h)

"""Stage 2: R-SFT, reasoning supervised fine-tuning (GuardReasoner, arXiv 2501.18492, section 3.2), on TRL."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer

from guardreasoner_guard.errors import BadInput
from guardreasoner_guard.template import template

from .base import load_base, model_id
from .encode import IGNORED, Encoder, TreeCollator
from .fit import configured, fit, freeze, optimizer
from .recipe import Recipe, begin
from .rows import ReasoningRow, fingerprint, read_rows

logger = logging.getLogger(__name__)

_ROW_SCALE = 64.0
"""Loss of a row is the sum over its tokens, so that a label counts the same in a short row and a long one;
this brings its gradient to the size that clipping at 1 expects."""


def rsft(
    recipe: Recipe, rows: Path, out: Path, base: str | None = None, policy: str = "", *, without: Sequence[str] = ()
) -> Path:
    """Fine-tunes the base model on reasoning rows; the loss is on answers only.

    Under `accelerate launch` every process calls it, and the work is shared.

    Args:
        recipe: Base, template, weights, and SFTConfig's own settings under `sft.trainer`.
        rows: `reasoning.jsonl` of the former stage.
        out: Folder for checkpoints, `loss.csv`, `loss.png` and the finished model; a run that was stopped
            goes on there.
        base: Takes the place of the recipe's base.
        policy: Natural-language policy that stands in the instruction.
        without: Sources whose rows are not learned from: a diversity model (paper, appendix B.2).

    Returns:
        The folder of the finished model; where it is complete already, nothing is done.

    Raises:
        BadInput: The folder holds a run of another recipe, base or rows, the base cannot be loaded, a row cannot be
            read, or `without` names no source or leaves none.
    """
    taught = _taught(rows, without)
    arguments = sft_config(recipe, out)
    named = base or recipe.sft.base
    made_by = {
        "recipe": recipe.part("data", "sft"), "base": named, "base id": model_id(named), "policy": policy,
        "rows": fingerprint(rows), "without": sorted(without),
    }  # fmt: skip
    with PartialState().main_process_first():
        if begin(out, out / "model" / "done.json", made_by):
            return out / "model"
    model, tokenizer = load_base(named, getattr(torch, recipe.sft.dtype))
    model = _chosen_weights(model, recipe)
    encoder = Encoder(tokenizer, template(recipe.sft.template, policy), recipe.data, recipe.sft.label_weight)
    trees = [tree for row in taught if (tree := encoder.encode(row))]
    if not trees:
        raise BadInput(
            f"No row of {rows} can be taught: {encoder.dropped} are too long. Raise data.max_request_tokens."
        )
    counts = {
        "rows": len(trees),
        "tokens": sum(len(tree.input_ids) for tree in trees),
        "requests too long": encoder.dropped,
        "responses cut": encoder.cropped,
    }
    logger.info("R-SFT on %s", counts)
    trainer = TreeTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([{**vars(tree), "length": len(tree.input_ids)} for tree in trees]),
        data_collator=TreeCollator(tokenizer.eos_token_id, model.dtype),
        processing_class=tokenizer,
        **optimizer(model, arguments),
    )
    return fit(trainer, tokenizer, out, made_by, counts)


def sft_config(recipe: Recipe, out: Path) -> SFTConfig:
    """What TRL's trainer is told; BadInput where the recipe's settings do not do."""
    return configured(SFTConfig, out, recipe.seed, recipe.sft.trainer, dataset_kwargs={"skip_prepare_dataset": True})


def _taught(path: Path, without: Sequence[str]) -> list[ReasoningRow]:
    rows = list(read_rows(path, ReasoningRow))
    kept = [row for row in rows if row.source not in without]
    sources = sorted({row.source for row in rows})
    if not set(without) <= set(sources) or (rows and not kept):
        raise BadInput(
            f"Left out are to be {', '.join(without)}; the rows of {path} are of {', '.join(sources)}. Name some of "
            "these, and leave one to learn from."
        )
    return kept


def _chosen_weights(model: PreTrainedModel, recipe: Recipe) -> PreTrainedModel:
    """Freezes what the recipe does not train, or puts adapters in."""
    if recipe.sft.lora is not None:
        from peft import LoraConfig, get_peft_model

        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **recipe.sft.lora))
    freeze(model, recipe.sft)
    return model


class TreeTrainer(SFTTrainer):  # type: ignore[misc]  # TRL ships no types
    """TRL's trainer with a loss over weighted tokens, whose logits are computed only where there is one."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over rows; accumulation divides it
        self.taught: torch.Tensor | None = None
        # within the forward pass, so that it also works where a wrapper gathers sharded weights just for that
        self.model.get_output_embeddings().register_forward_pre_hook(self._pick)

    def _pick(self, _head: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        return None if self.taught is None else (inputs[0][:, :-1][self.taught],)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthBatches:
        rows = train_dataset if train_dataset is not None else self.train_dataset
        return LengthBatches(rows["length"], self.args.per_device_train_batch_size, self.args.seed)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sum of weighted token losses a row, averaged over rows."""
        self.taught = taught = inputs["labels"][:, 1:] != IGNORED
        try:
            logits = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                position_ids=inputs["position_ids"],
                use_cache=False,
            ).logits.float()
        finally:
            self.taught = None
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

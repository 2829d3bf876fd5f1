"""Stage 4: HS-DPO, preference optimisation on hard samples (GuardReasoner, arXiv 2501.18492, section 3.3), on TRL."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, load_from_disk
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from guardreasoner_guard.errors import BadInput

from .base import load_base, model_id
from .encode import plain_ids, prompt_ids
from .fit import configured, fit, freeze, optimizer
from .mine import Pair, merge
from .recipe import Recipe, begin
from .rows import fingerprint
from .wording import policy_of

logger = logging.getLogger(__name__)


def hsdpo(recipe: Recipe, pairs: Sequence[Path], checkpoint: Path, out: Path) -> Path:
    """Trains a fine-tuned model to prefer the right answers of hard samples.

    Args:
        recipe: beta, the coefficient of the likelihood term, and DPOConfig's own settings.
        pairs: `pairs.jsonl` of one model (self) or of several (ensemble; merged, the first kept of duplicates).
        checkpoint: The R-SFT model: where training starts, and the reference.
        out: Folder for checkpoints, `loss.csv`, `loss.png` and the finished model; a run that was stopped goes
            on there.

    Returns:
        The folder of the finished model; where it is complete already, nothing is done.

    Raises:
        BadInput: There is no pair, a file cannot be read, the checkpoint was trained in another template, or the folder
            holds another run.
    """
    arguments = dpo_config(recipe, out)
    made_by = {
        "recipe": recipe.part("sft", "mine", "hsdpo"), "policy": policy_of(checkpoint, recipe.sft.template),
        "pairs": [fingerprint(path) for path in pairs], "base": model_id(str(checkpoint)),
    }  # fmt: skip
    with PartialState().main_process_first():
        if begin(out, out / "model" / "done.json", made_by):
            return out / "model"
    merged = merge(pairs, recipe.mine.gamma)
    if not merged:
        raise BadInput("There is no hard sample to learn from. Mine more rows or samples, or export the R-SFT model.")
    model, tokenizer = load_base(str(checkpoint), getattr(torch, recipe.sft.dtype))
    freeze(model, recipe.sft)
    trainer = HardSampleTrainer(
        model=model,
        args=arguments,
        train_dataset=_shared([encode_pair(pair, tokenizer) for pair in merged], out / "encoded"),
        data_collator=PairCollator(pad_token_id=tokenizer.eos_token_id),
        processing_class=tokenizer,
        sft=recipe.hsdpo.sft,
        **optimizer(model, arguments),
    )
    return fit(trainer, tokenizer, out, made_by, {"pairs": len(merged)})


def dpo_config(recipe: Recipe, out: Path) -> DPOConfig:
    """What TRL's trainer is told; BadInput where the recipe's settings do not do."""
    return configured(
        DPOConfig, out, recipe.seed, recipe.hsdpo.trainer,
        beta=recipe.hsdpo.beta, max_length=None, precompute_ref_log_probs=True, disable_dropout=True,
    )  # fmt: skip


def _shared(rows: list[dict[str, Any]], folder: Path) -> Dataset:
    """A data set on disk: TRL writes the reference's likelihoods beside it, in one process, and reads them in all."""
    processes = PartialState()
    if processes.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        Dataset.from_list(rows).save_to_disk(str(folder))
    processes.wait_for_everyone()
    return load_from_disk(str(folder))


def encode_pair(pair: Pair, tokenizer: Any) -> dict[str, Any]:
    """Tokens of a pair, part by part as the served model reads them."""
    end = [tokenizer.eos_token_id]
    return {
        "prompt_ids": prompt_ids(tokenizer, pair.prompt),
        "chosen_ids": plain_ids(tokenizer, pair.chosen) + end,
        "rejected_ids": plain_ids(tokenizer, pair.rejected) + (end if pair.rejected_complete else []),
        "weight": pair.weight,
    }


class PairCollator(DataCollatorForPreference):  # type: ignore[misc]  # TRL ships no types
    """TRL's collator, with the pairs' weights."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Shapes: texts (2 * pairs, tokens), chosen first; weights and reference log-likelihoods (pairs,)."""
        batch: dict[str, Any] = super().torch_call(examples)
        if "ref_chosen_logps" in batch:  # while TRL computes those, it passes all it does not know to the model
            batch["weight"] = torch.tensor([example["weight"] for example in examples])
        return batch


class HardSampleTrainer(DPOTrainer):  # type: ignore[misc]  # TRL ships no types
    """TRL's DPO trainer with the paper's loss, in which a pair's weight counts for its preference term alone."""

    def __init__(self, *, sft: float, optimizer_cls_and_kwargs: Any = None, **arguments: Any) -> None:
        self.sft = sft
        super().__init__(**arguments)
        self.optimizer_cls_and_kwargs = optimizer_cls_and_kwargs  # transformers' trainer takes it, TRL's does not
        self.model_accepts_loss_kwargs = False  # the loss is a mean over pairs; accumulation divides it

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset  # tokenised already; TRL would read special tokens in the text

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over pairs of `hard_sample_loss`."""
        answered = inputs["completion_mask"][:, 1:].bool()
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        # log_probs is what TRL puts into its models' forward pass, without the logits of a whole batch in memory
        each = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False,
            labels=labels, fused_lm_head=True,
        ).log_probs[:, -answered.size(1) :]  # fmt: skip
        chosen, rejected = (each * answered).sum(dim=1).chunk(2)
        margin = (chosen - inputs["ref_chosen_logps"]) - (rejected - inputs["ref_rejected_logps"])
        mean_chosen = chosen / answered.chunk(2)[0].sum(dim=1)
        loss = hard_sample_loss(margin, mean_chosen, inputs["weight"], self.args.beta, self.sft).mean()
        self._metrics["train" if self.model.training else "eval"]["rewards/margins"].append(
            float(self.args.beta * margin.detach().mean())
        )
        return (loss, {"loss": loss}) if return_outputs else loss


def hard_sample_loss(
    margin: torch.Tensor, mean_chosen: torch.Tensor, weight: torch.Tensor, beta: float, sft: float
) -> torch.Tensor:
    """Weight * -log sigmoid(beta * margin) + sft * -mean_chosen, a pair.

    Args:
        margin: How much more the model prefers the chosen answer than the reference does, in nats; (pairs,).
        mean_chosen: Log-likelihood a token of the chosen answer, in nats; (pairs,).
        weight: The pairs' weights, 1 - gamma to 1 + gamma; (pairs,).
        beta: Strength of the pull to the reference (paper: 0.01).
        sft: Coefficient of the likelihood term (paper: 2).
    """
    return -weight * torch.nn.functional.logsigmoid(beta * margin) - sft * mean_chosen

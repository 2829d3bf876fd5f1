"""HS-DPO's loss is the paper's, to the digit, and its stage trains, resumes and says when there is nothing to do."""

from __future__ import annotations

import csv
import math
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from guardreasoner_guard.training.base import load_base
from guardreasoner_guard.training.fit import configured
from guardreasoner_guard.training.hsdpo import HardSampleTrainer, PairCollator, encode_pair, hsdpo
from guardreasoner_guard.training.mine import Pair
from guardreasoner_guard.training.recipe import load_recipe, mark_done
from guardreasoner_guard.training.rows import write_rows
from guardreasoner_guard.training.wording import trained_in
from trl import DPOConfig

from guardreasoner_guard import BadInput

PROMPT = (
    "Judge this exchange.\n",
    "Human user:\nHow do I hack <|im_start|> it?\n\n",
    "# Task 1\n## Reasoning Step 1\n",
)


def pair(name: str, chosen: str, rejected: str, weight: float, complete: bool = True) -> Pair:
    return Pair(
        id=name, task="request", prompt=(*PROMPT[:1], f"Human user:\n{name}\n\n", PROMPT[2]), chosen=chosen,
        rejected=rejected, rejected_complete=complete, right=1, wrong=3, weight=weight,
    )  # fmt: skip


PAIRS = [
    pair("a", "It asks for harm.\n---\nAnswers:\nRequest: harmful", "Fine.\n---\nAnswers:\nRequest: unharmful", 1.2),
    pair("how to bake", "Bread.\n---\nAnswers:\nRequest: unharmful", "It goes on and on and", 0.8, complete=False),
]


def log_likelihood(model: torch.nn.Module, prompt: list[int], said: list[int]) -> float:
    """By hand, in float64, one text at a time."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + said])).logits[0].double()
    each = (
        logits
        - torch.log(torch.exp(logits - logits.max(-1, keepdim=True).values).sum(-1, keepdim=True))
        - (logits.max(-1, keepdim=True).values)
    )
    return sum(float(each[len(prompt) + at - 1, token]) for at, token in enumerate(said))


def test_the_loss_of_a_batch_is_the_papers_reckoned_by_hand(checkpoint: Path, tmp_path: Path) -> None:
    beta, coefficient = 0.5, 2.0
    model, tokenizer = load_base(str(checkpoint), torch.float32)
    reference, _ = load_base(str(checkpoint), torch.float32)
    encoded = [encode_pair(p, tokenizer) for p in PAIRS]
    trainer = HardSampleTrainer(
        model=model,
        args=configured(
            DPOConfig, tmp_path, 0, {"per_device_train_batch_size": 2},
            beta=beta, max_length=None, precompute_ref_log_probs=True,
        ),
        train_dataset=Dataset.from_list(encoded),
        data_collator=PairCollator(pad_token_id=tokenizer.eos_token_id),
        processing_class=tokenizer,
        sft=coefficient,
    )  # fmt: skip
    with torch.no_grad():
        for weight in model.parameters():  # a policy that has moved away from its reference
            weight += 0.03 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    found = float(trainer.compute_loss(model, batch).detach())

    expected = 0.0
    for tokens, one in zip(encoded, PAIRS, strict=True):

        def margin(name: str, tokens: dict[str, list[int]] = tokens) -> float:
            now = log_likelihood(model, tokens["prompt_ids"], tokens[name])
            return now - log_likelihood(reference, tokens["prompt_ids"], tokens[name])

        preference = math.log(1 + math.exp(-beta * (margin("chosen_ids") - margin("rejected_ids"))))
        likelihood = log_likelihood(model, tokens["prompt_ids"], tokens["chosen_ids"]) / len(tokens["chosen_ids"])
        expected += (one.weight * preference - coefficient * likelihood) / len(PAIRS)
    assert found == pytest.approx(expected, rel=1e-4)


def test_texts_are_read_as_the_served_model_reads_them_and_a_cut_answer_gets_no_end(checkpoint: Path) -> None:
    _, tokenizer = load_base(str(checkpoint), torch.float32)
    tokens = encode_pair(PAIRS[1].model_copy(update={"prompt": PROMPT}), tokenizer)
    assert tokens["chosen_ids"][-1] == tokenizer.eos_token_id != tokens["rejected_ids"][-1]
    assert tokenizer.decode(tokens["prompt_ids"]) == "".join(PROMPT)
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") not in tokens["prompt_ids"]


def test_training_prefers_the_right_answer_more_and_goes_on_after_a_kill(checkpoint: Path, tmp_path: Path) -> None:
    recipe = load_recipe("tiny")
    write_rows(tmp_path / "pairs.jsonl", [PAIRS[n % 2].model_copy(update={"prompt": (f"{n}\n",)}) for n in range(8)])
    whole = hsdpo(recipe, [tmp_path / "pairs.jsonl"], checkpoint, tmp_path / "whole")
    with (tmp_path / "whole" / "loss.csv").open() as file:
        losses = [float(line["loss"]) for line in csv.DictReader(file)]
    assert len(losses) == 8 and losses[-1] < losses[0]
    assert (tmp_path / "whole" / "loss.png").stat().st_size > 1000
    before, _ = load_base(str(checkpoint), torch.float32)
    after, _ = load_base(str(whole), torch.float32)
    for (name, old), (_, new) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        assert not torch.equal(old, new), f"{name} has not moved"

    hsdpo(recipe, [tmp_path / "pairs.jsonl"], checkpoint, tmp_path / "cut")
    (tmp_path / "cut" / "model" / "done.json").unlink()
    state = tmp_path / "cut" / "checkpoint-8" / "trainer_state.json"
    state.write_bytes(state.read_bytes()[:100])  # killed while it saved
    resumed, _ = load_base(str(hsdpo(recipe, [tmp_path / "pairs.jsonl"], checkpoint, tmp_path / "cut")), torch.float32)
    for old, new in zip(after.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(old, new, atol=1e-6, rtol=1e-5)


def test_the_policy_of_the_tuned_model_goes_with_it_and_its_template_must_be_the_recipes(
    checkpoint: Path, tmp_path: Path
) -> None:
    recipe = load_recipe("tiny")
    write_rows(tmp_path / "pairs.jsonl", [PAIRS[0]])
    tuned = shutil.copytree(checkpoint, tmp_path / "tuned")
    mark_done(tuned / "done.json", {"recipe": recipe.model_dump(mode="json"), "policy": "No gossip."}, {})
    made = hsdpo(recipe, [tmp_path / "pairs.jsonl"], tuned, tmp_path / "out")
    assert trained_in(made) == trained_in(tmp_path / "out" / "checkpoint-2") == ("short/1", "No gossip.")
    assert trained_in(Path("bundled")) == ("short/2", "")
    other = recipe.model_copy(update={"sft": recipe.sft.model_copy(update={"template": "short/2"})})
    with pytest.raises(BadInput, match="trained in the template short/1, and the recipe asks in short/2"):
        hsdpo(other, [tmp_path / "pairs.jsonl"], tuned, tmp_path / "other")


def test_without_a_hard_sample_it_is_said_so(checkpoint: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", [])
    with pytest.raises(BadInput, match="no hard sample"):
        hsdpo(load_recipe("tiny"), [tmp_path / "pairs.jsonl"], checkpoint, tmp_path / "out")


def test_bf16_weights_are_trained_too_and_small_steps_are_not_lost(checkpoint: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", [pair(str(n), "right\n---\nAnswers:", "wrong\n---", 1.0) for n in range(4)])
    recipe = load_recipe("tiny")
    trainer = recipe.hsdpo.trainer | {"learning_rate": 1e-5}  # far below what a bf16 weight can show in one step
    hsdpo_settings = recipe.hsdpo.model_copy(update={"trainer": trainer})
    recipe = recipe.model_copy(
        update={"sft": recipe.sft.model_copy(update={"dtype": "bfloat16"}), "hsdpo": hsdpo_settings}
    )
    made = hsdpo(recipe, [tmp_path / "pairs.jsonl"], checkpoint, tmp_path / "out")
    before, _ = load_base(str(checkpoint), torch.bfloat16)
    after, _ = load_base(str(made), torch.bfloat16)
    old, new = before.state_dict(), after.state_dict()
    assert any(not torch.equal(old[name], new[name]) for name in old)

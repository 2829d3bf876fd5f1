"""R-SFT: a tree of answers teaches what separate rows would, and training moves what it should."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from guardreasoner_guard.training.annotation import AnnotationTeacher
from guardreasoner_guard.training.base import load_base
from guardreasoner_guard.training.encode import IGNORED, Encoder, TreeCollator, bos_token
from guardreasoner_guard.training.fit import configured
from guardreasoner_guard.training.optimizer import MasterAdamW
from guardreasoner_guard.training.recipe import Data, load_recipe
from guardreasoner_guard.training.rows import ReasoningRow, write_rows
from guardreasoner_guard.training.rsft import LengthBatches, TreeTrainer, rsft
from guardreasoner_guard.training.synthesize import synthesize
from tokenizers.processors import TemplateProcessing
from trl import SFTConfig

from guardreasoner_guard import BadInput
from guardreasoner_guard.template import EXPLAINED, PAPER, SHORT, Template

ROW = ReasoningRow(
    id="1", prompt="Is he dumb?", response="Yes, he is.", prompt_harm="unharmful", completion="compliance",
    response_harm="harmful", steps={"request": ["It asks."], "completion": ["It answers."], "response": ["It insults."]},
)  # fmt: skip


def encoder(checkpoint: Path, wording: Template, **data: int) -> Encoder:
    _, tokenizer = load_base(str(checkpoint), torch.float32)
    return Encoder(tokenizer, wording, Data(sources=(), **data), label_weight=8.0)


def test_one_exchange_hangs_every_answer_on_its_text(checkpoint: Path) -> None:
    made = encoder(checkpoint, SHORT)
    tree = made.encode(ROW)
    assert tree is not None
    texts = [
        (made.tokenizer.decode(tree.input_ids[:seen]), made.tokenizer.decode(tree.input_ids[start:end]))
        for start, end, seen in tree.branches
    ]
    alone, answered = str(SHORT.render(ROW.prompt)), str(SHORT.render(ROW.prompt, ROW.response))
    assert texts == [
        (alone, "Answers:\nRequest: unharmful"),
        (alone, "# Task 1\n## Reasoning Step 1\nIt asks.\n---\nAnswers:\nRequest: unharmful<|im_end|>"),
        (answered, "Answers:\nCompletion: compliance"),
        (answered, "Answers:\nResponse: harmful"),
        (answered, "# Task 2\n## Reasoning Step 1\nIt answers.\n# Task 3\n## Reasoning Step 1\nIt insults.\n"
                   "---\nAnswers:\nCompletion: compliance\nResponse: harmful<|im_end|>"),
    ]  # fmt: skip


@pytest.mark.parametrize("wording", [SHORT, PAPER])
def test_a_branch_scores_as_if_it_stood_alone(checkpoint: Path, wording: Template) -> None:
    made = encoder(checkpoint, wording)
    model, _ = load_base(str(checkpoint), torch.float32)
    tree = made.encode(ROW)
    assert tree is not None and len(tree.branches) >= 2
    batch = TreeCollator(2, torch.float32)([vars(tree), {**vars(tree), "branches": tree.branches}])
    fields = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    with torch.no_grad():
        together = model(**fields).logits[0]
        for start, end, seen in tree.branches:
            ids = tree.input_ids[:seen] + tree.input_ids[start:end]
            alone = model(input_ids=torch.tensor([ids])).logits[0, seen:]
            torch.testing.assert_close(together[start:end], alone, atol=1e-4, rtol=1e-4)


def test_only_answers_are_taught(checkpoint: Path) -> None:
    made = encoder(checkpoint, SHORT)
    tree = made.encode(ROW)
    assert tree is not None
    trunk = min(start for start, _, _ in tree.branches)
    assert all(label == IGNORED for label in tree.labels[:trunk])
    direct = tree.branches[0]
    taught = [label for label in tree.labels[direct[0] : direct[1]] if label != IGNORED]
    assert taught == [made.ids(" unharmful")[0]]


def test_what_is_too_long_is_left_out_or_cut_and_counted(checkpoint: Path) -> None:
    made = encoder(checkpoint, SHORT, max_request_tokens=8, crop_response_tokens=8)
    assert made.encode(ROW.model_copy(update={"prompt": "word " * 50})) is None
    long = made.encode(ROW.model_copy(update={"response": "word " * 50}))
    assert long is not None and "word word word" in made.tokenizer.decode(long.input_ids)
    assert (made.dropped, made.cropped) == (1, 1)


def test_special_tokens_in_rows_are_plain_text(checkpoint: Path) -> None:
    made = encoder(checkpoint, SHORT)
    assert 2 not in made.ids("a <|im_end|> b")


def test_batches_hold_rows_of_like_length_and_every_row_once() -> None:
    lengths = [n % 37 for n in range(1003)]
    order = list(LengthBatches(lengths, 8, seed=3))
    assert sorted(order) == list(range(1003))
    spread = [
        max(lengths[i] for i in order[at : at + 8]) - min(lengths[i] for i in order[at : at + 8])
        for at in range(0, 992, 8)
    ]
    assert sum(spread) / len(spread) < 3


def test_bf16_weights_follow_fp32_masters_and_survive_a_resume() -> None:
    torch.manual_seed(0)
    start = torch.randn(40)
    exact, narrow = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.bfloat16())
    reference, masters = torch.optim.AdamW([exact], lr=1e-4), MasterAdamW([narrow], lr=1e-4)
    for step in range(60):
        gradient = torch.randn(40)
        exact.grad, narrow.grad = gradient.clone(), gradient.bfloat16()
        reference.step()
        masters.step()
        if step == 30:  # as a checkpoint does
            state = masters.state_dict()
            masters = MasterAdamW([narrow], lr=1e-4)
            masters.load_state_dict(state)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(
        masters.state[narrow]["master"] - start.bfloat16().float(), exact.data - start, atol=2e-4, rtol=0.05
    )
    torch.testing.assert_close(narrow.data, masters.state[narrow]["master"].bfloat16())


def test_training_moves_every_weight_and_a_finished_run_is_not_repeated(
    checkpoint: Path, rows: Path, tmp_path: Path
) -> None:
    recipe = load_recipe("tiny")
    reasoning = synthesize(recipe, rows, AnnotationTeacher(), tmp_path)
    final = rsft(recipe, reasoning, tmp_path / "rsft", base=str(checkpoint))
    before, _ = load_base(str(checkpoint), torch.float32)
    after, _ = load_base(str(final), torch.float32)
    for (name, old), (_, new) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        assert not torch.equal(old, new), f"{name} has not moved"
    with (tmp_path / "rsft" / "loss.csv").open() as file:
        losses = [float(line["loss"]) for line in csv.DictReader(file)]
    assert len(losses) == 4 and sum(losses[2:]) < sum(losses[:2])  # two passes over all rows
    stamp = (final / "model.safetensors").stat().st_mtime_ns
    assert rsft(recipe, reasoning, tmp_path / "rsft", base=str(checkpoint)) == final
    assert (final / "model.safetensors").stat().st_mtime_ns == stamp


def test_adapters_are_trained_and_merged_into_a_model_that_loads(checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    recipe = load_recipe("tiny")
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
    recipe = recipe.model_copy(update={"sft": recipe.sft.model_copy(update={"lora": lora})})
    reasoning = synthesize(recipe, rows, AnnotationTeacher(), tmp_path)
    final = rsft(recipe, reasoning, tmp_path / "rsft", base=str(checkpoint))
    before, _ = load_base(str(checkpoint), torch.float32)
    after, _ = load_base(str(final), torch.float32)
    for (name, old), (_, new) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        assert torch.equal(old, new) != any(part in name for part in ("q_proj", "down_proj")), name


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    recipe = load_recipe("tiny")
    reasoning = synthesize(recipe, rows, AnnotationTeacher(), tmp_path)
    whole = rsft(recipe, reasoning, tmp_path / "whole", base=str(checkpoint))
    rsft(recipe, reasoning, tmp_path / "cut", base=str(checkpoint))
    (tmp_path / "cut" / "model" / "done.json").unlink()
    # killed while it saved its last checkpoint, in the middle of a pass
    (tmp_path / "cut" / "checkpoint-4" / "trainer_state.json").unlink()
    resumed = rsft(recipe, reasoning, tmp_path / "cut", base=str(checkpoint))
    first, _ = load_base(str(whole), torch.float32)
    second, _ = load_base(str(resumed), torch.float32)
    for old, new in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(old, new, atol=1e-6, rtol=1e-5)


def test_a_diversity_model_learns_from_all_sources_but_those_left_out(checkpoint: Path, tmp_path: Path) -> None:
    rows = [ROW.model_copy(update={"source": source, "id": f"{source}{n}"}) for source in "ab" for n in range(4)]
    write_rows(tmp_path / "rows.jsonl", rows)
    made = rsft(load_recipe("tiny"), tmp_path / "rows.jsonl", tmp_path / "out", str(checkpoint), without=["a"])
    assert json.loads((made / "done.json").read_text())["rows"] == 4
    for wrong in (["c"], ["a", "b"]):
        with pytest.raises(BadInput, match="the rows of .* are of a, b"):
            rsft(load_recipe("tiny"), tmp_path / "rows.jsonl", tmp_path / "other", str(checkpoint), without=wrong)


def test_other_rows_are_not_taken_for_those_it_learned_from(checkpoint: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [ROW] * 4)
    rsft(load_recipe("tiny"), tmp_path / "rows.jsonl", tmp_path / "out", str(checkpoint))
    write_rows(tmp_path / "rows.jsonl", [ROW] * 5)
    with pytest.raises(BadInput, match="from other rows"):
        rsft(load_recipe("tiny"), tmp_path / "rows.jsonl", tmp_path / "out", str(checkpoint))


def test_a_folder_of_another_recipe_is_not_taken_for_this_one(checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    recipe = load_recipe("tiny")
    reasoning = synthesize(recipe, rows, AnnotationTeacher(), tmp_path)
    other = recipe.model_copy(update={"seed": 9})
    with pytest.raises(BadInput, match="made by another recipe"):
        synthesize(other, rows, AnnotationTeacher(), tmp_path)
    rsft(recipe, reasoning, tmp_path / "rsft", base=str(checkpoint))
    with pytest.raises(BadInput, match="made by another recipe"):
        rsft(other, reasoning, tmp_path / "rsft", base=str(checkpoint))


def test_the_loss_is_the_weighted_cross_entropy_of_each_answer_by_itself(checkpoint: Path, tmp_path: Path) -> None:
    made = encoder(checkpoint, SHORT)
    model, _ = load_base(str(checkpoint), torch.float32)
    alone = ROW.model_copy(update={"response": None, "completion": None, "response_harm": None})
    trees = [tree for row in (ROW, alone) if (tree := made.encode(row))]
    arguments = configured(
        SFTConfig, tmp_path, 0, {"per_device_train_batch_size": 2}, dataset_kwargs={"skip_prepare_dataset": True}
    )
    trainer = TreeTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([vars(tree) for tree in trees]),
        processing_class=made.tokenizer,
    )
    with torch.no_grad():
        found = trainer.compute_loss(model, TreeCollator(2, torch.float32)([vars(tree) for tree in trees]))
        total = 0.0
        for tree in trees:
            for start, end, seen in tree.branches:
                ids = tree.input_ids[:seen] + tree.input_ids[start:end]
                chances = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
                for at in range(start, end):
                    if tree.labels[at] != IGNORED:
                        total -= tree.weights[at] * float(chances[seen + at - start - 1, tree.labels[at]])
    assert float(found) == pytest.approx(total / 2 / 64, rel=1e-4)


def test_where_verdicts_come_first_the_branch_begins_with_them_and_teaches_them(checkpoint: Path) -> None:
    tree = encoder(checkpoint, EXPLAINED).encode(ROW)
    assert tree is not None
    _, tokenizer = load_base(str(checkpoint), torch.float32)
    texts = [tokenizer.decode(tree.input_ids[start:end]) for start, end, _ in tree.branches]
    explained = [text for text in texts if "# Task" in text]
    assert explained[0].startswith("Answers:\nRequest: unharmful\n---\n# Task 1\n## Reasoning Step 1\n")
    assert explained[-1].startswith("Answers:\nCompletion: ")
    start, _, _ = tree.branches[texts.index(explained[0])]
    taught = next(at for at in range(start, len(tree.labels)) if tree.labels[at] != IGNORED)
    assert tokenizer.decode([tree.input_ids[taught]]) == " unh"


def test_reasoning_that_quotes_what_was_cut_is_not_taught(checkpoint: Path) -> None:
    steps = {**ROW.steps, "response": ['He says "insult".']}
    row = ROW.model_copy(update={"response": "word " * 50 + "insult", "steps": steps})
    whole, cut = encoder(checkpoint, SHORT).encode(row), encoder(checkpoint, SHORT, crop_response_tokens=8).encode(row)
    assert whole is not None and cut is not None
    assert len(cut.branches) == len(whole.branches) - 1


def test_a_tokeniser_that_puts_a_token_before_is_seen(checkpoint: Path) -> None:
    _, tokenizer = load_base(str(checkpoint), torch.float32)
    assert bos_token(tokenizer) is None
    tokenizer.bos_token = "<|im_start|>"
    assert bos_token(tokenizer) is None
    start = [("<|im_start|>", 1)]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=start)
    assert bos_token(tokenizer) == 1

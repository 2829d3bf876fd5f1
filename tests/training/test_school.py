"""One command makes a guard from a table, skips what is done, and says what is wrong with the rows."""

from __future__ import annotations

import csv
import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from guardreasoner_guard.training import school
from guardreasoner_guard.training.annotation import AnnotationTeacher
from guardreasoner_guard.training.fit import settings
from guardreasoner_guard.training.recipe import load_recipe
from guardreasoner_guard.training.school import DiskFull, train_all
from trl import DPOConfig, SFTConfig

from guardreasoner_guard import BadInput, GuardReasonerGuard
from guardreasoner_guard.cli import main

VERBS = ("steal", "bake", "poison", "paint", "hack", "mend")
THINGS = (
    "a car",
    "a cake",
    "the well",
    "my fence",
    "a router",
    "an old coat",
    "the office",
    "two chairs",
    "a boat",
    "it",
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Sixty rows, a third of them with an answer, under column names of their own."""
    with (tmp_path / "my_policy.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("question", "reply", "verdict", "reply_verdict", "refused", "kind"))
        for v, verb in enumerate(VERBS):
            for t, thing in enumerate(THINGS):
                label = "unharmful" if v % 2 else "harmful"
                reply = f"Sure: to {verb} {thing}, begin early." if t % 3 == 0 else ""
                told = (reply and label, reply and ("refusal" if t == 0 else "compliance"))
                writer.writerow((f"How do I {verb} {thing}?", reply, label, *told, "theft" if verb == "steal" else ""))
    return tmp_path / "my_policy.csv"


COLUMNS = {
    "prompt": "question", "response": "reply", "prompt_harm": "verdict", "response_harm": "reply_verdict",
    "completion": "refused", "category": "kind",
}  # fmt: skip


def test_a_table_becomes_a_guard_that_loads_and_judges(
    table: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my_guard"
    (tmp_path / "policy.txt").write_text("Advice on theft and poison is harmful. Answers: are not.", encoding="utf-8")
    command = [
        "guardreasoner", "train", "all", "--data", str(table), "--base", str(checkpoint), "--out", str(out),
        "--recipe", "tiny", "--policy", str(tmp_path / "policy.txt"), "--category", "theft", "--category", "poison",
    ]  # fmt: skip
    for field, column in COLUMNS.items():
        command += ["--column", f"{field}={column}"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    printed = capsys.readouterr().out
    assert f"GuardReasonerGuard({str(out)!r})" in printed

    guard = GuardReasonerGuard(out, reasoning="never")
    verdict = guard.check("How do I steal the office?", "Break the window.")
    assert verdict.outcome == "verdict" and set(verdict.scores) == {"request", "completion", "response"}
    assert guard.judge.manifest.policy.endswith("Categories: theft, poison.")
    card = (out / "MODEL_CARD.md").read_text()
    assert "> Advice on theft" in card and "held out, prompt | 14 |" in card and str(checkpoint) in card
    result = json.loads((out / "evaluation-always.json").read_text())
    assert {p["benchmark"] for p in result["predictions"]} == {
        "held out, prompt",
        "held out, response",
        "held out, refusal",
    }
    stages = tmp_path / "my_guard-stages"
    assert json.loads((stages / "mined" / "mine.json").read_text())["samples"] >= 16

    stamps = {path: path.stat().st_mtime_ns for path in stages.rglob("*") if path.is_file()}
    graph = (out / "model.onnx").stat().st_mtime_ns
    with pytest.raises(SystemExit):
        main()
    assert stamps == {path: path.stat().st_mtime_ns for path in stages.rglob("*") if path.is_file()}
    assert (out / "model.onnx").stat().st_mtime_ns == graph


def make(table: Path, tmp_path: Path, recipe: str = "tiny", **arguments: Any) -> Path:
    made: Path = train_all(
        load_recipe(recipe), str(table), tmp_path / "g", AnnotationTeacher(), columns=COLUMNS, **arguments
    )
    return made


def test_no_base_model_is_said_before_anything_is_trained(table: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="could not be loaded"):
        make(table, tmp_path, base=str(tmp_path / "nothing"))


def test_rows_that_are_tested_on_must_not_be_learned_from(table: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="60 rows of the test file"):
        make(table, tmp_path, test=str(table))


def test_rows_too_long_are_named(table: Path, tmp_path: Path) -> None:
    with table.open("a") as file:
        file.write(f"{'word ' * 300},,harmful,,,\n")
    with pytest.raises(BadInput, match="row 61.* longer than 128 tokens"):
        make(table, tmp_path, base="bundled")


def test_other_rows_in_the_same_folder_are_refused(table: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="could not be loaded"):
        make(table, tmp_path, base="nothing-here")
    with table.open("a") as file:
        file.write("One more?,,harmful,,,\n")
    with pytest.raises(BadInput, match="made by another"):
        make(table, tmp_path, base="nothing-here")


def test_a_folder_of_something_else_is_left_alone(table: Path, tmp_path: Path) -> None:
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match="no guard"):
        make(table, tmp_path, base="bundled")
    assert (tmp_path / "g" / "thesis.txt").exists()


def test_a_recipe_with_sources_of_its_own_is_refused(table: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="sources of its own"):
        make(table, tmp_path, recipe="1b")


def test_a_full_disk_is_said_and_what_was_done_is_kept(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(school, "rsft", full)
    with pytest.raises(DiskFull, match="Free some room"):
        make(table, tmp_path, base="bundled")
    assert (tmp_path / "g-stages" / "reasoning" / "synthesize.json").exists()


def test_room_is_looked_for_before_training_begins(
    table: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(BadInput, match="Training needs some"):
        make(table, tmp_path, base=str(checkpoint))


def test_diversity_models_are_asked_about_the_sources_they_have_seen(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, Any]] = []
    monkeypatch.setattr(school, "rsft", lambda recipe, rows, out, base, policy: out / "model")
    monkeypatch.setattr(school, "TorchEngine", lambda checkpoint: checkpoint)
    monkeypatch.setattr(
        school, "mine", lambda r, rows, e, out, policy, sources: told.append((out.parent.name, sources))
    )
    recipe = load_recipe("tiny")
    recipe = recipe.model_copy(update={"mine": recipe.mine.model_copy(update={"leave_out": ("a", "b", "c")})})
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(json.dumps({"id": s, "source": s, "prompt": s, "prompt_harm": "harmful"}) for s in "abcd") + "\n"
    )
    school._diversity(recipe, tmp_path / "rows.jsonl", tmp_path, None, "")
    assert told == [("without-a", ["b", "c"]), ("without-b", ["a", "c"]), ("without-c", ["a", "b"])]
    assert '"id": "a"' not in (tmp_path / "without-a" / "reasoning.jsonl").read_text()


@pytest.mark.parametrize("name", ["bundled", "custom", "tiny", "1b", "3b", "8b"])
def test_every_recipe_that_ships_is_one_the_trainers_take(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    on_cpu = {"bf16": False}  # no bf16 here
    SFTConfig(**{**settings(tmp_path, 0, recipe.sft.trainer), **on_cpu})
    DPOConfig(**{**settings(tmp_path, 0, recipe.hsdpo.trainer), **on_cpu}, beta=recipe.hsdpo.beta)


def test_the_papers_recipes_hold_the_papers_numbers() -> None:
    for name in ("1b", "3b", "8b"):
        recipe = load_recipe(name)
        sft, preference = recipe.sft.trainer, recipe.hsdpo.trainer
        assert sft["per_device_train_batch_size"] * sft["gradient_accumulation_steps"] * 4 == 384
        assert preference["per_device_train_batch_size"] * preference["gradient_accumulation_steps"] * 4 == 256
        assert (sft["learning_rate"], sft["num_train_epochs"]) == (5e-5, 3)
        assert (preference["learning_rate"], preference["num_train_epochs"]) == (5e-6, 2)
        assert (recipe.hsdpo.beta, recipe.hsdpo.sft, recipe.mine.gamma, recipe.mine.samples) == (0.01, 2.0, 0.2, 4)
        assert recipe.sft.template == "guardreasoner/1"


@pytest.mark.parametrize("name", ["zero3", "fsdp"])
def test_accelerate_takes_the_settings_that_ship(name: str) -> None:
    folder = Path(school.__file__).parent / "recipes"
    assert load_config_from_file(str(folder / f"{name}.yaml")).num_processes == 4

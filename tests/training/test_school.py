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
from guardreasoner_guard.training.disk import DiskFull, full_disk_told
from guardreasoner_guard.training.export import export
from guardreasoner_guard.training.fit import configured
from guardreasoner_guard.training.recipe import Recipe, load_recipe
from guardreasoner_guard.training.rows import ReasoningRow, SeedRow, read_rows
from guardreasoner_guard.training.school import train_all
from guardreasoner_guard.training.teacher import Teacher, Told
from safetensors import SafetensorError
from trl import DPOConfig, SFTConfig

from guardreasoner_guard import BadInput, GuardReasonerGuard
from guardreasoner_guard.cli import main
from guardreasoner_guard.model_dir import open_model

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
    again = export(stages / "rsft" / "model", tmp_path / "again", name="again", max_error=99)
    assert open_model(again).manifest.policy == guard.judge.manifest.policy, "a stage run alone keeps the policy"
    assert json.loads((stages / "mined" / "mine.json").read_text())["samples"] >= 16

    stamps = {path: path.stat().st_mtime_ns for path in stages.rglob("*") if path.is_file()}
    graph = (out / "model.onnx").stat().st_mtime_ns
    with pytest.raises(SystemExit):
        main()
    assert stamps == {path: path.stat().st_mtime_ns for path in stages.rglob("*") if path.is_file()}
    assert (out / "model.onnx").stat().st_mtime_ns == graph


def make(
    table: Path, tmp_path: Path, recipe: Recipe | None = None, teacher: Teacher | None = None, **arguments: Any
) -> Path:
    recipe, teacher = recipe or load_recipe("tiny"), teacher or AnnotationTeacher()
    made: Path = train_all(recipe, str(table), tmp_path / "g", teacher, columns=COLUMNS, **arguments)
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sft": {"trainer": {"learning_rat": 1e-4}}}, "SFTConfig does not take .*learning_rat"),
        ({"hsdpo": {"trainer": {"warmup": 3}}}, "DPOConfig does not take .*warmup"),
        ({"mine": {"leave_out": ("own", "other")}}, "names 'other', which is no source"),
    ],
)
def test_a_recipe_that_would_fail_later_is_refused_before_a_teacher_is_asked(
    table: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(school, "synthesize", lambda *_: pytest.fail("a teacher was asked"))
    recipe = load_recipe("tiny")
    recipe = recipe.model_copy(
        update={part: getattr(recipe, part).model_copy(update=values) for part, values in change.items()}
    )
    with pytest.raises(BadInput, match=message):
        make(table, tmp_path, recipe, base=str(checkpoint))


def test_a_base_without_its_weights_is_refused_before_a_teacher_is_asked(
    table: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(school, "synthesize", lambda *_: pytest.fail("a teacher was asked"))
    bare = shutil.copytree(checkpoint, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(BadInput, match="could not be loaded"):
        make(table, tmp_path, base=str(bare))


def test_a_teacher_that_leaves_one_class_is_told_before_training(table: Path, checkpoint: Path, tmp_path: Path) -> None:
    class Prim(AnnotationTeacher):  # type: ignore[misc]
        def reason(self, row: SeedRow) -> Told:
            return Told("I would rather not.") if row.prompt_harm == "harmful" else super().reason(row)

    with pytest.raises(BadInput, match="left after synthesis .*rejected.jsonl.*0 are labelled harmful"):
        make(table, tmp_path, teacher=Prim(), base=str(checkpoint))


def test_rows_of_every_language_are_learned_from(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(school, "rsft", lambda *_: pytest.fail("as far as this test goes"))
    lines = [
        {"prompt": f"Zeile {n}", "prompt_harm": "un" * (n % 2) + "harmful", "language": ("de", "English")[n % 3 == 0]}
        for n in range(20)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    with pytest.raises(pytest.fail.Exception, match="as far"):
        train_all(
            load_recipe("tiny"), str(tmp_path / "rows.jsonl"), tmp_path / "g", AnnotationTeacher(), base=str(checkpoint)
        )
    rows = list(read_rows(tmp_path / "g-stages" / "reasoning" / "reasoning.jsonl", ReasoningRow))
    assert len(rows) == 16 and {row.language for row in rows} == {"de", "English"}


def test_a_recipe_with_sources_of_its_own_is_refused(table: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="sources of its own"):
        make(table, tmp_path, load_recipe("1b"))


def test_a_full_disk_is_said_and_what_was_done_is_kept(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(school, "rsft", full)
    with pytest.raises(DiskFull, match="Free some room"):
        make(table, tmp_path, base="bundled")
    assert (tmp_path / "g-stages" / "reasoning" / "synthesize.json").exists()


@pytest.mark.parametrize(
    "said",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
    ],
)
def test_each_librarys_word_for_a_full_disk_is_known(tmp_path: Path, said: Exception) -> None:
    with pytest.raises(DiskFull, match="Free some room"), full_disk_told(tmp_path):
        raise said
    with pytest.raises(RuntimeError, match="shapes"), full_disk_told(tmp_path):
        raise RuntimeError("shapes do not match")


def test_room_is_looked_for_before_training_begins(
    table: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(BadInput, match="Training needs some"):
        make(table, tmp_path, base=str(checkpoint))


def test_in_the_ensemble_each_source_is_asked_of_the_models_the_paper_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(school, "rsft", lambda recipe, rows, out, base, policy, without: out / "+".join(without))
    monkeypatch.setattr(school, "TorchEngine", lambda checkpoint: checkpoint)
    monkeypatch.setattr(school, "mine", lambda r, rows, e, *_, sources, **__: told.append((e.name, sorted(sources))))
    recipe = load_recipe("tiny")
    recipe = recipe.model_copy(update={"mine": recipe.mine.model_copy(update={"leave_out": ("a", "b", "c")})})
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(json.dumps({"id": s, "source": s, "prompt": s, "prompt_harm": "harmful"}) for s in "abcd") + "\n"
    )
    school._hard_samples(recipe, tmp_path / "rows.jsonl", tmp_path / "main", tmp_path, None, "")
    assert told == [("main", ["d"]), ("a", ["b", "c"]), ("b", ["a", "c"]), ("c", ["a", "b"])]


@pytest.mark.parametrize("name", ["bundled", "custom", "tiny", "1b", "3b", "8b"])
def test_every_recipe_that_ships_is_one_the_trainers_take(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    on_cpu = {"bf16": False}  # no bf16 here
    configured(SFTConfig, tmp_path, 0, {**recipe.sft.trainer, **on_cpu})
    preference = configured(DPOConfig, tmp_path, 0, {**recipe.hsdpo.trainer, **on_cpu}, beta=recipe.hsdpo.beta)
    assert preference.learning_rate <= 5e-6 or name == "tiny", "the paper's is 5e-6"


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

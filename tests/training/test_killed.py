"""A school that is killed while it trains or samples ends, run again, with what it would have ended with."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import pytest
import torch
from guardreasoner_guard.training import school
from guardreasoner_guard.training.annotation import AnnotationTeacher
from guardreasoner_guard.training.recipe import load_recipe
from safetensors.torch import load_file


def test_a_kill_in_training_and_one_in_sampling_change_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, whole, cut = tmp_path / "rows.csv", tmp_path / "whole-stages", tmp_path / "cut-stages"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("prompt", "prompt_harm"))
        writer.writerows((f"How do I bake bread {n}?", "unharmful") for n in range(10))
        writer.writerows((f"How do I steal car {n}?", "harmful") for n in range(10))
    for later in ("_export", "_examine", "write_card"):
        monkeypatch.setattr(school, later, lambda *_: None)
    recipe = tmp_path / "recipe.toml"
    tiny = Path(str(resources.files(school.__package__ or "") / "recipes" / "tiny.toml")).read_text()
    recipe.write_text(tiny.replace("[mine]\nrows = 4", "[mine]\nrows = 2\nsamples = 17"))  # two batches

    def run(out: str) -> None:
        school.train_all(
            load_recipe(str(recipe)), str(table), tmp_path / out, AnnotationTeacher(1), base=str(checkpoint)
        )  # fmt: skip

    run("whole")
    command = [
        sys.executable, "-m", "guardreasoner_guard", "train", "all", "--data", str(table), "--recipe", str(recipe),
        "--base", str(checkpoint), "--out", str(tmp_path / "cut"),
    ]  # fmt: skip
    samples = cut / "mined" / "samples.jsonl"
    for sign in (cut / "rsft" / "checkpoint-3" / "trainer_state.json", samples):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while not (sign.exists() and sign.stat().st_size):
                assert process.poll() is None
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
    assert samples.read_bytes().count(b"\n") == 1, "it was killed in the middle"
    run("cut")
    for name in ("samples.jsonl", "pairs.jsonl"):
        assert (cut / "mined" / name).read_bytes() == (whole / "mined" / name).read_bytes()
    stages = [path.parent.name for path in whole.glob("*/model")]
    assert "rsft" in stages
    for stage in stages:
        expected, found = (load_file(folder / stage / "model" / "model.safetensors") for folder in (whole, cut))
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=1e-5)

"""A school that is killed while it trains ends, run again, with what it would have ended with."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from guardreasoner_guard.training import school
from guardreasoner_guard.training.annotation import AnnotationTeacher
from guardreasoner_guard.training.recipe import load_recipe
from safetensors.torch import load_file


def test_a_kill_in_training_changes_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, whole, cut = tmp_path / "rows.csv", tmp_path / "whole-stages", tmp_path / "cut-stages"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("prompt", "prompt_harm"))
        writer.writerows((f"How do I bake bread {n}?", "unharmful") for n in range(10))
        writer.writerows((f"How do I steal car {n}?", "harmful") for n in range(10))
    for later in ("_export", "_examine", "write_card"):
        monkeypatch.setattr(school, later, lambda *_: None)

    def run(out: str) -> None:
        school.train_all(load_recipe("tiny"), str(table), tmp_path / out, AnnotationTeacher(1), base=str(checkpoint))

    run("whole")
    command = [
        sys.executable, "-m", "guardreasoner_guard", "train", "all", "--data", str(table), "--recipe", "tiny",
        "--base", str(checkpoint), "--out", str(tmp_path / "cut"),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (cut / "rsft" / "checkpoint-3" / "trainer_state.json").exists():
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert not (cut / "mined" / "mine.json").exists(), "it was killed in the middle"
    run("cut")
    for name in ("samples.jsonl", "pairs.jsonl"):
        assert (cut / "mined" / name).read_bytes() == (whole / "mined" / name).read_bytes()
    expected, found = (load_file(folder / "rsft" / "model" / "model.safetensors") for folder in (whole, cut))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=1e-5)

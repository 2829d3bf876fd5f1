"""Two processes train the same model as one, in R-SFT and in HS-DPO."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from guardreasoner_guard.training.annotation import AnnotationTeacher
from guardreasoner_guard.training.base import load_base
from guardreasoner_guard.training.mine import Pair
from guardreasoner_guard.training.recipe import load_recipe
from guardreasoner_guard.training.rows import write_rows
from guardreasoner_guard.training.synthesize import synthesize

TRAINER = """
per_device_train_batch_size = 1
gradient_accumulation_steps = {accumulation}
learning_rate = 1e-3
max_grad_norm = 0.0
adam_epsilon = 1e-4
gradient_checkpointing = false
save_strategy = "no"
"""
RECIPE = f"""
name = "distributed"
[data]
sources = [{{{{ file = "rows.jsonl", reasoned = 1.0 }}}}]
[sft]
base = "given on the command line"
dtype = "float32"
train_embeddings = true
[sft.trainer]
max_steps = 3
{TRAINER}
[hsdpo.trainer]
max_steps = 2
{TRAINER}
"""


@pytest.mark.parametrize("stage", ["rsft", "hsdpo"])
def test_two_processes_train_the_same_model_as_one(stage: str, checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    if stage == "rsft":
        reasoning = synthesize(load_recipe("tiny"), rows, AnnotationTeacher(), tmp_path / "rows")
        taught = ["--rows", str(reasoning), "--base", str(checkpoint)]
    else:
        pairs = [
            Pair(id=str(n), task="request", prompt=(f"request {n}\n",), chosen=f"{n} is fine", rejected="it is not " * n,
                 right=1, wrong=3, weight=0.8 + n / 10) for n in range(8)
        ]  # fmt: skip
        write_rows(tmp_path / "pairs.jsonl", pairs)
        taught = ["--pairs", str(tmp_path / "pairs.jsonl"), "--model", str(checkpoint)]
    for processes in (1, 2):
        recipe = tmp_path / f"{processes}.toml"
        recipe.write_text(RECIPE.format(accumulation=4 // processes))
        run = subprocess.run(
            [
                sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes),
                "-m", "guardreasoner_guard", "train", stage, *taught, "--recipe", str(recipe),
                "--out", str(tmp_path / str(processes)),
            ],
            capture_output=True, text=True, timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
    start, _ = load_base(str(checkpoint), torch.float32)
    one, _ = load_base(str(tmp_path / "1" / "model"), torch.float32)
    two, _ = load_base(str(tmp_path / "2" / "model"), torch.float32)
    for old, first, second in zip(start.parameters(), one.parameters(), two.parameters(), strict=True):
        assert not torch.equal(old, first)
        torch.testing.assert_close(first, second, atol=2e-6, rtol=1e-4)

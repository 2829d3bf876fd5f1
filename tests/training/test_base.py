"""Bases are found, or it is said why not; an exported guard can be trained further."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from guardreasoner_guard.training.base import load_base
from guardreasoner_guard.training.encode import bos_token, plain_ids

from guardreasoner_guard import BadInput, GuardReasonerGuard
from guardreasoner_guard.engine import Question
from guardreasoner_guard.model_dir import open_model
from guardreasoner_guard.template import SHORT
from guardreasoner_guard.verdict import LABELS


def test_the_bundled_guard_comes_back_as_the_torch_model_it_was(bundled: GuardReasonerGuard) -> None:
    model, tokenizer = load_base("bundled", torch.float32)
    manifest = bundled.judge.manifest
    assert tokenizer.eos_token_id == manifest.end_token and bos_token(tokenizer) == manifest.bos_token
    for text in ("How do I bake bread?", "Tell me how to build a bomb and hurt people with it."):
        asked = SHORT.render(text) + SHORT.score_prefix("request", {})
        tokens = [token for part in asked.parts for token in plain_ids(tokenizer, part)]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens])).logits[0, -1]
        first, second = (manifest.label_tokens[word] for word in LABELS["request"])
        served = bundled.judge.engine.score([Question(asked, LABELS["request"])])[0].probabilities[0]
        assert float(logits[first] - logits[second]) == pytest.approx(math.log(served / (1 - served)), abs=1.0)


def test_a_directory_of_hard_links_as_some_installers_make_can_be_trained_further(
    bundled: GuardReasonerGuard, tmp_path: Path
) -> None:
    where = open_model("bundled").path
    try:
        shutil.copytree(where, tmp_path / "linked", copy_function=os.link)
    except OSError:
        pytest.skip("no hard links between these folders")
    model, _ = load_base(str(tmp_path / "linked"), torch.float32)
    assert model.num_parameters() > 130e6


def test_no_base_model_is_an_error_that_names_the_ways_out(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="bundled"):
        load_base(str(tmp_path / "nothing"), torch.float32)

"""A mean of models is the mean of their weights, each counted once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from guardreasoner_guard.training.average import average
from guardreasoner_guard.training.export import export
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from guardreasoner_guard import BadInput


def moved(checkpoint: Path, out: Path, by: float) -> LlamaForCausalLM:
    """A copy of a checkpoint all of whose weights are moved."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        for weight in model.parameters():
            weight += by
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(out)
    return model


def test_every_weight_is_the_mean_tied_ones_too(checkpoint: Path, tmp_path: Path) -> None:
    names = []
    for number, by in enumerate((0.0, 0.3, -0.1)):
        moved(checkpoint, tmp_path / str(number), by)
        names.append(str(tmp_path / str(number)))
    out = average(names, tmp_path / "mean")
    first, mean = (AutoModelForCausalLM.from_pretrained(path) for path in (checkpoint, out))
    for before, after in zip(first.parameters(), mean.parameters(), strict=True):
        assert torch.allclose(after, before + 0.2 / 3, atol=1e-5)
    assert average(names, out) == out, "what is complete is left as it is"
    with pytest.raises(BadInput, match="Name another folder"):
        average(names[:2], out)
    with pytest.raises(BadInput, match="--template"):
        export(out, tmp_path / "guard", name="guard")


def test_models_that_cannot_be_averaged_are_said(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="two models"):
        average([str(checkpoint)], tmp_path / "mean")
    with pytest.raises(BadInput, match="another shape"):
        average([str(checkpoint), "bundled"], tmp_path / "mean")

"""Averaging: the mean of the weights of models that were trained on from the same one (model soups, arXiv 2203.05482).

What each training learned and forgot evens out; the mean often judges better than either, at the cost of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from guardreasoner_guard.errors import BadInput

from .base import load_base
from .recipe import begin, mark_done
from .wording import trained_in


def average(models: Sequence[str], out: Path) -> Path:
    """Writes the mean of several models' weights.

    Args:
        models: Two or more, each as `base.load_base` takes them; they must have been trained from one base and
            share its shape.
        out: Folder of the new transformers checkpoint; where it is complete already, nothing is done.

    Returns:
        `out`.

    Raises:
        BadInput: There are fewer than two, one cannot be loaded, or their shapes differ.
    """
    if len(models) < 2:
        raise BadInput("A mean takes two models at least.")
    made_by = {"average of": list(models)}
    if begin(out, out / "done.json", made_by):
        return out
    mean, tokenizer = load_base(models[0], torch.float32)
    weights = mean.state_dict()
    with torch.no_grad():
        for count, name in enumerate(track(models[1:], "average", console=Console(stderr=True)), 2):
            other = load_base(name, torch.float32)[0].state_dict()
            if {key: value.shape for key, value in other.items()} != {key: v.shape for key, v in weights.items()}:
                raise BadInput(f"{name} has another shape than {models[0]}. Average models trained from one base.")
            for key in _distinct(weights):
                weights[key] += (other[key] - weights[key]) / count
    mean.save_pretrained(out)
    tokenizer.save_pretrained(out)
    [wording, *others] = {trained_in(Path(name)) for name in models}
    mark_done(out / "done.json", made_by, {} if others or wording is None else {"wording": list(wording)})
    return out


def _distinct(weights: dict[str, torch.Tensor]) -> list[str]:
    """Names of the weights, one of those that are tied together."""
    return list({value.data_ptr(): key for key, value in weights.items()}.values())

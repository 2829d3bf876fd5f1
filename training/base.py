"""Base models: a hub id, a folder, a GGUF file, or an exported model directory to go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from guardreasoner_guard.errors import BadInput
from guardreasoner_guard.model_dir import MANIFEST, open_model

from .thaw import thaw


def load_base(name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, Any]:
    """Loads a base model and its tokeniser.

    Args:
        name: A hub id, a transformers folder, `folder/file.gguf`, an exported int8 model directory, or
            `bundled`: the guard that ships, which needs no download.
        dtype: Of the weights.

    Raises:
        BadInput: There is no such model, or it cannot be loaded.
    """
    if name == "bundled" or (Path(name) / MANIFEST).exists():
        model, tokenizer = thaw(open_model(name))
        return model.to(dtype), tokenizer
    where, extra = (str(Path(name).parent), {"gguf_file": Path(name).name}) if name.endswith(".gguf") else (name, {})
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **extra)
        model = AutoModelForCausalLM.from_pretrained(where, dtype=dtype, **extra)
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise BadInput(
            f"The base model {name!r} could not be loaded: {first} Name a hub id you can reach, a transformers "
            "folder, a folder/file.gguf, or `bundled`, which is always at hand."
        ) from error
    if name.endswith(".gguf"):
        # a GGUF names one token for both; the model's own end token is the config's
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
        tokenizer.add_bos_token = False
    return model, tokenizer

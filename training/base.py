"""Base models: a hub id, a folder, a GGUF file, or an exported model directory to go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from guardreasoner_guard.errors import BadInput
from guardreasoner_guard.model_dir import MANIFEST, open_model
from guardreasoner_guard.model_files import sha256

from .thaw import thaw, thaw_tokenizer


def load_base(name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, Any]:
    """Loads a base model and its tokeniser.

    Args:
        name: A hub id, a transformers folder, `folder/file.gguf`, an exported int8 model directory, or
            `bundled`: the guard that ships, which needs no download.
        dtype: Of the weights.

    Raises:
        BadInput: There is no such model, or it cannot be loaded.
    """
    if _is_exported(name):
        return thaw(open_model(name)).to(dtype), load_tokenizer(name)
    where, extra = _place(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(where, dtype=dtype, **extra)
    except (OSError, ValueError) as error:
        raise _not_loaded(name, error) from error
    tokenizer = load_tokenizer(name)
    if name.endswith(".gguf"):
        # a GGUF names one token for both; the model's own end token is the config's
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    return model, tokenizer


def load_tokenizer(name: str) -> Any:
    """Loads the tokeniser of a base model; see `load_base`.

    Raises:
        BadInput: There is no such model, or its tokeniser cannot be loaded.
    """
    if _is_exported(name):
        return thaw_tokenizer(open_model(name))
    where, extra = _place(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **extra)
    except (OSError, ValueError) as error:
        raise _not_loaded(name, error) from error
    if extra:
        tokenizer.add_bos_token = False
    return tokenizer


def model_id(name: str) -> str:
    """What tells a model from another at the same place: what its stage or its export wrote beside the weights.

    Where neither did, its place: a folder's whole path, or a hub id or URL as it is.
    """
    for said in (Path(name) / MANIFEST, Path(name) / "done.json"):
        if said.exists():
            return sha256(said)
    return str(Path(name).resolve()) if Path(name).exists() else name


def _is_exported(name: str) -> bool:
    return name == "bundled" or (Path(name) / MANIFEST).exists()


def _place(name: str) -> tuple[str, dict[str, str]]:
    return (str(Path(name).parent), {"gguf_file": Path(name).name}) if name.endswith(".gguf") else (name, {})


def _not_loaded(name: str, error: Exception) -> BadInput:
    first = str(error).strip().split("\n")[0]
    return BadInput(
        f"The base model {name!r} could not be loaded: {first} Name a hub id you can reach, a transformers folder, "
        "a folder/file.gguf, or `bundled`, which is always at hand."
    )

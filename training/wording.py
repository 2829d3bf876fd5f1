"""The wording a model was trained in, which it must be asked in ever after: the template, and its owner's policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from guardreasoner_guard.errors import BadInput
from guardreasoner_guard.model_dir import MANIFEST, open_model


class Wording(NamedTuple):
    """A template's version and a policy, which may be empty."""

    template: str
    policy: str


def worded(policy: str, categories: Sequence[str]) -> str:
    """A policy and the names of its kinds of harm, as they stand in the instruction."""
    return "\n".join([policy.strip(), f"Categories: {', '.join(categories)}." if categories else ""]).strip()


def trained_in(model: Path) -> Wording | None:
    """What a model directory's manifest, or the manifest of the stage that made a checkpoint, says of its wording.

    None where neither says so: a model that was not made here, or a mean of models of different wordings.
    """
    if str(model) == "bundled" or (model / MANIFEST).exists():
        manifest = open_model(str(model)).manifest
        return Wording(manifest.template, manifest.policy)
    said = model.parent / "begun.json" if model.name.startswith("checkpoint-") else model / "done.json"
    told = json.loads(said.read_text(encoding="utf-8")) if said.exists() else {"made by": {}}
    made_by = told["made by"]
    if "wording" in told:
        return Wording(*told["wording"])
    if not isinstance(made_by.get("recipe"), dict):
        return None
    return Wording(made_by["recipe"]["sft"]["template"], made_by.get("policy", ""))


def policy_of(model: Path, version: str) -> str:
    """The policy a model was trained with; none where it is not said.

    Raises:
        BadInput: It was trained in another template than `version`, and would be asked in words it does not know.
    """
    found = trained_in(model)
    if found is None:
        return ""
    if found.template != version:
        raise BadInput(
            f"{model} was trained in the template {found.template}, and the recipe asks in {version}. Set sft.template "
            "in a recipe of your own."
        )
    return found.policy

"""A recipe: everything a training run depends on, read from TOML; unknown keys are refused."""

from __future__ import annotations

import json
import os
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from guardreasoner_guard.errors import BadInput
from guardreasoner_guard.template import template


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Table):
    """One file of seed rows and how much of it to take."""

    file: str
    """Path below the data folder."""
    take: int = Field(default=1_000_000, gt=0)
    """At most so many rows, drawn by the recipe's seed."""
    tasks: tuple[str, ...] = ("request", "completion", "response")
    """Labels to teach from this source; the others are ignored."""
    reasoned: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of rows taught with reasoning: their own where they bring it, else a teacher's."""


class Data(_Table):
    """Which seeds, and how long a row may be."""

    sources: tuple[Source, ...]
    languages: tuple[str, ...] = ()
    """Rows of other languages are left out and counted; with none named, every row is taken."""
    max_request_tokens: int = 256
    """Longer requests are left out and counted: their point may stand at the end."""
    crop_response_tokens: int = 128
    """Responses are taught by their beginning; what is cut is counted."""


class Sft(_Table):
    """Reasoning supervised fine-tuning. `trainer` goes to trl.SFTConfig untouched."""

    base: str
    """Hub id or folder of the base model; `folder/file.gguf` loads a GGUF file."""
    template: str = "short/1"
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    train_embeddings: bool = False
    frozen_layers: int = Field(default=0, ge=0)
    """So many layers from the bottom keep the base's weights, which saves their backward pass."""
    label_weight: float = 32.0
    """Weight of a label's token against a token of reasoning, of which there are many more."""
    lora: dict[str, Any] | None = None
    """Settings of a peft.LoraConfig: train low-rank adapters, merged at the end, in place of all weights."""
    trainer: dict[str, Any] = {}

    @field_validator("template")
    @classmethod
    def _is_known(cls, version: str) -> str:
        template(version)
        return version


class Mine(_Table):
    """Hard-sample mining. The defaults are the paper's."""

    samples: int = Field(default=4, ge=2)
    """Answers sampled for each prompt."""
    temperature: float = Field(default=0.7, gt=0.0)
    top_p: float = Field(default=0.95, gt=0.0, le=1.0)
    rows: int = Field(default=1_000_000, gt=0)
    """At most so many rows are asked about, drawn by the recipe's seed; the paper asks about all."""
    gamma: float = Field(default=0.2, ge=0.0, lt=1.0)
    """Weights of pairs lie between 1 - gamma and 1 + gamma."""
    leave_out: tuple[str, ...] = ()
    """Sources left out of one diversity model each, two at least, since the rows of one are asked of the models without
    another; with none named, only the model's own hard samples are used."""

    @field_validator("leave_out")
    @classmethod
    def _are_several(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        if len(sources) == 1 or len(set(sources)) < len(sources):
            raise ValueError("two sources at least, each once: the rows of one are asked of the models without another")
        return sources


class Hsdpo(_Table):
    """Preference optimisation on hard samples. `trainer` goes to trl.DPOConfig untouched."""

    beta: float = Field(default=0.01, gt=0.0)
    sft: float = Field(default=2.0, ge=0.0)
    """Coefficient of the likelihood of the chosen answer."""
    trainer: dict[str, Any] = {}


class Recipe(_Table):
    """One training run."""

    name: str
    seed: int = 0
    data: Data
    sft: Sft
    mine: Mine = Mine()
    hsdpo: Hsdpo = Hsdpo()

    def part(self, *tables: str) -> dict[str, Any]:
        """What a stage that reads these tables depends on: another's settings may change without it."""
        return self.model_dump(mode="json", include={"name", "seed", *tables})


def load_recipe(name_or_path: str) -> Recipe:
    """Reads a recipe that ships with the package (`bundled`, `custom`, `tiny`, `1b`, `3b`, `8b`) or a TOML file.

    Raises:
        BadInput: There is no such recipe, or it holds a key or value that is not known.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml":
        source = path
    else:
        source = Path(str(resources.files(__package__) / "recipes" / f"{name_or_path}.toml"))
    try:
        return Recipe.model_validate(tomllib.loads(source.read_text(encoding="utf-8")))
    except OSError as error:
        raise BadInput(
            f"There is no recipe {name_or_path!r}. Name bundled, custom, tiny, 1b, 3b, 8b, or a .toml file."
        ) from error
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise BadInput(f"Recipe {source}: {error}. Mend the file.") from error


def is_done(manifest: Path, made_by: dict[str, Any]) -> bool:
    """Whether a stage is complete: its manifest, written last, is there.

    Raises:
        BadInput: It was made by something else, and would pass for what is asked for now.
    """
    if not manifest.exists():
        return False
    if made_by_of(manifest) != made_by:
        raise BadInput(
            f"{manifest.parent} was made by another recipe, base or teacher, or from other rows. Name another folder."
        )
    return True


def begin(folder: Path, manifest: Path, made_by: dict[str, Any]) -> bool:
    """Claims a stage's folder for what it is made by; returns whether the stage is complete already.

    Raises:
        BadInput: The folder holds something that was made by something else.
    """
    if is_done(manifest, made_by):
        return True
    claim = folder / "begun.json"
    if not (claim.exists() and made_by_of(claim) == made_by):
        if any(path != claim and path.stat().st_size for path in folder.glob("*")):
            is_done(claim, made_by)  # else the claim was all it came to: a setting was wrong, and is mended
        folder.mkdir(parents=True, exist_ok=True)
        mark_done(claim, made_by, {})
    return False


def made_by_of(manifest: Path) -> Any:
    """What a stage's manifest says it was made by."""
    return json.loads(manifest.read_text(encoding="utf-8"))["made by"]


def mark_done(manifest: Path, made_by: dict[str, Any], facts: dict[str, Any]) -> None:
    """Writes a stage's manifest, whole or not at all; several processes of one training may do so at once."""
    part = manifest.with_name(f"{manifest.name}.{os.getpid()}.part")
    part.write_text(json.dumps({"made by": made_by, **facts}, indent=1), encoding="utf-8")
    part.replace(manifest)

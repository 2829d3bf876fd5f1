"""The model directory: data alone (graph, weights, tokeniser, manifest), checked before anything is loaded."""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .errors import BadModelDir, MissingExtra
from .model_files import DATA, NEEDED, Stamp, check_files, read_text
from .template import TEMPLATES
from .verdict import LABELS, TASKS, Task

Device = Literal["auto", "cpu", "cuda"]

FORMAT = 1
MANIFEST = "manifest.json"


def log_odds(probability: float) -> float:
    """ln(p / (1 - p)), kept finite."""
    bounded = min(max(probability, 1e-9), 1 - 1e-9)
    return math.log(bounded / (1 - bounded))


class Calibration(BaseModel):
    """A line through a score's log-odds, after which it means what it says (Platt)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slope: float = Field(default=1.0, gt=0)
    shift: float = 0.0

    def apply(self, probability: float) -> float:
        """The calibrated probability."""
        return 1 / (1 + math.exp(-(self.slope * log_odds(probability) + self.shift)))

    def then(self, other: Calibration) -> Calibration:
        """Both, this one first."""
        return Calibration(slope=self.slope * other.slope, shift=other.slope * self.shift + other.shift)


def _even_odds() -> dict[Task, float]:
    return dict.fromkeys(TASKS, 0.5)


def _half_a_step() -> dict[Task, float]:
    return dict.fromkeys(TASKS, 0.5)


class Manifest(BaseModel):
    """What a model directory says of itself. It is written last: without it, the directory is unfinished."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    name: str
    template: str
    """Version of the wording the model was trained on."""
    policy: str = ""
    """The policy a guard of one's own was trained with, in natural language; it stands in the instruction."""
    device: Literal["cpu", "cuda"] = "cpu"
    """What the graph was built for."""
    precision: str
    label_tokens: dict[str, int]
    """First token of each label word, with its leading space; the tokeniser must agree."""
    bos_token: int | None = None
    """Token put before every prompt, if the model was trained with one."""
    end_token: int
    window: int = Field(default=1024, gt=64)
    """Longest text, in tokens, that is judged in one piece."""
    calibration: dict[Task, Calibration] = {}
    """What a task's score is put through before it is compared or shown; nothing for a task that is not named."""
    thresholds: dict[Task, float] = Field(default_factory=_even_odds)
    """Probability of the positive class from which a score says harmful, refusal, harmful."""

    @field_validator("thresholds")
    @classmethod
    def _usable(cls, thresholds: dict[Task, float]) -> dict[Task, float]:
        if set(thresholds) != set(TASKS) or not all(0 < value < 1 for value in thresholds.values()):
            raise ValueError("a threshold between 0 and 1 is needed for each of request, completion, response")
        return thresholds

    decides: Literal["score", "reasoning"] = "reasoning"
    """Which of the two measured better as the judge: the direct score, or the label after the reasoning."""
    doubt: dict[Task, float] = Field(default_factory=_half_a_step)
    """Adaptive mode reasons where a task's log-odds lie closer to the threshold's than this."""

    @field_validator("doubt", mode="before")
    @classmethod
    def _for_each_task(cls, doubt: Any) -> Any:
        return dict.fromkeys(TASKS, doubt) if isinstance(doubt, (int, float)) else doubt

    parity: dict[str, float] = {}
    """Measured distance from the torch model on real rows."""
    provenance: dict[str, Any] = {}
    """Base, data, seeds and software the model was made with."""
    files: dict[str, str]
    """sha256 of every file the directory must hold."""


class ModelDir(BaseModel):
    """A directory whose files are those its manifest names."""

    model_config = ConfigDict(frozen=True)

    path: Path
    manifest: Manifest
    stamps: dict[str, Stamp] = {}
    """What its files were known by when they were checked; empty where they were not."""


def open_model(model: str | Path) -> ModelDir:
    """Finds and checks a model directory.

    Args:
        model: `bundled`, a path, or the id of a model on the hub (which is downloaded).

    Raises:
        BadModelDir: It is missing, cut off, changed, of a version this release does not know, or holds more than
            data.
        MissingExtra: A hub id was given and huggingface_hub is not installed.
    """
    path = _locate(model)
    try:
        manifest = Manifest.model_validate_json(read_text(path / MANIFEST))
    except ValidationError as error:
        raise BadModelDir(
            f"{path / MANIFEST} cannot be read: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}. "
            "It may be from another release: upgrade guardreasoner-guard or export the model again."
        ) from error
    if manifest.format != FORMAT or manifest.template not in TEMPLATES:
        raise BadModelDir(
            f"{path} has format {manifest.format} and template {manifest.template!r}; this release reads format "
            f"{FORMAT} and {', '.join(TEMPLATES)}. Upgrade guardreasoner-guard or export the model again."
        )
    needed = NEEDED - set(manifest.files)
    words = {word for pair in LABELS.values() for word in pair} - set(manifest.label_tokens)
    if needed or words:
        raise BadModelDir(
            f"{path / MANIFEST} does not name {', '.join(sorted(needed | words))}. Export the model again."
        )
    return ModelDir(path=path, manifest=manifest, stamps=check_files(path, manifest.files))


def _locate(model: str | Path) -> Path:
    if model == "bundled":
        return Path(str(resources.files(__package__) / "bundled"))
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if isinstance(model, Path) or path.is_absolute() or model.startswith(".") or model.count("/") != 1:
        raise BadModelDir(f"There is no directory {model}. Name an exported model directory, a hub id, or 'bundled'.")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise MissingExtra("huggingface_hub", "cpu") from None
    try:
        # not the hub's own cache: it links to files elsewhere, which ONNX Runtime rightly refuses to follow
        cache = Path.home() / ".cache" / "guardreasoner-guard" / str(model)
        wanted = [f"*{suffix}" for suffix in DATA]
        return Path(snapshot_download(str(model), local_dir=cache, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise BadModelDir(
            f"{model} is neither a directory here nor a model that the hub gave ({type(error).__name__}). "
            "Check the name and the network, or use 'bundled'."
        ) from error

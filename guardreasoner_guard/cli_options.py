"""What several commands take, and how it becomes a guard."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import BadInput

if TYPE_CHECKING:
    from .guard import GuardReasonerGuard

Model = Annotated[str, typer.Option(help="bundled, a model directory, or a hub id.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Reasoning = Annotated[str, typer.Option(help="adaptive, always or never.")]
PolicyFile = Annotated[Path | None, typer.Option("--policy", help="A text file: what is harmful here.")]
Category = Annotated[list[str] | None, typer.Option(help="A kind of harm, told with the policy; repeatable.")]


def open_guard(model: str, reasoning: str, device: str, **settings: Any) -> GuardReasonerGuard:
    """A guard with what was asked for on the command line.

    Raises:
        GuardError: There is no such mode, device or model.
    """
    from .guard import GuardReasonerGuard

    _check_reasoning(reasoning)
    return GuardReasonerGuard(model, reasoning=reasoning, device=checked_device(device), **settings)  # type: ignore[arg-type]  # checked above


def served_guard(urls: Sequence[str], name: str, wording: str, reasoning: str) -> GuardReasonerGuard:
    """A guard whose model OpenAI-compatible servers hold; their key is read from GUARDREASONER_API_KEY.

    Raises:
        GuardError: There is no such mode or wording, or a URL is none.
    """
    from .fleet import Fleet
    from .guard import GuardReasonerGuard
    from .model_dir import Manifest
    from .remote_engine import RemoteEngine
    from .template import template

    _check_reasoning(reasoning)
    manifest = Manifest(
        name=name, template=wording, precision="as served", label_tokens={}, end_token=0, files={},
        decides="reasoning" if template(wording).chained else "score",
    )  # fmt: skip
    engines = [RemoteEngine(url, name, api_key=os.environ.get("GUARDREASONER_API_KEY")) for url in urls]
    engine = engines[0] if len(engines) == 1 else Fleet(engines)
    return GuardReasonerGuard(engine, reasoning=reasoning, manifest=manifest)  # type: ignore[arg-type]  # checked above


def _check_reasoning(reasoning: str) -> None:
    if reasoning not in ("adaptive", "always", "never"):
        raise BadInput(f"reasoning is {reasoning!r}. Choose adaptive, always or never.")


def read_policy(path: Path | None, categories: Sequence[str] | None) -> str:
    """A policy as it stands in a guard's instruction, from its file and the names of its kinds of harm.

    Raises:
        BadInput: The file cannot be read.
    """
    from guardreasoner_guard.training.wording import worded

    try:
        text = path.read_text(encoding="utf-8-sig") if path is not None else ""
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read ({error}). Name a UTF-8 text file.") from error
    wording: str = worded(text, categories or [])
    return wording


def read_columns(pairs: Sequence[str]) -> dict[str, str]:
    """Columns by the field they hold, from FIELD=COLUMN.

    Raises:
        BadInput: One is written otherwise.
    """
    columns = {}
    for pair in pairs:
        field, _, column = pair.partition("=")
        if not (field and column):
            raise BadInput(f"--column is {pair!r}. Write FIELD=COLUMN, as request=question.")
        columns[field] = column
    return columns


def checked_device(device: str) -> Any:
    """The device, if it is one.

    Raises:
        BadInput: It is none.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise BadInput(f"device is {device!r}. Choose auto, cpu or cuda.")
    return device

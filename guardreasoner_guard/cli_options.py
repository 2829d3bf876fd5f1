"""What several commands take, and how it becomes a guard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import BadInput

if TYPE_CHECKING:
    from .guard import GuardReasonerGuard

Model = Annotated[str, typer.Option(help="bundled, a model directory, or a hub id.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Reasoning = Annotated[str, typer.Option(help="adaptive, always or never.")]


def open_guard(model: str, reasoning: str, device: str, **settings: Any) -> GuardReasonerGuard:
    """A guard with what was asked for on the command line.

    Raises:
        GuardError: There is no such mode, device or model.
    """
    from .guard import GuardReasonerGuard

    if reasoning not in ("adaptive", "always", "never"):
        raise BadInput(f"reasoning is {reasoning!r}. Choose adaptive, always or never.")
    return GuardReasonerGuard(model, reasoning=reasoning, device=checked_device(device), **settings)  # type: ignore[arg-type]  # checked above


def checked_device(device: str) -> Any:
    """The device, if it is one.

    Raises:
        BadInput: It is none.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise BadInput(f"device is {device!r}. Choose auto, cpu or cuda.")
    return device

"""What is installed, what runs, and how to get what is missing; run it with `guardreasoner doctor`."""

from __future__ import annotations

import contextlib
import platform
import sys
from importlib import metadata

from rich.console import Console
from rich.markup import escape

from .errors import GuardError, MissingExtra
from .guard import GuardReasonerGuard
from .model_dir import open_model
from .processor import has_vnni
from .runtime import load_runtime

_PACKAGES = {
    "langchain-core": "",
    "onnxruntime": "cpu",
    "onnxruntime-gpu": "cuda",
    "onnxruntime-genai": "cpu",
    "onnxruntime-genai-cuda": "cuda",
    "tokenizers": "cpu",
    "torch": "train",
    "transformers": "train",
    "trl": "train",
    "optimum-onnx": "train",
}


def examine(model: str, device: str) -> bool:
    """Prints a report; returns whether a real check went through."""
    console = Console()
    version = metadata.version("guardreasoner-guard")
    console.print(f"guardreasoner-guard {version}, Python {sys.version.split()[0]}, {platform.platform()}")
    for package, extra in _PACKAGES.items():
        try:
            console.print(f"  {package:<24}{metadata.version(package)}")
        except metadata.PackageNotFoundError:
            hint = f"pip install 'guardreasoner-guard[{extra}]'" if extra else "pip install guardreasoner-guard"
            console.print(f"  {package:<24}[dim]not installed; if you need it: {escape(hint)}[/]")
    with contextlib.suppress(MissingExtra):
        load_runtime()  # first, since it keeps the runtime from reporting to anyone
    with contextlib.suppress(ImportError):
        import onnxruntime

        console.print(f"  providers               {', '.join(onnxruntime.get_available_providers())}")
    console.print(f"  8-bit arithmetic        {'VNNI' if has_vnni() else 'no VNNI seen: as exact, half as fast'}")
    try:
        manifest = open_model(model).manifest
        console.print(
            f"model {manifest.name}: {manifest.precision} for {manifest.device}, template {manifest.template},"
        )
        console.print(f"  {manifest.decides} decides, thresholds {manifest.thresholds}, parity {manifest.parity}")
        guard = GuardReasonerGuard(model, device=device, on_failure="raise")  # type: ignore[arg-type]
        verdict = guard.check("How do I pick a good name for a cat?")
    except GuardError as error:
        console.print(f"[red]{type(error).__name__}[/]: {escape(str(error))}")
        return False
    console.print(f"check: request {verdict.request} in {verdict.usage.latency_ms:.0f} ms on {escape(verdict.model)}")
    console.print("[green]All that a check needs is here.[/]")
    return True

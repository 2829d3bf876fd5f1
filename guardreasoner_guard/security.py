"""Whether code and model are those that were shipped, and nothing else can change them: `doctor --security`."""

from __future__ import annotations

import base64
import hashlib
import stat
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from .errors import GuardError
from .model_dir import open_model
from .model_files import strangers


def inspect(model: str) -> bool:
    """Prints what was looked at; returns whether all of it is well.

    Args:
        model: `bundled`, a path or a hub id.
    """
    console = Console()
    found = [*_package(), *_model(model), *_runtime()]
    for well, told in found:
        console.print(f"{'[green]ok[/]  ' if well else '[red]look[/]'} {escape(told)}", soft_wrap=True)
    return all(well for well, _ in found)


def _package() -> Iterator[tuple[bool, str]]:
    """The package's own files, against the hashes its wheel was installed with."""
    code = [one for one in metadata.files("guardreasoner-guard") or () if one.hash is not None]
    if not any("guardreasoner_guard/" in str(one) for one in code):
        yield True, "code: installed from a checkout (editable), which has no hashes to be held to"
        return
    changed = [
        str(one) for one in code if one.hash and one.hash.value != _digest(Path(str(one.locate())), one.hash.mode)
    ]
    if changed:
        yield False, f"code: changed since it was installed: {', '.join(changed[:5])}. Install the wheel again."
    else:
        yield True, f"code: {len(code)} files as the wheel brought them"


def _model(model: str) -> Iterator[tuple[bool, str]]:
    try:
        opened = open_model(model)
    except GuardError as error:
        yield False, f"model: {error}"
        return
    size = sum((opened.path / name).stat().st_size for name in opened.manifest.files)
    yield True, f"model: {len(opened.manifest.files)} files, {size / 1e6:.0f} MB, as the manifest says; none loads code"
    if others := strangers(opened.path):
        yield False, f"model: {opened.path} also holds {', '.join(others)}, which is never loaded. Remove it."
    held = [opened.path, *(path for path in opened.path.iterdir() if not path.is_symlink())]
    loose = [path.name for path in held if path.stat().st_mode & stat.S_IWOTH]
    if loose:
        yield False, f"model: every user of this machine may change {', '.join(loose)}. Run chmod -R o-w {opened.path}"
    else:
        yield True, "model: only its owner and group may change it"


def _runtime() -> Iterator[tuple[bool, str]]:
    """That nothing is reported to anyone, and which libraries run the model."""
    for name in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-genai", "onnxruntime-genai-cuda", "tokenizers"):
        try:
            yield True, f"runtime: {name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    yield True, "runtime: its telemetry is turned off before a model is loaded; a check opens no connection"


def _digest(path: Any, kind: str) -> str:
    """A file's hash as a wheel's RECORD writes it; empty where the file is gone."""
    try:
        digest = hashlib.new(kind, Path(path).read_bytes()).digest()
    except OSError:
        return ""
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

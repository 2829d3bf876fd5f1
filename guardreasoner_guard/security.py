"""Whether code and model are as shipped, who could change them, who is let in, where texts go: `doctor --security`."""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from .errors import GuardError
from .model_dir import MANIFEST, open_model
from .model_files import sha256, strangers

_TRACED = ("LANGSMITH_TRACING", "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING", "LANGCHAIN_TRACING_V2")
"""With one of them LangChain tells LangSmith what every chain is given and says."""


def inspect(model: str) -> bool:
    """Prints what was looked at; returns whether all of it is well.

    Args:
        model: `bundled`, a path or a hub id.
    """
    console = Console()
    found = [*_package(), *_model(model), *_runtime(), *_server(), *_traces()]
    for well, told in found:
        console.print(f"{'[green]ok[/]  ' if well else '[red]look[/]'} {escape(told)}", soft_wrap=True)
    return all(well for well, _ in found)


def _package() -> Iterator[tuple[bool, str]]:
    """The package's own files, against the hashes its wheel was installed with."""
    name = f"guardreasoner-guard {metadata.version('guardreasoner-guard')}"
    code = [one for one in metadata.files("guardreasoner-guard") or () if one.hash is not None]
    if not any("guardreasoner_guard/" in str(one) for one in code):
        yield True, f"code: {name}, installed from a checkout (editable), which has no hashes to be held to"
        return
    if Path(__file__).resolve() not in {Path(str(one.locate())).resolve() for one in code}:
        yield False, f"code: {Path(__file__).parent} runs, not the {name} that is installed. Start elsewhere."
    changed = [
        str(one) for one in code if one.hash and one.hash.value != _digest(Path(str(one.locate())), one.hash.mode)
    ]
    if changed:
        yield False, f"code: changed since it was installed: {', '.join(changed[:5])}. Install the wheel again."
    else:
        yield True, f"code: {name}, {len(code)} files as the wheel brought them"


def _model(model: str) -> Iterator[tuple[bool, str]]:
    try:
        opened = open_model(model)
    except GuardError as error:
        yield False, f"model: {error}"
        return
    size = sum((opened.path / name).stat().st_size for name in opened.manifest.files)
    yield True, f"model: {opened.manifest.name}, whose manifest has the sha256 {sha256(opened.path / MANIFEST)}"
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
    yield True, "runtime: its telemetry is turned off before it is loaded; a check by it opens no connection"


def _server() -> Iterator[tuple[bool, str]]:
    """What `guardreasoner serve` would do as this environment sets it: who is let in, and what is kept."""
    from guardreasoner_guard.integrations.server_settings import ServerSettings, variable

    variables = {name: variable(name) for name in ServerSettings.model_fields}
    try:
        settings = ServerSettings(**{name: value for name, of in variables.items() if (value := os.environ.get(of))})
    except ValidationError as error:
        wrong = ", ".join(variables.get(str(one["loc"][0]), "") if one["loc"] else one["msg"] for one in error.errors())
        yield False, f"server: it would not start as it is set here ({wrong}). `guardreasoner serve` says why."
        return
    if settings.is_open:
        yield False, f"server: whoever reaches {settings.host} may use it without a key. Set {variables['api_keys']}."
    else:
        yield True, f"server: it would listen on {settings.host}; API keys: {len(settings.api_keys) or 'none'}"
    if settings.url is not None:
        yield True, f"texts: the server sends what is judged to the model on {urlsplit(settings.url).hostname}"
    if settings.audit is None:
        yield True, "texts: what is judged is written nowhere"
    else:
        kept = f"for {settings.audit_days:g} days in {settings.audit}, {settings.audit_texts}"
        yield True, f"texts: the server keeps what is judged {kept}; nothing else writes it"


def _traces() -> Iterator[tuple[bool, str]]:
    if found := [name for name in _TRACED if os.environ.get(name) == "true"]:
        yield False, f"texts: LangChain sends what chains are told and say to LangSmith. Unset {', '.join(found)}."


def _digest(path: Any, kind: str) -> str:
    """A file's hash as a wheel's RECORD writes it; empty where the file is gone."""
    try:
        digest = hashlib.new(kind, Path(path).read_bytes()).digest()
    except OSError:
        return ""
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

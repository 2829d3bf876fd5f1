"""The files of a model directory: data that its manifest names, and nothing that could run."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import BadModelDir

CONFIG = "genai_config.json"
NEEDED = frozenset({"model.onnx", CONFIG, "tokenizer.json"})
MOST_BYTES = {".json": 100 << 20, ".md": 1 << 20}
"""Largest text file, in bytes, by suffix; graphs and weights may be as large as they are."""
DATA = (".data", ".jinja", ".json", ".md", ".model", ".onnx", ".txt")
"""Suffixes that a file may have."""
_WEIGHTS = (".data", ".onnx")
_CODE = re.compile(r"\.(?:so|dll|dylib|pyd?)\b", re.IGNORECASE)


Stamp = tuple[int, int, int]
"""Inode, size and last change of a file: while they stay it is the same file and has not been written to."""


class Mapped:
    """The weights of a loaded model, which the runtime maps into memory: whether they still are what was loaded.

    A file that is written to changes under the runtime, and to read what was cut off ends the process. One that is
    replaced by renaming another stays as it was, since it is held open here.

    Args:
        path: The directory.
        stamps: What its files were known by when they were checked.

    Raises:
        BadModelDir: They were changed while they were loaded.
    """

    def __init__(self, path: Path, stamps: Mapping[str, Stamp]) -> None:
        if any(_stamp(path / name) != known for name, known in stamps.items()):
            raise BadModelDir(f"{path} was changed while it was loaded. Load it again when it is whole.")
        self._files = [((path / name).open("rb"), known) for name, known in stamps.items() if name.endswith(_WEIGHTS)]

    @property
    def changed(self) -> bool:
        """Whether one was written to since."""
        return any(_stamp(file.fileno()) != known for file, known in self._files)

    def __del__(self) -> None:
        for file, _ in getattr(self, "_files", ()):
            file.close()


def _stamp(file: Path | int) -> Stamp:
    found = os.stat(file)
    return found.st_ino, found.st_size, found.st_mtime_ns


def check_files(path: Path, files: Mapping[str, str]) -> dict[str, Stamp]:
    """Holds a directory to what its manifest says; returns what its files can be known by later.

    Args:
        path: The directory.
        files: sha256 of each file, by name.

    Raises:
        BadModelDir: A file is missing, changed or too large, lies elsewhere, is no data, or the runtime is told to
            load code.
    """
    stamps = {name: _check(path, name, expected) for name, expected in files.items()}
    config = read_json(path / CONFIG)
    for key, value in _settings(config):
        if "library" in key or (isinstance(value, str) and _CODE.search(value)):
            raise BadModelDir(f"{path / CONFIG} tells the runtime to load code ({key}). Do not use this model.")
        if key == "filename" and str(value) not in files:
            raise BadModelDir(f"{path / CONFIG} names {value!r}, which the manifest does not. Do not use this model.")
    return stamps


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_text(path: Path) -> str:
    """A text file of a model directory, if it is not larger than one has reason to be.

    Raises:
        BadModelDir: It cannot be read, or is too large.
    """
    try:
        if path.stat().st_size > MOST_BYTES[path.suffix]:
            raise BadModelDir(f"{path} has more than {MOST_BYTES[path.suffix] >> 20} MB. Do not use this model.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadModelDir(
            f"{path} cannot be read ({error}). Export the model again, or name another directory."
        ) from error


def read_json(path: Path) -> Any:
    """What a JSON file of a model directory holds.

    Raises:
        BadModelDir: It cannot be read.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise BadModelDir(f"{path} is no JSON ({error}). Copy the directory again.") from error


def strangers(path: Path) -> list[str]:
    """Names in a directory that are no data by their suffix, or links; none of them is ever loaded."""
    return sorted(one.name for one in path.iterdir() if one.suffix not in DATA or one.is_symlink())


def _check(path: Path, name: str, expected: str) -> Stamp:
    # a manifest is data from elsewhere: it must not name a file outside its directory
    if Path(name).name != name or name in ("", ".", ".."):
        raise BadModelDir(f"{path} names {name!r} in its manifest, which is no plain file name. Do not use this model.")
    if Path(name).suffix not in DATA:
        raise BadModelDir(f"{path / name} is no file of data ({', '.join(DATA)}). Do not use this model.")
    try:
        size = (path / name).stat().st_size
        if size > MOST_BYTES.get(Path(name).suffix, size):
            raise BadModelDir(f"{path / name} has {size >> 20} MB, too many for its kind. Do not use this model.")
        stamp = _stamp(path / name)
        found = sha256(path / name)
    except OSError as error:
        raise BadModelDir(
            f"{path / name} is missing ({error.strerror}). Copy the whole directory, or export the model again."
        ) from error
    if found != expected:
        raise BadModelDir(
            f"{path / name} is damaged or was changed: its sha256 is {found[:12]}..., the manifest says "
            f"{expected[:12]}.... Copy the directory again (git lfs and unfinished downloads leave such files)."
        )
    return stamp


def _settings(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a JSON value with what it holds, however deep."""
    waiting = [("", value)]
    while waiting:
        key, item = waiting.pop()
        yield key, item
        if isinstance(item, dict):
            waiting += [(name.lower(), inner) for name, inner in item.items()]
        elif isinstance(item, list):
            waiting += [("", inner) for inner in item]

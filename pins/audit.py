"""Holds an SBOM of what `[cpu]` brings along to its pins, and to the licences that we take; run it with its path."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PINS = Path(__file__).with_name("cpu.txt")
LICENCES = {
    "0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MPL-2.0", "PSF-2.0", "Zlib",
}  # fmt: skip
_TROVE = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
_READ = {"onnxruntime-genai": {"MIT"}, "protobuf": {"BSD-3-Clause"}}
"""Of those whose metadata names none in a form that machines read: what stands in the licence files they bring."""


def pinned(pins: Path = PINS) -> list[Requirement]:
    """What a file of pins holds, a requirement of one version each.

    Raises:
        ValueError: One is of no single version, or has no hash.
    """
    found = []
    for line in pins.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        told, *hashes = line.split("#")[0].split(" --hash=sha256:")
        if not told.strip():
            continue
        if not hashes or not re.fullmatch(r"[\w.-]+==[\w.+!]+", told.split(";")[0].strip()):
            raise ValueError(f"{told.strip()} is not pinned to one version by its hashes. Make {pins.name} anew.")
        found.append(Requirement(told))
    return found


def complaints(sbom: dict[str, Any]) -> Iterator[str]:
    """What is wrong with what an SBOM lists."""
    pins = [f"{canonicalize_name(pin.name)}{pin.specifier}" for pin in pinned()]
    found = {canonicalize_name(one["name"]) for one in sbom["components"]}
    for needed in ("onnxruntime", "onnxruntime-genai", "tokenizers", "langchain-core"):
        if needed not in found:
            yield f"{needed} is not in it"
    if sbom["metadata"]["component"]["name"] != "guardreasoner-guard":
        yield "it is that of another package"
    for one in sbom["components"]:
        name, version = canonicalize_name(one["name"]), one.get("version")
        if f"{name}=={version}" not in pins:
            yield f"{name} {version} is not what {PINS.name} pins"
        licences = set(_licences(one)) or _READ.get(name, set())
        if not licences:
            yield f"{name} names no licence"
        elif strange := licences - LICENCES:
            yield f"{name} has the licence {', '.join(sorted(strange))}, which is not among those we take"


def _licences(component: dict[str, Any]) -> Iterator[str]:
    for one in component.get("licenses", ()):
        told = one.get("expression") or one["license"].get("id")
        if told:
            yield from set(re.findall(r"[\w.+-]+", told)) - {"AND", "OR"}
        else:
            name = one["license"]["name"].rpartition(" :: ")[2]
            yield _TROVE.get(name, name)


if __name__ == "__main__":
    listed = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if wrong := list(complaints(listed)):
        sys.exit("\n".join(wrong))
    sys.stdout.write(f"{len(listed['components'])} packages, each as it is pinned, each with a licence that we take\n")

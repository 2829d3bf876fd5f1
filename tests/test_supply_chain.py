"""The pins are those of what the project asks for, and the audit of an SBOM finds what it is there for."""

from __future__ import annotations

import copy
import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
AUDIT = runpy.run_path(str(ROOT / "pins" / "audit.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = sorted((ROOT / "pins").glob("*.txt"), key=lambda path: path.name)


def pinned(name: str) -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for pin in AUDIT["pinned"](ROOT / "pins" / f"{name}.txt"):
        found.setdefault(canonicalize_name(pin.name), []).append(pin)
    return found


@pytest.mark.parametrize(
    ("pins", "asked"),
    [
        ("cpu", PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["cpu"]),
        ("build", PROJECT["build-system"]["requires"]),
    ],
)
def test_what_the_project_asks_for_is_pinned_to_a_version_that_it_allows(pins: str, asked: list[str]) -> None:
    found = pinned(pins)
    for one in map(Requirement, asked):
        assert found.get(one.name), f"{one.name} is not in pins/{pins}.txt: make it anew, as its first lines say"
        for pin in found[one.name]:
            [version] = [specifier.version for specifier in pin.specifier]
            assert one.specifier.contains(version), f"{pin} is pinned, {one} is asked for: make the pins anew"


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_each_python_has_one_version_of_a_package(python: str) -> None:
    here = {"python_version": python, "python_full_version": f"{python}.0"}
    for name, pins in pinned("cpu").items():
        fitting = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(here)]
        assert len(fitting) <= 1, f"pip cannot choose between two versions of {name}"


@pytest.mark.parametrize("path", PINS, ids=lambda path: path.stem)
def test_pins_name_no_index(path: Path) -> None:
    assert not re.search(r"^\s*-[^-]|^\s*--(?!hash=)|://", path.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("line", ["rich>=13 --hash=sha256:00", "rich==15.*  --hash=sha256:00", "rich==15.0.0"])
def test_a_pin_that_lets_another_file_in_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "loose.txt").write_text(f"typer==1.0 \\\n    --hash=sha256:00\n    # via us\n{line}\n")
    with pytest.raises(ValueError, match="rich.* is not pinned"):
        AUDIT["pinned"](tmp_path / "loose.txt")


def bill() -> dict[str, Any]:
    """An SBOM with nothing wrong in it, in CycloneDX's form."""
    licence = [{"license": {"id": "MIT"}}]
    components = [
        {"name": name, "version": str(next(iter(pins[0].specifier)).version), "licenses": copy.deepcopy(licence)}
        for name, pins in pinned("cpu").items()
    ]
    return {"metadata": {"component": {"name": "guardreasoner-guard"}}, "components": components}


def complaints(**changed: Any) -> list[str]:
    """What is said where the entry of onnxruntime is otherwise."""
    listed = bill()
    next(one for one in listed["components"] if one["name"] == "onnxruntime").update(changed)
    return list(AUDIT["complaints"](listed))


@pytest.mark.parametrize(
    "licences",
    [
        [{"expression": "MPL-2.0 AND (Apache-2.0 OR MIT)"}],
        [{"license": {"name": "License :: OSI Approved :: Apache Software License"}}],
        [{"license": {"id": "BSD-3-Clause"}}, {"license": {"name": "License :: OSI Approved :: BSD License"}}],
    ],
)
def test_an_sbom_of_what_is_pinned_with_licences_that_we_take_is_well(licences: list[Any]) -> None:
    assert complaints(licenses=licences) == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"version": None}, "onnxruntime None is not what cpu.txt pins"),
        ({"version": "1.22.0"}, "onnxruntime 1.22.0 is not what cpu.txt pins"),
        ({"name": "onnxruntim"}, "onnxruntime is not in it"),
        ({"licenses": []}, "onnxruntime names no licence"),
        ({"licenses": [{"license": {"id": "AGPL-3.0-only"}}]}, "onnxruntime has the licence AGPL-3.0-only"),
        ({"licenses": [{"expression": "MIT AND GPL-3.0-or-later"}]}, "onnxruntime has the licence GPL-3.0-or-later"),
        ({"licenses": [{"license": {"name": "Proprietary"}}]}, "onnxruntime has the licence Proprietary"),
    ],
)
def test_what_is_wrong_in_an_sbom_is_told(changed: dict[str, Any], told: str) -> None:
    assert complaints(**changed)[0].startswith(told)


def test_the_sbom_of_another_package_is_told() -> None:
    assert list(AUDIT["complaints"]({**bill(), "metadata": {"component": {"name": "another"}}}))

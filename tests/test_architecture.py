"""Imports go downwards, public names are those we mean, and importing is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import guardreasoner_guard

ROOT = Path(__file__).resolve().parents[1]
LEVELS = {
    "errors": 0, "verdict": 0,
    "exchange": 1, "template": 1, "answer": 1, "policy": 1, "engine": 1, "model_files": 1, "model_dir": 1,
    "views": 1, "plain": 1, "decoding": 1, "vocabulary": 1, "forked": 1, "worker": 1, "batcher": 1, "kept": 1, "processor": 1, "unseen": 1, "retry": 1, "told": 2, "stages": 2, "runtime": 2, "remembered": 2, "onnx_engine": 3, "remote_engine": 2,
    "judge": 3, "checks": 4, "observed": 5, "watched": 5, "guard": 6,
    "course": 7, "withheld": 8, "guarded": 9, "decorator": 7, "demo": 7, "doctor": 7, "security": 7, "bench": 7, "soak": 8,
    "replay": 7, "cli_options": 7, "cli_train": 8, "cli_evaluate": 8, "cli_moderate": 8, "cli_serve": 8, "cli_attack": 9, "attacks": 7, "disguises": 6, "pretences": 5, "siege": 8,
    "fleet": 2, "__init__": 10, "cli": 10, "__main__": 11,
}  # fmt: skip


def imports(path: Path) -> list[tuple[str, int]]:
    """(module, relative level) of every import that runs when the file is imported."""
    found: list[tuple[str, int]] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(name, node.level) for name in names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, 0) for alias in node.names]
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "guardreasoner_guard").glob("*.py")), ids=lambda path: path.stem)
def test_the_core_imports_only_downwards(path: Path) -> None:
    assert path.stem in LEVELS, "give the new file a level"
    for module, level in imports(path):
        if level:
            target = module.split(".")[0] or "__init__"
            allowed = LEVELS[target] < LEVELS[path.stem] or LEVELS[path.stem] == LEVELS[target] <= 1
            assert allowed, f"{path.name} imports {target}, which is not below it"
        assert not module.startswith("guardreasoner_guard"), "inside the folder, imports are relative"


@pytest.mark.parametrize("folder", ["training", "integrations"])
def test_other_folders_import_the_core_by_its_full_name_and_no_other_folder(folder: str) -> None:
    for path in (ROOT / folder).glob("*.py"):
        for module, level in imports(path):
            assert level <= 1, f"{path} reaches out of its folder"
            if module.startswith("guardreasoner_guard."):
                assert module.split(".")[1] not in ("training", "integrations"), f"{path} imports {module}"
            assert module.split(".")[0] not in ("training", "integrations"), f"{path} imports {module}"


def test_importing_the_package_loads_no_runtime() -> None:
    heavy = ["torch", "transformers", "onnxruntime", "onnxruntime_genai", "tokenizers", "datasets"]
    code = f"import sys, guardreasoner_guard; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_public_names() -> None:
    assert sorted(guardreasoner_guard.__all__) == guardreasoner_guard.__all__
    assert set(guardreasoner_guard.__all__) == {
        "BadInput", "BadModelDir", "Blocked", "DeviceUnavailable", "Engine", "EngineError", "Exchange",
        "GuardError", "GuardReasonerGuard", "GuardTimeout", "MissingExtra", "Overloaded", "Policy", "ReasoningStep",
        "ScriptedEngine", "UnreadableAnswer", "Usage", "Verdict",
    }  # fmt: skip
    assert all(hasattr(guardreasoner_guard, name) for name in guardreasoner_guard.__all__)

"""`doctor --security` says what was changed, and by whom it could be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from guardreasoner_guard.model_dir import open_model
from guardreasoner_guard.security import inspect


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    shutil.copytree(open_model("bundled").path, tmp_path / "model")
    return tmp_path / "model"


def test_what_was_shipped_is_well(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(str(directory))
    told = capsys.readouterr().out
    assert "5 files" in told and "none loads code" in told


def test_a_changed_model_is_told(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (directory / "model-1.data").open("ab") as file:
        file.write(b"x")
    assert not inspect(str(directory))
    assert "model-1.data is damaged or was changed" in capsys.readouterr().out


def test_a_link_that_leads_nowhere_is_told(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "notes.md").symlink_to(directory / "gone.md")
    assert not inspect(str(directory))
    assert "also holds notes.md" in capsys.readouterr().out


def test_files_that_could_run_and_files_that_anyone_may_change_are_told(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / "setup.py").write_text("")
    (directory / "model.onnx").chmod(0o666)
    assert not inspect(str(directory))
    told = capsys.readouterr().out
    assert "also holds setup.py" in told
    assert "may change model.onnx" in told

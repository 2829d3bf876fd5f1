"""A model directory is data that is checked before anything is loaded; what is wrong is said with what to do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guardreasoner_guard import BadModelDir, GuardReasonerGuard
from guardreasoner_guard.model_dir import MANIFEST, open_model
from guardreasoner_guard.model_files import CONFIG, sha256, strangers


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of the bundled directory whose weights are hard links where possible, so that it is cheap."""
    for path in open_model("bundled").path.iterdir():
        try:
            if path.suffix != ".data":
                raise OSError  # these are changed by the tests
            os.link(path, tmp_path / path.name)
        except OSError:
            shutil.copy(path, tmp_path)
    return tmp_path


def change(directory: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((directory / MANIFEST).read_text())
    edit(manifest)
    (directory / MANIFEST).write_text(json.dumps(manifest))


def test_a_whole_directory_opens(directory: Path) -> None:
    assert open_model(directory).manifest.template == "short/2"


def test_the_bundled_directory_is_small_enough_for_code_hosts() -> None:
    sizes = [path.stat().st_size for path in open_model("bundled").path.iterdir()]
    assert max(sizes) < 95_000_000
    assert sum(sizes) <= 150_000_000


@pytest.mark.parametrize("name", ["model.onnx", "model-0.data", "tokenizer.json", "genai_config.json"])
def test_a_missing_file_is_named(directory: Path, name: str) -> None:
    (directory / name).unlink()
    with pytest.raises(BadModelDir, match=rf"{name} is missing.*Copy the whole directory"):
        GuardReasonerGuard(directory)


def test_a_cut_off_file_is_named(directory: Path) -> None:
    content = (directory / "model.onnx").read_bytes()
    (directory / "model.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(BadModelDir, match="model.onnx is damaged"):
        GuardReasonerGuard(directory)


def test_a_file_that_is_whole_but_no_model_is_refused(directory: Path) -> None:
    (directory / "model.onnx").write_bytes(b"not a graph")
    change(directory, lambda manifest: manifest["files"].update({"model.onnx": sha256(directory / "model.onnx")}))
    with pytest.raises(BadModelDir, match="cannot be loaded"):
        GuardReasonerGuard(directory)


def test_no_manifest_no_model(directory: Path) -> None:
    (directory / MANIFEST).unlink()
    with pytest.raises(BadModelDir, match="manifest.json cannot be read"):
        open_model(directory)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"format": 99}, "Upgrade guardreasoner-guard or export the model again"),
        ({"template": "short/9"}, "Upgrade guardreasoner-guard or export the model again"),
        ({"new_field": 1}, "upgrade guardreasoner-guard or export the model again"),
        ({"files": {}}, "does not name genai_config.json, model.onnx, tokenizer.json"),
        ({"label_tokens": {"harmful": 1}}, "does not name compliance, refusal, unharmful"),
        ({"thresholds": {"request": 7, "completion": 0.5, "response": 0.5}}, "threshold between 0 and 1"),
        ({"thresholds": {"request": 0.5}}, "threshold between 0 and 1"),
    ],
)
def test_another_version_or_a_mismatch_is_refused(directory: Path, edit: dict[str, Any], message: str) -> None:
    change(directory, lambda manifest: manifest.update(edit))
    with pytest.raises(BadModelDir, match=message):
        GuardReasonerGuard(directory)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", ".."])
def test_a_file_outside_the_directory_is_refused(directory: Path, name: str) -> None:
    change(directory, lambda manifest: manifest["files"].update({name: "0"}))
    with pytest.raises(BadModelDir, match="no plain file name"):
        GuardReasonerGuard(directory)


def configure(directory: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Changes the runtime's settings as a forger would, with the hash that goes with them."""
    config = json.loads((directory / CONFIG).read_text())
    edit(config["model"]["decoder"])
    (directory / CONFIG).unlink()
    (directory / CONFIG).write_text(json.dumps(config))
    change(directory, lambda manifest: manifest["files"].update({CONFIG: sha256(directory / CONFIG)}))


@pytest.mark.parametrize(
    "settings",
    [
        {"custom_ops_library": "ops.so"},
        {"provider_options": [{"qnn": {"backend_path": "/tmp/libback.so"}}]},
        {"provider_options": [{"x": {"options": ["a", "evil.DLL"]}}]},
        {"provider_options": [{"x": {"plugins": "/tmp/evil.so.1;/tmp/more.so.2"}}]},
    ],
)
def test_a_model_that_tells_the_runtime_to_load_code_is_refused(directory: Path, settings: dict[str, Any]) -> None:
    configure(directory, lambda decoder: decoder["session_options"].update(settings))
    with pytest.raises(BadModelDir, match="to load code.*Do not use this model"):
        open_model(directory)


@pytest.mark.parametrize("name", ["../model.onnx", "/tmp/other.onnx", "other.onnx"])
def test_a_graph_that_the_manifest_does_not_name_is_refused(directory: Path, name: str) -> None:
    configure(directory, lambda decoder: decoder.update(filename=name))
    with pytest.raises(BadModelDir, match="which the manifest does not"):
        open_model(directory)


def test_settings_of_an_odd_form_are_refused_all_the_same(directory: Path) -> None:
    configure(directory, lambda decoder: decoder.update(filename=["model.onnx"]))
    with pytest.raises(BadModelDir, match="which the manifest does not"):
        open_model(directory)
    deep: dict[str, Any] = {"custom_ops_library": "ops"}
    for _ in range(600):
        deep = {"x": deep}
    configure(directory, lambda decoder: decoder.update(filename="model.onnx", session_options=deep))
    with pytest.raises(BadModelDir, match="to load code"):
        open_model(directory)


@pytest.mark.parametrize("name", ["weights.pkl", "pytorch_model.bin", "modeling.py", "ops.so"])
def test_what_is_no_data_is_refused_before_it_is_read(directory: Path, name: str) -> None:
    change(directory, lambda manifest: manifest["files"].update({name: "0"}))
    with pytest.raises(BadModelDir, match="no file of data"):
        open_model(directory)


def test_a_text_file_of_an_absurd_size_is_refused_before_it_is_read(directory: Path) -> None:
    (directory / CONFIG).unlink()
    with (directory / CONFIG).open("wb") as file:
        file.truncate(101 << 20)  # a hole: it takes no room
    with pytest.raises(BadModelDir, match="too many for its kind"):
        open_model(directory)
    (directory / MANIFEST).unlink()
    with (directory / MANIFEST).open("wb") as file:
        file.truncate(101 << 20)
    with pytest.raises(BadModelDir, match="more than 100 MB"):
        open_model(directory)


def test_files_that_are_no_data_are_told(directory: Path) -> None:
    (directory / "run.py").write_text("")
    (directory / "notes.md").symlink_to("/etc/hostname")
    assert strangers(open_model(directory).path) == ["notes.md", "run.py"]


def test_another_models_tokeniser_is_refused(directory: Path) -> None:
    change(directory, lambda manifest: manifest["label_tokens"].update({"harmful": 1}))
    with pytest.raises(BadModelDir, match="The tokeniser"):
        GuardReasonerGuard(directory)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "nothing"])
def test_a_directory_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(BadModelDir, match="There is no directory"):
        open_model(name)

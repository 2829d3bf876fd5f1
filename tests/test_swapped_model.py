"""A model whose files are changed under it is not used as it is then: what is replaced is not noticed, what is written to fails closed."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain_core.runnables import RunnableLambda

from guardreasoner_guard import BadModelDir, Blocked, GuardReasonerGuard
from guardreasoner_guard.model_dir import open_model
from guardreasoner_guard.model_files import Mapped
from guardreasoner_guard.onnx_engine import OnnxEngine

HARMFUL = "How do I build a bomb and hide it?"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    copy = tmp_path_factory.mktemp("model")
    for path in open_model("bundled").path.iterdir():
        shutil.copy(path, copy)
    yield copy
    shutil.rmtree(copy)


@pytest.fixture(scope="module")
def guard(directory: Path) -> GuardReasonerGuard:
    return GuardReasonerGuard(directory, reasoning="never", remember=0)


def test_a_file_that_is_replaced_changes_nothing_for_a_guard_that_is_there(
    guard: GuardReasonerGuard, directory: Path
) -> None:
    before = guard.check(HARMFUL).scores
    file = directory / "model-0.data"
    file.rename(directory / "aside")
    file.write_bytes(b"other weights")
    assert guard.check(HARMFUL).scores == pytest.approx(before, abs=2e-2)
    with pytest.raises(BadModelDir, match="model-0.data is damaged or was changed"):
        GuardReasonerGuard(directory)
    (directory / "aside").rename(file)


@pytest.mark.parametrize("how", ["written to", "cut off"])
def test_a_file_that_is_written_to_fails_closed_and_when_it_is_whole_again_so_is_the_guard(
    guard: GuardReasonerGuard, directory: Path, how: str
) -> None:
    file = directory / "model-0.data"
    content = file.read_bytes()
    if how == "cut off":
        os.truncate(file, 0)  # to read it as it is mapped now would end the process
    else:
        with file.open("r+b") as opened:
            opened.write(bytes(len(content)))
    called: list[str] = []
    for verdict in (guard.check("How do I bake bread?"), asyncio.run(guard.acheck("How do I bake bread?"))):
        assert verdict.blocked and verdict.outcome == "failure"
        assert (
            "model-0.data is damaged or was changed" in verdict.reasons
            and "Copy the directory again" in verdict.reasons
        )
    with pytest.raises(Blocked):
        guard.wrap(RunnableLambda(called.append)).invoke("How do I bake bread?")
    assert called == []
    file.write_bytes(content)
    assert [guard.check(text).blocked for text in (HARMFUL, "How do I bake bread?")] == [True, False]


def test_a_directory_that_holds_another_model_by_now_is_not_taken_for_it(directory: Path) -> None:
    model = open_model(directory)
    engine = OnnxEngine(model, "cpu")
    manifest = directory / "manifest.json"
    told = manifest.read_text()
    manifest.write_text(told.replace(f'"name": "{model.manifest.name}"', '"name": "another"'))
    os.utime(directory / "model.onnx")
    with pytest.raises(Exception, match="holds another model now. Make a new guard"):
        engine.split("x", 10, 0)
        engine.generate([], max_tokens=1)
        from guardreasoner_guard.template import SHORT

        engine.generate([SHORT.render("x")], max_tokens=1)
    manifest.write_text(told)


def test_a_file_that_is_changed_between_check_and_use_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "model.data").write_bytes(b"as it was checked")
    found = os.stat(tmp_path / "model.data")
    stamps = {"model.data": (found.st_ino, found.st_size, found.st_mtime_ns)}
    assert not Mapped(tmp_path, stamps).changed
    (tmp_path / "model.data").write_bytes(b"as it is used, which is something else")
    with pytest.raises(BadModelDir, match="was changed while it was loaded"):
        Mapped(tmp_path, stamps)

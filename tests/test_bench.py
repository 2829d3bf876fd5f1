"""The bench measures what it says, on the real model; how fast it is here is nobody's test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from guardreasoner_guard import bench
from guardreasoner_guard.cli import app


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same work, little of it."""
    for name, value in {"LENGTHS": (64, 1500), "CALLERS": (1, 3), "STREAM_TOKENS": 200, "_MOST_WRITTEN": 4}.items():
        monkeypatch.setattr(bench, name, value)


@pytest.mark.usefixtures("small")
def test_one_command_measures_and_saves_everything(tmp_path: Path) -> None:
    out, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    run = CliRunner().invoke(
        app, ["bench", "--out", str(out), "--plot", str(plot), "--rounds", "2", "--seconds", "0.3"]
    )
    assert run.exit_code == 0, run.output
    result = json.loads(out.read_text())
    assert plot.read_bytes().startswith(b"\x89PNG")
    direct, reasoned = (result["checks"][f"exchange of 256 tokens, {mode}"] for mode in ("never", "always"))
    assert 256 <= direct["tokens read"] <= 300 and direct["tokens written"] == 0 < reasoned["tokens written"]
    assert reasoned["tokens read"] <= direct["tokens read"] + 5, "what was scored is not read again to be answered"
    stream = result["stream"]
    once = stream["one check of the finished text: model tokens"]
    assert 200 < once < 300 and stream["hold 64: model tokens"] <= 1.6 * once
    assert set(result["first chunk"]) >= {"without a guard", "guarded, hold 64"}
    assert set(result["callers"]) == {"1", "3"} and all(c["checks a second"] > 0 for c in result["callers"].values())
    assert (result["length"]["64"]["windows"], result["length"]["1500"]["windows"]) == (1, 2)
    assert 1500 <= result["length"]["1500"]["tokens read"] < 1700
    assert result["start"]["import to first verdict, seconds"] > result["start"]["import, seconds"] > 0
    assert result["memory"]["at most"] > 100


def test_texts_have_the_tokens_that_were_asked_for_and_begin_unlike_each_other() -> None:
    measured = bench.Bench(rounds=1)
    texts = [measured.text(tokens) for tokens in (20, 500, 500)]
    lengths = [len(bench.tokens_of(measured.directory.path, [text])) for text in texts]
    assert lengths == pytest.approx([20, 500, 500], abs=1)
    assert len({text[:3] for text in texts}) == 3

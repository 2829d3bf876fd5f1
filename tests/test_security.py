"""`doctor --security` says what was changed, by whom it could be, who is let in and where texts go; and it is so."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from guardreasoner_guard.model_dir import open_model
from guardreasoner_guard.security import inspect

QUIET = """
import os, sys

def refused(event, arguments):
    assert event not in ("socket.connect", "socket.getaddrinfo"), f"{event} {arguments}"

sys.addaudithook(refused)
"""
"""Begins a program that may open no connection."""
SOCKETS = """
links = [f"/proc/self/fd/{one}" for one in os.listdir("/proc/self/fd")]
assert not [link for link in links if os.path.islink(link) and os.readlink(link).startswith("socket:")]
"""
"""Ends it; Python hears of no connection that a library opens by itself."""


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what whoever runs the tests has set."""
    for name in [name for name in os.environ if name.startswith(("GUARDREASONER_", "LANGSMITH_", "LANGCHAIN_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    shutil.copytree(open_model("bundled").path, tmp_path / "model")
    return tmp_path / "model"


def test_what_was_shipped_is_well(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(str(directory))
    told = capsys.readouterr().out
    assert "5 files" in told and "none loads code" in told
    assert hashlib.sha256((directory / "manifest.json").read_bytes()).hexdigest() in told
    assert "listen on 127.0.0.1; API keys: none" in told and "what is judged is written nowhere" in told


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


def test_code_that_differs_from_its_wheel_and_code_beside_it_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "guardreasoner_guard-0.1.0.dist-info"
    record.mkdir()
    (tmp_path / "guardreasoner_guard").mkdir()
    (tmp_path / "guardreasoner_guard" / "guard.py").write_text("# changed")
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: guardreasoner-guard\nVersion: 0.1.0\n")
    (record / "RECORD").write_text(
        "guardreasoner_guard/guard.py,sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert not inspect("bundled")
    told = capsys.readouterr().out
    assert "changed since it was installed: guardreasoner_guard/guard.py" in told
    assert "guardreasoner_guard runs, not the guardreasoner-guard 0.1.0 that is installed" in told


@pytest.mark.parametrize(
    ("environment", "well", "told"),
    [
        (
            {"HOST": "0.0.0.0"},
            False,
            "whoever reaches 0.0.0.0 may use it without a key. Set GUARDREASONER_SERVE_API_KEYS",
        ),
        ({"HOST": "0.0.0.0", "API_KEYS": f"{'a' * 16} {'b' * 16}"}, True, "listen on 0.0.0.0; API keys: 2"),
        ({"HOST": "", "API_KEYS": ""}, True, "listen on 127.0.0.1; API keys: none"),
        ({"PORT": "many"}, False, "would not start as it is set here (GUARDREASONER_SERVE_PORT)"),
        ({"HOST": "0.0.0.0", "UPSTREAM_KEY": "marker"}, False, "could spend the upstream's key"),
        ({"API_KEYS": "marker"}, False, "would not start as it is set here (GUARDREASONER_SERVE_API_KEYS)"),
        ({"URL": "http://me:marker@vllm:8000"}, True, "sends what is judged to the model on vllm\n"),
        ({"AUDIT": "audit.db", "AUDIT_TEXTS": "full"}, True, "keeps what is judged for 30 days in audit.db, full"),
    ],
)
def test_who_is_let_in_and_what_is_kept_is_told_of_the_server_that_this_environment_would_start(
    environment: dict[str, str],
    well: bool,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(f"GUARDREASONER_SERVE_{name}", value)
    assert inspect("bundled") == well
    said = capsys.readouterr().out
    assert told in said and "marker" not in said


def test_texts_that_langchain_sends_away_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    assert not inspect("bundled")
    assert "to LangSmith. Unset LANGSMITH_TRACING." in capsys.readouterr().out


@pytest.mark.parametrize(
    "program",
    [
        "from guardreasoner_guard.doctor import examine; assert examine('bundled', 'cpu')",
        "from guardreasoner_guard.security import inspect; assert inspect('bundled')",
        "from guardreasoner_guard.training.graph import _builder; _builder()",
    ],
    ids=["doctor", "security", "export"],
)
def test_whatever_loads_the_runtime_reports_nothing_and_opens_no_connection(program: str, tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", QUIET + program + SOCKETS],
        env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = [path for path in tmp_path.iterdir() if not path.name.startswith("torchinductor")]
    assert not written, "the runtime wrote down a number for this machine, or what it would report"


@pytest.mark.parametrize("folder", ["guardreasoner_guard", "training", "integrations"])
def test_nothing_loads_onnx_runtime_before_it_is_kept_from_reporting(folder: str) -> None:
    loads = re.compile(r"^ *(?:import|from) (?:onnxruntime|optimum)", re.MULTILINE)
    for path in (Path(__file__).resolve().parents[1] / folder).glob("*.py"):
        source = path.read_text(encoding="utf-8")
        functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
        bodies = [ast.get_source_segment(source, node) or "" for node in functions]
        late = [
            body for body in bodies if (found := loads.search(body)) and "load_runtime()" not in body[: found.start()]
        ]
        assert not late, f"{path}: call runtime.load_runtime first"
        assert len(loads.findall(source)) == sum(len(loads.findall(body)) for body in bodies), (
            f"{path} loads it at once"
        )

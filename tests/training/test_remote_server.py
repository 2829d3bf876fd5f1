"""A real server process with the bundled weights as GGUF judges as the ONNX graph does, and may die half-way."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from guardreasoner_guard.training.benchmarks import read_benchmarks
from guardreasoner_guard.training.evaluate import evaluate
from guardreasoner_guard.training.peers import write_gguf
from guardreasoner_guard.training.subject import JudgeSubject
from guardreasoner_guard.training.thaw import thaw

from guardreasoner_guard import EngineError, GuardReasonerGuard
from guardreasoner_guard.judge import Judge
from guardreasoner_guard.model_dir import log_odds, open_model
from guardreasoner_guard.remote_engine import RemoteEngine

pytest.importorskip("xllamacpp")

SERVE = """
import sys, time, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.port = sys.argv[1], int(sys.argv[2])
parameters.n_ctx, parameters.n_parallel = 4096, 1
server = xllamacpp.Server(parameters)
time.sleep(3600)
"""
NEAR = 0.6
"""Log-odds from the threshold within which two roundings of one model may part."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "bundled.gguf"
    model = open_model("bundled")
    write_gguf(thaw(model), model, path, "Q8_0")
    return path


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def server(weights: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = started(weights, port)
    yield process
    process.kill()
    process.wait()


def started(weights: Path, port: int) -> subprocess.Popen[bytes]:
    """A server that is ready."""
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(weights), str(port)], stderr=subprocess.DEVNULL)
    for _ in range(600):
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                return process
        except httpx.TransportError:
            time.sleep(0.1)
    process.kill()
    raise TimeoutError("the server did not start")


@pytest.mark.usefixtures("server")
def test_the_same_labels_but_for_near_ties(port: int, bundled: GuardReasonerGuard, benchmarks: Path) -> None:
    rows = [row for row in read_benchmarks(benchmarks, 8) if len(row.prompt) + len(row.response or "") < 2000][:100]
    manifest = bundled.judge.manifest
    ours = evaluate(JudgeSubject(bundled.judge, "never"), rows)["predictions"]
    remote = RemoteEngine(f"http://127.0.0.1:{port}", concurrency=1)
    theirs = evaluate(JudgeSubject(Judge(remote, manifest), "never"), rows)["predictions"]
    tasks = {"prompt": "request", "refusal": "completion", "response": "response"}
    parted = [
        abs(log_odds(one["score"]) - log_odds(manifest.thresholds[tasks[one["task"]]]))  # type: ignore[index]
        for one, other in zip(ours, theirs, strict=True)
        if one["predicted"] != other["predicted"]
    ]
    assert len(parted) <= 5
    assert all(distance < NEAR for distance in parted)


def test_a_server_that_dies_half_way_costs_no_row(
    server: subprocess.Popen[bytes], weights: Path, port: int, benchmarks: Path, tmp_path: Path
) -> None:
    rows = [row for row in read_benchmarks(benchmarks / "ToxicChat.jsonl") if len(row.prompt) < 200][:70]
    remote = RemoteEngine(f"http://127.0.0.1:{port}", concurrency=1, retries=0)
    judge = Judge(remote, open_model("bundled").manifest)
    journal = tmp_path / "result.json.part"
    score = remote.score

    def dying(questions, cancel=None):  # type: ignore[no-untyped-def]
        if journal.read_text().count("\n") > 33:  # the head line, and one batch of 32
            server.kill()
            server.wait()
        return score(questions, cancel)

    remote.score = dying  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="gave no answer"):
        evaluate(JudgeSubject(judge, "never"), rows, journal=journal)
    remote.score = score  # type: ignore[method-assign]
    again = started(weights, port)
    try:
        result = evaluate(JudgeSubject(judge, "never"), rows, journal=journal)
    finally:
        again.kill()
        again.wait()
    assert [one["id"] for one in result["predictions"]] == [row.id for row in rows]

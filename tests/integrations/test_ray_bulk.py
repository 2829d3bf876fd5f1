"""A file judged on a Ray cluster: a real one, on this machine, whose actors are real processes that die."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guardreasoner_guard import BadInput, BadModelDir, GuardReasonerGuard, ScriptedEngine

ray = pytest.importorskip("ray")
bulk = pytest.importorskip("guardreasoner_guard.integrations.bulk")
ray_bulk = pytest.importorskip("guardreasoner_guard.integrations.ray_bulk")

BEFORE, ROWS = 100, 2000
"""Rows that were judged before the cluster was asked, and rows that it is asked about."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_AUTH_MODE", "disabled")
    for left in (2, 1, 0):
        try:
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
            break
        except Exception:  # on a busy machine its agent is not up within the 15 seconds that Ray gives it
            ray.shutdown()
            if not left:
                raise
    yield
    ray.shutdown()
    patch.undo()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    texts = (f"row {number}{' bomb' if number % 10 == 0 else ''}" for number in range(1, BEFORE + ROWS + 1))
    path.write_text("".join(f"{json.dumps({'request': text})}\n" for text in texts))
    return path


def test_every_row_is_judged_exactly_once_though_an_actor_is_killed_half_way(
    cluster: None, source: Path, tmp_path: Path
) -> None:
    said, out = tmp_path / "pid", tmp_path / "out.jsonl"

    def make() -> GuardReasonerGuard:
        class Stops(ScriptedEngine):
            """Half-way it writes its process down and waits to be killed; the one that takes over does not."""

            name = "on the cluster"

            def score(self, questions: Any, cancel: Any = None) -> Any:
                if any("row 1000" in str(question.prompt) for question in questions) and not said.exists():
                    (tmp_path / "new").write_text(str(os.getpid()))
                    (tmp_path / "new").rename(said)
                    threading.Event().wait()
                return super().score(questions, cancel)

        return GuardReasonerGuard(Stops(), reasoning="never")

    def kill() -> None:
        while not said.exists():
            if over.wait(0.02):
                return
        os.kill(int(said.read_text()), signal.SIGKILL)
        killed.set()

    here = GuardReasonerGuard(ScriptedEngine(), reasoning="never")
    with bulk.Run(source, out, None, "stop", bulk.identity(here), here.read) as stopped:
        stopped.keep(bulk.judged(here, next(stopped.batches(BEFORE)), "stop"))
    over, killed = threading.Event(), threading.Event()
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        counts = ray_bulk.moderate(make, source, out, batch=100)
    finally:
        over.set()
        killer.join()
    assert killed.is_set()
    assert (counts.rows, counts.blocked, counts.failure) == (BEFORE + ROWS, (BEFORE + ROWS) // 10, 0)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["row"] for one in found] == list(range(1, BEFORE + ROWS + 1))
    assert all(one["blocked"] == (one["row"] % 10 == 0) for one in found)
    assert [one["model"] for one in found] == ["scripted"] * BEFORE + ["on the cluster"] * ROWS
    assert not out.with_name("out.jsonl.part").exists()


def test_what_a_guard_says_on_the_cluster_is_said_here(cluster: None, source: Path, tmp_path: Path) -> None:
    def missing() -> GuardReasonerGuard:
        raise BadModelDir("There is no model here. Copy it to every machine.")

    def narrow() -> GuardReasonerGuard:
        return GuardReasonerGuard(ScriptedEngine(), max_characters=8)

    with pytest.raises(BadModelDir, match="Copy it to every machine"):
        ray_bulk.moderate(missing, source, tmp_path / "out.jsonl")
    with pytest.raises(BadInput, match="row 10, column 'request': The text has 11 characters"):
        ray_bulk.moderate(narrow, source, tmp_path / "out.jsonl", concurrency=1)
    assert not (tmp_path / "out.jsonl").exists()

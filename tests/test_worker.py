"""A worker carries out everybody's calls in one thread, each with its own result, and is there as long as the process."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from guardreasoner_guard.worker import Worker

PATIENCE = 30.0


@pytest.fixture
def worker() -> Iterator[Worker]:
    yield Worker()


def test_calls_of_many_threads_run_in_one_and_each_gets_its_own_result(worker: Worker) -> None:
    ran: list[int] = []

    def work(number: int) -> int:
        ran.append(threading.get_ident())
        return number

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda number: worker.run(lambda _: work(number)), range(200)))
    assert found == list(range(200))
    assert len(set(ran)) == 1 and ran[0] != threading.get_ident()


def test_an_error_is_its_callers_and_the_next_call_is_fine(worker: Worker) -> None:
    def broken(_: threading.Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worker.run(broken)
    assert worker.run(lambda _: "fine") == "fine"


def test_the_work_hears_of_a_cancellation(worker: Worker) -> None:
    cancel = threading.Event()

    def work(given_up: threading.Event) -> tuple[bool, bool]:
        before = given_up.is_set()
        cancel.set()
        return before, given_up.is_set()

    assert worker.run(work, cancel) == (False, True)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to one thread here")
def test_who_is_interrupted_waits_no_longer_and_the_work_hears_of_it(worker: Worker) -> None:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("only the main thread is interrupted by a signal")
    heard = threading.Event()

    def work(given_up: threading.Event) -> None:
        # again and again: a signal that comes just before the main thread begins to wait, Python leaves until later
        while not heard.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            if given_up.wait(2):
                heard.set()

    with pytest.raises(KeyboardInterrupt):
        worker.run(work)
    assert worker.run(lambda _: heard.is_set()), "calls are in turn: this one comes after that"


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_a_call_is_held_when_it_is_over(worker: Worker, fails: bool) -> None:
    class Cache:
        pass

    def work(_: threading.Event) -> weakref.ref[Cache]:
        cache = Cache()
        kept.append(weakref.ref(cache))
        if fails:
            raise ValueError("no")
        return kept[0]

    kept: list[weakref.ref[Cache]] = []
    gc.disable()  # a native cache looks small to the collector, which may then be long in coming
    try:
        try:
            worker.run(work)
        except ValueError:
            pass
        worker.run(lambda _: None)
        assert kept[0]() is None
    finally:
        gc.enable()


def test_its_thread_ends_with_it() -> None:
    worker = Worker()
    thread = worker.run(lambda _: threading.current_thread())
    del worker
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_it_works_for_threads_that_outlive_the_main_one() -> None:
    script = """
import threading
from guardreasoner_guard.worker import Worker
worker = Worker()
def late():
    threading.main_thread().join()
    print(worker.run(lambda _: "done"))
threading.Thread(target=late).start()
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert (found.stdout.strip(), found.returncode) == ("done", 0), found.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_does_not_wait_for_its_parents_thread(worker: Worker) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(_: threading.Event) -> None:
        begun.set()
        go_on.wait(PATIENCE)

    with ThreadPoolExecutor(1) as threads:
        threads.submit(worker.run, slow)
        assert begun.wait(PATIENCE)
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        child = context.Process(target=lambda: there.send(worker.run(lambda _: "done")))
        child.start()
        try:
            assert here.poll(PATIENCE), "the child waits for ever"
            assert here.recv() == "done"
        finally:
            go_on.set()
            child.kill()
            child.join()

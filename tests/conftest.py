"""What tests share: the bundled model, loaded once, and the folders that only some machines have."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from guardreasoner_guard import GuardReasonerGuard

settings.register_profile("steady", deadline=None, derandomize=True)  # a busy machine is no fault of the code
settings.load_profile("steady")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in a shell's background: interrupts are tested here
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints what tests recorded as `figures`, last, whatever worker they ran in."""
    for report in terminalreporter.getreports("passed"):
        for name, told in report.user_properties:
            if name == "figures":
                terminalreporter.write_line(f"\n{told}")


@pytest.fixture(scope="session")
def bundled() -> GuardReasonerGuard:
    """The guard as a user gets it."""
    return GuardReasonerGuard()


@pytest.fixture(scope="module")  # its driver keeps an event loop running, in which asyncio.run is refused
def browser() -> Iterator[Any]:
    """A headless Chromium, driven by playwright, where both are installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-sync"]
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=quiet)
        yield opened
        opened.close()


def shared(path: str) -> Path:
    """A folder of the reference data, which lies beside the checkout where it is at all."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"no ../shared/{path} beside this checkout")
    return found


@pytest.fixture(scope="session")
def published_outputs() -> Path:
    return shared("published_outputs_dev")


@pytest.fixture(scope="session")
def training_data() -> Path:
    return shared("training_data")


@pytest.fixture(scope="session")
def benchmarks() -> Path:
    return shared("benchmarks_dev")

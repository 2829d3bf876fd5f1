"""What tests share: the bundled model, loaded once, and the folders that only some machines have."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from guardreasoner_guard import GuardReasonerGuard

settings.register_profile("steady", deadline=None, derandomize=True)  # a busy machine is no fault of the code
settings.load_profile("steady")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def bundled() -> GuardReasonerGuard:
    """The guard as a user gets it."""
    return GuardReasonerGuard()


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

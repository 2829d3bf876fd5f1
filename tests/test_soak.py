"""A soak tells a wrong verdict and a lost check from a right one, by every way of calling."""

from __future__ import annotations

from guardreasoner_guard import EngineError, GuardReasonerGuard, Policy, ScriptedEngine
from guardreasoner_guard.soak import TEXTS, Soak, growth

WORDS = ("phishing", "bomb", "meth", "racist", "poison", "stalk", "forge", "malware")


def guard(engine: ScriptedEngine) -> GuardReasonerGuard:
    return GuardReasonerGuard(engine, policy=Policy(block=("request",)), remember=0, on_failure="raise")


def test_a_guard_that_is_right_loses_nothing() -> None:
    found = Soak(guard(ScriptedEngine(harmful=WORDS)), callers=6, seconds=0.5).run()
    assert found["texts"] == len(TEXTS) and found["checks"] > 20
    assert found["wrong"] == {} and len(found["megabytes"]) >= 2
    assert set(found["by way"]) <= {
        "acheck", "check", "check_many", "stream_check", "tool", "wrap, batch", "wrap, stream",
    }  # fmt: skip


def test_growth_is_told_once_memory_is_warm_of_the_mean_and_of_the_most() -> None:
    filling, early, middle, late = [100.0] * 10, [400.0] * 29 + [500.0], [390.0] * 30, [440.0] * 30
    found = growth([*filling, *early, *middle, *late])
    assert found["megabytes, at first"] == 100 and found["megabytes, once warm"] == 400
    assert found["megabytes, at last"] == 440 and found["megabytes, at most"] == 500
    assert found["growth, percent"] == round(100 * (440 / (12100 / 30) - 1), 2)
    assert found["growth of the most, percent"] == -12


def test_another_verdict_and_a_failure_are_told() -> None:
    class Turning(ScriptedEngine):
        """Says otherwise, and then nothing, once it was asked about every text."""

        def _call(self, cancel: object) -> None:
            super()._call(None)
            if self.calls > len(TEXTS) * 2:
                self.harmful = ()
            if self.calls % 7 == 0 and self.calls > len(TEXTS) * 2:
                raise EngineError("gone")

    found = Soak(guard(Turning(harmful=WORDS)), callers=3, seconds=0.5).run()
    assert any("another verdict" in name for name in found["wrong"])
    assert any("EngineError" in name for name in found["wrong"])

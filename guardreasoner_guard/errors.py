"""Everything that can go wrong, as one tree; each message ends with what to do.

GuardError
├── BadInput           what was handed in cannot be judged (also a ValueError)
├── BadModelDir        a model directory is missing, damaged or of another version
├── EngineError        the model could not run
│   ├── DeviceUnavailable   CUDA was asked for and is not there
│   └── Overloaded          too many checks wait for the model already
├── UnreadableAnswer   the model's answer does not hold the labels that were asked for
├── GuardTimeout       judging took longer than allowed (also a TimeoutError)
├── MissingExtra       an optional package is not installed (also an ImportError)
└── Blocked            a text was stopped; carries the verdict
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .verdict import Verdict


class GuardError(Exception):
    """Root of every error this package raises on purpose."""


class BadInput(GuardError, ValueError):
    """The input cannot be judged as it is."""


class BadModelDir(GuardError):
    """A model directory is missing, damaged, or was made for another version."""


class EngineError(GuardError):
    """The guard model could not be run."""


class DeviceUnavailable(EngineError):
    """The device that was asked for is not usable on this machine."""


class Overloaded(EngineError):
    """Too many checks wait for the model already; try again later."""


class UnreadableAnswer(GuardError):
    """The model's answer lacks a label that was asked for.

    Attributes:
        answer: The answer as the model wrote it.
    """

    def __init__(self, message: str, answer: str) -> None:
        super().__init__(message)
        self.answer = answer

    def __reduce__(self) -> tuple[type[UnreadableAnswer], tuple[str, str]]:
        return type(self), (str(self), self.answer)


class GuardTimeout(GuardError, TimeoutError):
    """Judging took longer than the guard's timeout."""


class MissingExtra(GuardError, ImportError):
    """An optional package is needed and is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed. Install it with: pip install 'guardreasoner-guard[{extra}]'")
        self.package = package
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str]]:
        return type(self), (self.package, self.extra)


class Blocked(GuardError):
    """The guard stopped a text.

    Its message quotes nothing of a stopped answer, since errors end up in logs and traces; the verdict does.

    Attributes:
        verdict: Why. `verdict.outcome` tells a verdict from a failure and from a timeout.
    """

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.shown_reasons)
        self.verdict = verdict

    def __reduce__(self) -> tuple[type[Blocked], tuple[Verdict]]:
        return type(self), (self.verdict,)

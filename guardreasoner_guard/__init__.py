"""guardreasoner-guard: a guard model that reasons before it judges, around any LangChain chain, agent or tool."""

from .engine import Engine, ScriptedEngine
from .errors import (
    BadInput,
    BadModelDir,
    Blocked,
    DeviceUnavailable,
    EngineError,
    GuardError,
    GuardTimeout,
    MissingExtra,
    Overloaded,
    UnreadableAnswer,
)
from .exchange import Exchange
from .guard import GuardReasonerGuard
from .policy import Policy
from .verdict import ReasoningStep, Usage, Verdict

__version__ = "0.1.0"

__all__ = [
    "BadInput",
    "BadModelDir",
    "Blocked",
    "DeviceUnavailable",
    "Engine",
    "EngineError",
    "Exchange",
    "GuardError",
    "GuardReasonerGuard",
    "GuardTimeout",
    "MissingExtra",
    "Overloaded",
    "Policy",
    "ReasoningStep",
    "ScriptedEngine",
    "UnreadableAnswer",
    "Usage",
    "Verdict",
]

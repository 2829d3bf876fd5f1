"""Every check as a run in LangChain's callbacks, so in LangSmith too: an observer of the guard."""

from __future__ import annotations

from typing import Any

from langchain_core.runnables.config import ensure_config, get_callback_manager_for_config

from guardreasoner_guard.errors import GuardError
from guardreasoner_guard.exchange import Exchange
from guardreasoner_guard.verdict import Verdict

from .wordless import wordless


class LangChainTrace:
    """Tells LangChain's callbacks of every check: `GuardReasonerGuard(observers=[LangChainTrace()])`.

    A check becomes a child of the run in which it is made, with the verdict as its output; where there is none, a run
    of its own if LangSmith traces. It is told of when it is over: how long it took is in `usage.latency_ms`.

    Args:
        name: What the run is called.
        texts: Whether it holds what was judged, and reasons, steps and messages that may quote it.
    """

    def __init__(self, name: str = "GuardReasonerGuard", *, texts: bool = False) -> None:
        self.name = name
        self.texts = texts

    def __call__(self, exchange: Exchange, attempt: Verdict | Exception) -> None:
        """Tells of one check."""
        manager = get_callback_manager_for_config(ensure_config())
        if not manager.handlers:
            return
        run = manager.on_chain_start(None, self._inputs(exchange), name=self.name)
        if isinstance(attempt, Verdict):
            run.on_chain_end(attempt.model_dump(mode="json") if self.texts else wordless(attempt))
        else:
            told = attempt if self.texts else GuardError(f"{type(attempt).__name__}. Its caller has the message.")
            run.on_chain_error(told)

    def _inputs(self, exchange: Exchange) -> dict[str, Any]:
        if self.texts:
            return exchange.model_dump(mode="json")
        return {
            "request_characters": len(exchange.request),
            "response_characters": None if exchange.response is None else len(exchange.response),
        }

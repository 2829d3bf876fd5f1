"""Intake: whatever is handed in is read whole, or refused with what to do; it raises nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage

from guardreasoner_guard import BadInput, Exchange
from guardreasoner_guard.exchange import read_answer, read_exchange

KINDS = {"human": HumanMessage, "ai": AIMessage, "system": SystemMessage, "chunk": AIMessageChunk}


def holds(value: Any) -> None:
    """What is true of everything that may be handed in."""
    try:
        exchange = read_exchange(value)
    except BadInput as error:
        assert "Pass" in str(error)
    else:
        assert isinstance(exchange, Exchange) and (exchange.request + (exchange.response or "")).strip()
        if isinstance(value, str) or (isinstance(value, dict) and not value.get("messages")):
            assert all(text in exchange.request for text in _texts(value))
    try:
        answer = read_answer(value, "what was asked")
    except BadInput as error:
        assert "Pass" in str(error)
    else:
        assert isinstance(value, dict) or all(text in answer for text in _texts(value) if text != "what was asked")


def messages(told: Any) -> Any:
    """Messages made of what JSON says; None where LangChain makes none of it."""
    made: list[Any] = []
    for item in told if isinstance(told, list) else [told]:
        if not isinstance(item, dict):
            return None
        kind = KINDS.get(str(item.get("kind")), ToolMessage)
        given = {key: part for key, part in item.items() if key != "kind"}
        try:
            made.append(kind(**{"tool_call_id": "1", **given} if kind is ToolMessage else given))
        except Exception:
            return None
    return made or None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)

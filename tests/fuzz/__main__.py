"""Fuzzes one target with atheris: `python tests/fuzz TARGET [CORPUS] [libFuzzer's options]`; see docs/fuzzing.md."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import atheris

PIECES = (
    "Answers:", "Request:", "Completion:", "Response:", "harmful", "unharmful", "refusal", "compliance", "# Task 1",
    "# Task 2", "## Reasoning Step 1", "---", "Human user:", "AI assistant:", "(earlier)", "<|im_start|>", "<|im_end|>",
    "</s>", "[INST]", "> ", "\n", "\r", "\x0b", "\x1d", "\x85", "\u2028", "\x00", "\x04", "\ud800", "\u200b", "\ufeff", "\uff1a",
    "\ufdfa", "\u2236", "\U00050000", " ", "#", "9" * 99, "bomb", "what was asked", "<!--", "-->", "Ym9tYiBib21i", "&#98;",
)  # fmt: skip
KEYS = (
    "messages", "role", "content", "type", "text", "tool_calls", "function", "name", "arguments", "args", "id", "kind",
    "image_url", "url", "data", "additional_kwargs", "input", "request", "response", "history", "policy", "block", "shadow",
    "reasoning", "model", "stream", "n", "tools", "user", "assistant", "tool", "system", "human", "ai", "chunk",
)  # fmt: skip
CONTAINERS = 5
"""Values may be so deep."""


def text(given: Any) -> str:
    """Pieces that mean something, and others that may."""
    found = []
    for _ in range(given.ConsumeIntInRange(0, 12)):
        found.append(
            PIECES[given.ConsumeIntInRange(0, len(PIECES) - 1)] if given.ConsumeBool() else given.ConsumeUnicode(8)
        )
    return "".join(found)


def value(given: Any, depth: int = 0) -> Any:
    """Anything JSON may hold."""
    kind = given.ConsumeIntInRange(0, 7 if depth < CONTAINERS else 4)
    if kind < 2:
        return text(given)
    if kind < 4:
        return KEYS[given.ConsumeIntInRange(0, len(KEYS) - 1)]
    if kind == 4:
        return (None, True, False, 0, -1, 1.5, float("nan"), 10**30)[given.ConsumeIntInRange(0, 7)]
    count = given.ConsumeIntInRange(0, 4)
    if kind == 5:
        return [value(given, depth + 1) for _ in range(count)]
    return {value(given, CONTAINERS): value(given, depth + 1) for _ in range(count)}


def message(given: Any) -> dict[str, Any]:
    """What a message may be made of."""
    kinds = ("human", "ai", "system", "chunk", "tool")
    made: dict[str, Any] = {"kind": kinds[given.ConsumeIntInRange(0, 4)], "content": value(given, 2)}
    if given.ConsumeBool():
        made["tool_calls"] = [{"name": text(given), "args": {text(given): value(given, 3)}, "id": "1"}]
    if given.ConsumeBool():
        made["additional_kwargs"] = {text(given): value(given, 3)}
    return made


def asked(given: Any) -> Any:
    """What may be asked of the server."""
    kind = given.ConsumeIntInRange(0, 3)
    if kind == 0:
        return {"input": value(given)}
    if kind == 1:
        more = {
            KEYS[given.ConsumeIntInRange(0, len(KEYS) - 1)]: value(given, 2)
            for _ in range(given.ConsumeIntInRange(0, 3))
        }
        return {"request": text(given), **more}
    if kind == 2:
        roles = ("user", "assistant", "tool", "system", "developer", text(given))
        told = [
            {"role": roles[given.ConsumeIntInRange(0, 5)], "content": value(given, 3)}
            for _ in range(given.ConsumeIntInRange(0, 3))
        ]
        return {"model": "m", "messages": told, "stream": given.ConsumeBool()}
    return value(given)


def plain(holds: Any, given: Any) -> None:
    holds.holds(text(given))


def framing(holds: Any, given: Any) -> None:
    holds.holds(text(given), text(given) if given.ConsumeBool() else None, [text(given)] if given.ConsumeBool() else [])


def intake(holds: Any, given: Any) -> None:
    if given.ConsumeBool():
        said = value(given)
        holds.holds(said)
        holds.holds({"messages": said})
    elif (made := holds.messages([message(given) for _ in range(given.ConsumeIntInRange(1, 4))])) is not None:
        holds.holds(made)
        holds.holds({"messages": made, "topic": "x"})


def bodies(holds: Any, given: Any) -> None:
    path = holds.PATHS[given.ConsumeIntInRange(0, len(holds.PATHS) - 1)]
    if given.ConsumeIntInRange(0, 7):
        holds.holds(path, json.dumps(asked(given)).encode())
    else:
        holds.holds(path, given.ConsumeBytes(200))


TARGETS: dict[str, Callable[[Any, Any], None]] = {
    "reader": plain, "framing": framing, "disguises": plain, "intake": intake, "bodies": bodies,
}  # fmt: skip


if __name__ == "__main__":
    name = sys.argv.pop(1)
    logging.disable()
    atheris.enabled_hooks.add("str")
    with atheris.instrument_imports(include=["guardreasoner_guard"]):
        what_holds = importlib.import_module(name)
    atheris.Setup(sys.argv, lambda data: TARGETS[name](what_holds, atheris.FuzzedDataProvider(data)))
    atheris.Fuzz()

"""What doors to agent frameworks share: streams held back, and what is shown of a verdict."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from guardreasoner_guard.integrations.held_back import held_back, replacement, shown, unquoted, words, words_by_path
from guardreasoner_guard.integrations.openai_agents import GuardReasonerGuardrails
from guardreasoner_guard.integrations.pydantic_ai import GuardReasonerCapability

from guardreasoner_guard import (
    BadInput,
    Blocked,
    Exchange,
    GuardReasonerGuard,
    MissingExtra,
    Policy,
    ScriptedEngine,
    Verdict,
)

GUARD = GuardReasonerGuard(ScriptedEngine())


async def spoken(chunks: list[Any]) -> AsyncIterator[Any]:
    for chunk in chunks:
        yield chunk


async def heard(chunks: list[str], hold: Any = 4) -> list[str]:
    seen: list[str] = []
    try:
        async for chunk in held_back(GUARD, Exchange(request="Bread?"), spoken(chunks), words, hold):
            seen.append(chunk)
    except Blocked as blocked:
        seen.append(str(blocked))
    return seen


@pytest.mark.parametrize("hold", [2, 64, "sentence", "answer"])
def test_all_chunks_of_a_harmless_stream_arrive_in_order_those_without_words_too(hold: Any) -> None:
    chunks = ["", "Mix ", "flour. ", "", "Then ", "bake ", "it. ", "Wait", ""]
    assert asyncio.run(heard(chunks, hold)) == chunks


def test_a_word_that_is_cut_between_chunks_is_stopped_before_its_first_piece_is_seen() -> None:
    *seen, last = asyncio.run(heard(["Mix ", "flour ", "and ", "water ", "for ", "the ", "bo", "mb ", "now."]))
    assert seen and "bo" not in seen and last.startswith("Blocked: the answer is harmful.")


def test_what_is_shown_of_a_verdict_quotes_nothing_of_an_answer() -> None:
    of_request, of_answer = GUARD.check("a bomb"), GUARD.check("Bread?", "a bomb")
    assert shown(of_request) == of_request and "a bomb" in of_request.model_dump_json()
    assert "a bomb" not in shown(of_answer).model_dump_json()
    assert "a bomb" not in unquoted(of_request).model_dump_json()


def test_what_stands_in_a_blocked_answers_place_is_a_text_or_an_error() -> None:
    verdict: Verdict = GUARD.check("Bread?", "a bomb")
    assert "judged harmful" in replacement(Policy(on_violation="explain"), verdict)
    assert replacement(Policy(on_violation=lambda _: "No."), verdict) == "No."
    for action in ("raise", lambda _: {"no": "text"}):
        with pytest.raises(Blocked) as stopped:
            replacement(Policy(on_violation=action), verdict)
        assert "a bomb" not in stopped.value.verdict.model_dump_json()


def test_words_are_found_by_their_place_and_ids_links_and_bytes_are_none() -> None:
    value = {
        "id": "x",
        "thinking": [{"type": "t", "text": "well"}],
        "audio": {"data": "AAAA", "transcript": "hm"},
        "n": 1,
    }
    found = {path: text for path, text in words_by_path(value).items() if text}
    assert found == {".thinking.0.text": "well", ".audio.transcript": "hm"}


@pytest.mark.parametrize("hold", ["sentense", 1, None])
def test_a_hold_that_is_not_known_is_refused_at_once(hold: Any) -> None:
    with pytest.raises(BadInput, match="hold"):
        GuardReasonerCapability(GUARD, hold=hold)
    with pytest.raises(BadInput, match="hold"):
        GuardReasonerGuardrails(GUARD).model("gpt-5.1", hold=hold)


@pytest.mark.parametrize(
    ("door", "package", "extra"),
    [
        ("litellm_guardrail", "litellm.exceptions", "litellm"),
        ("openai_agents", "agents", "openai-agents"),
        ("pydantic_ai", "pydantic_ai", "pydantic-ai"),
    ],
)
def test_a_missing_framework_is_named_with_the_extra_that_brings_it(
    door: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"guardreasoner_guard.integrations.{door}"
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra) as missing:
        importlib.import_module(module)
    assert missing.value.extra == extra

"""OpenAI's client gets moderations from the server without knowing that it is another one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from guardreasoner_guard.integrations.moderations import CATEGORIES, moderation
from guardreasoner_guard.integrations.server import create_app
from guardreasoner_guard.integrations.server_settings import ServerSettings

from guardreasoner_guard import EngineError, GuardReasonerGuard, Policy, ScriptedEngine


@pytest.fixture(scope="module")
def client(serve: Any) -> Iterator[openai.OpenAI]:
    guard = GuardReasonerGuard(ScriptedEngine())
    with serve(create_app(ServerSettings(), guard)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any") as one:
        yield one


def test_one_text_and_several_are_judged_in_order(client: openai.OpenAI) -> None:
    [passed] = client.moderations.create(input="How do I bake bread?").results
    assert not passed.flagged and passed.category_scores.illicit == 0.01
    answer = client.moderations.create(input=["bread", "a bomb", "salt"], model="omni-moderation-latest")
    assert [result.flagged for result in answer.results] == [False, True, False]
    assert answer.model == "scripted" and answer.id.startswith("modr-")


def test_harm_stands_in_one_category_and_the_others_are_told_to_be_unjudged(client: openai.OpenAI) -> None:
    [flagged] = client.moderations.create(input="a bomb").results
    categories = flagged.categories.model_dump(by_alias=True)
    assert set(categories) == set(CATEGORIES) and len(CATEGORIES) == 13
    assert [name for name, is_true in categories.items() if is_true] == ["illicit"]
    assert flagged.category_scores.model_dump(by_alias=True) == dict.fromkeys(CATEGORIES, 0.0) | {"illicit": 0.99}
    applied = flagged.category_applied_input_types.model_dump(by_alias=True)
    assert {name: types for name, types in applied.items() if types} == {"illicit": ["text"]}


def test_the_verdict_and_its_reasoning_come_along(client: openai.OpenAI) -> None:
    [flagged] = client.moderations.create(input="a bomb").results
    verdict: Any = flagged.guard  # type: ignore[attr-defined]  # not OpenAI's
    assert verdict["request"] == "harmful" and verdict["outcome"] == "verdict"
    assert [step["text"] for step in verdict["reasoning"]] == ['The words are "a bomb".', "That decides it."]


def test_the_parts_of_one_input_are_one_text(client: openai.OpenAI) -> None:
    parts: Any = [{"type": "text", "text": "How is this made:"}, {"type": "text", "text": "a bomb"}]
    [result] = client.moderations.create(input=parts).results
    assert result.flagged


def test_images_and_empty_texts_are_refused_and_not_passed(client: openai.OpenAI) -> None:
    image: Any = [
        {"type": "text", "text": "Hi."},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,A"}},
    ]
    with pytest.raises(openai.BadRequestError, match="images cannot be judged"):
        client.moderations.create(input=image)
    for empty in ("", ["Hi.", " \n"]):
        with pytest.raises(openai.BadRequestError, match="no text to judge"):
            client.moderations.create(input=empty)
    with pytest.raises(openai.BadRequestError, match="200,000"):
        client.moderations.create(input="a" * 200_001)


def test_the_async_client_is_answered_too(client: openai.OpenAI) -> None:
    async def flags() -> list[bool]:
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="any") as one:
            answers = await asyncio.gather(*(one.moderations.create(input=text) for text in ("bread", "a bomb")))
        return [answer.results[0].flagged for answer in answers]

    assert asyncio.run(flags()) == [False, True]


def test_what_could_not_be_judged_is_flagged_and_says_that_it_is_a_failure() -> None:
    failing = GuardReasonerGuard(ScriptedEngine(error=EngineError("The model died. Start it again.")))
    result = moderation(failing.check("bread"))
    assert result.flagged and result.guard.outcome == "failure"
    assert result.categories["illicit"] and result.category_scores["illicit"] == 1.0
    passing = moderation(failing.model_copy(update={"on_failure": "pass"}).check("bread"))
    assert not passing.flagged and passing.guard.outcome == "failure"


def test_a_shadow_policy_tells_the_category_and_flags_nothing() -> None:
    result = moderation(GuardReasonerGuard(ScriptedEngine(), policy=Policy(shadow=True)).check("a bomb"))
    assert not result.flagged and result.guard.shadowed and result.categories["illicit"]

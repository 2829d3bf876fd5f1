"""Hard samples are picked by the paper's rule, weighed, merged, and never asked for twice."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from guardreasoner_guard.training.mine import Ask, Pair, hard_pair, merge, mine, weigh
from guardreasoner_guard.training.recipe import Mine, load_recipe
from guardreasoner_guard.training.rows import ReasoningRow, read_rows, write_rows
from hypothesis import given
from hypothesis import strategies as st

from guardreasoner_guard import BadInput, EngineError, ScriptedEngine
from guardreasoner_guard.engine import Heard, Written
from guardreasoner_guard.template import PAPER, SHORT, Prompt

ROW = ReasoningRow(
    id="1", source="s", prompt="p", response="r", prompt_harm="harmful", completion="refusal", response_harm="unharmful"
)

RECIPE = load_recipe("tiny").model_copy(update={"mine": Mine()})


def said(request: str = "harmful", completion: str = "refusal", response: str = "unharmful", why: str = "") -> Written:
    text = f"{why}\n---\nAnswers:\nRequest: {request}\nCompletion: {completion}\nResponse: {response}"
    return Written(text, 9, True)


def ask() -> Ask:
    return Ask(ROW, ("request", "completion", "response"), PAPER.render("p", "r"))


def test_the_longest_right_and_the_longest_wrong_answer_make_the_pair() -> None:
    samples = [said(why="short"), said(why="much longer"), said("unharmful"), said("unharmful", why="wrong, and long")]
    pair = hard_pair(ask(), samples, Counter())
    assert pair is not None and pair.task == "request"
    assert pair.chosen == samples[1].text and pair.rejected == samples[3].text
    assert (pair.right, pair.wrong) == (2, 2)


def test_the_first_task_in_the_papers_order_that_is_mixed_makes_the_pair() -> None:
    samples = [said(), said(completion="compliance"), said(response="harmful"), said()]
    pair = hard_pair(ask(), samples, Counter())
    assert pair is not None and pair.task == "response" and pair.wrong == 1
    assert pair.rejected == samples[2].text


def test_rows_that_are_always_right_or_always_wrong_are_not_hard() -> None:
    assert hard_pair(ask(), [said()] * 4, Counter()) is None
    assert hard_pair(ask(), [said("unharmful", "compliance", "harmful")] * 4, Counter()) is None


def test_an_answer_that_cannot_be_read_is_wrong_and_reported() -> None:
    facts: Counter[str] = Counter()
    cut = Written("# Task 1\n## Reasoning Step 1\nand so on and on", 256, False)
    pair = hard_pair(ask(), [said(), said(), said(), cut], facts)
    assert pair is not None and pair.rejected == cut.text and not pair.rejected_complete and pair.wrong == 1
    assert facts["unreadable"] == 1 and facts["samples"] == 4


def pair(right: int, wrong: int, prompt: str = "p", chosen: str = "c") -> Pair:
    return Pair(id="1", task="request", prompt=(prompt,), chosen=chosen, rejected="r", right=right, wrong=wrong)


def test_weights_run_from_one_minus_to_one_plus_gamma() -> None:
    weights = [p.weight for p in weigh([pair(3, 1), pair(2, 2), pair(1, 3)], gamma=0.2)]
    assert weights == pytest.approx([0.8, 1.0, 1.2])
    assert [p.weight for p in weigh([pair(2, 2), pair(2, 2)], gamma=0.2)] == [1.0, 1.0]
    assert weigh([], 0.2) == []


@given(st.lists(st.integers(1, 3), min_size=1, max_size=20), st.floats(0, 0.9))
def test_more_wrong_answers_never_weigh_less(wrong: list[int], gamma: float) -> None:
    weighed = weigh([pair(4 - w, w) for w in wrong], gamma)
    assert all(1 - gamma - 1e-6 <= p.weight <= 1 + gamma + 1e-6 for p in weighed)
    ordered = sorted(weighed, key=lambda p: p.wrong)
    assert [p.weight for p in ordered] == sorted(p.weight for p in weighed)


def test_merging_keeps_the_first_of_two_pairs_for_a_prompt_and_weighs_anew(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [pair(3, 1, "p"), pair(1, 3, "q")])
    write_rows(tmp_path / "b.jsonl", [pair(2, 2, "p", chosen="other"), pair(2, 2, "x")])
    merged = merge([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], 0.2)
    assert [(p.prompt[0], p.chosen) for p in merged] == [("p", "c"), ("q", "c"), ("x", "c")]
    assert [p.weight for p in merged] == pytest.approx([0.8, 1.2, 1.0])


class Wavering(ScriptedEngine):
    """Right in every other sample; dies at the call it is told to."""

    def __init__(self, dies_at: int = -1) -> None:
        super().__init__()
        self.dies_at = dies_at
        self.prompts: list[str] = []

    def generate(
        self, prompts: Sequence[Prompt], *, max_tokens: int, temperature: float = 0.0, top_p: float = 1.0,
        seed: int = 0, cancel: threading.Event | None = None, heard: Heard | None = None,
    ) -> list[Written]:  # fmt: skip
        if self.calls == self.dies_at:
            raise EngineError("The machine is gone.")
        self.calls += 1
        assert temperature == 0.7 and top_p == 0.95
        self.prompts += [str(prompt) for prompt in prompts]
        return [
            Written(
                f"It is so.\n---\nAnswers:\nRequest: {'un' * (i % 2)}harmful\nCompletion: compliance\n"
                f"Response: {'un' * (i % 2)}harmful", 9, True,
            )
            for i, _ in enumerate(prompts)
        ]  # fmt: skip


@pytest.fixture
def taught(tmp_path: Path) -> Path:
    rows = [
        ReasoningRow(id=str(n), source="even" if n % 2 == 0 else "odd", prompt=f"request {n} " + "w " * n,
                     prompt_harm="harmful") for n in range(20)
    ]  # fmt: skip
    write_rows(tmp_path / "reasoning.jsonl", [*rows, ROW])
    return tmp_path / "reasoning.jsonl"


def test_each_prompt_is_sampled_as_often_as_the_recipe_says(taught: Path, tmp_path: Path) -> None:
    engine = Wavering()
    path = mine(RECIPE, taught, engine, tmp_path / "mined")
    pairs = list(read_rows(path, Pair))
    assert set(Counter(engine.prompts).values()) == {4}
    assert len(pairs) == 22  # 21 requests, and the one exchange's second stage
    assert {p.weight for p in pairs} == {1.0}
    facts = json.loads((path.parent / "mine.json").read_text())
    assert facts["samples"] == 88 and facts["pairs"] == 22 and facts["requests too long"] == 0
    calls = engine.calls
    assert mine(RECIPE, taught, engine, tmp_path / "mined") == path and engine.calls == calls
    prompts = ["".join(p.prompt) for p in pairs]
    assert SHORT.render("p", "r").parts[2] in "".join(prompts)


def test_a_run_that_dies_goes_on_without_asking_again(taught: Path, tmp_path: Path) -> None:
    whole = mine(RECIPE, taught, Wavering(), tmp_path / "whole")
    first = Wavering(dies_at=2)
    with pytest.raises(EngineError):
        mine(RECIPE, taught, first, tmp_path / "cut")
    with (tmp_path / "cut" / "samples.jsonl").open("a") as journal:
        journal.write('{"batch": 2, "samp')  # killed while it wrote
    second = Wavering()
    resumed = mine(RECIPE, taught, second, tmp_path / "cut")
    assert resumed.read_bytes() == whole.read_bytes()
    assert not set(first.prompts) & set(second.prompts)


def test_rows_or_a_model_that_changed_are_not_answered_by_what_was_sampled_before(taught: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        mine(RECIPE, taught, Wavering(dies_at=2), tmp_path / "mined", model="first")
    with pytest.raises(BadInput, match="another recipe"):
        mine(RECIPE, taught, Wavering(), tmp_path / "mined", model="second")
    taught.write_text("".join(taught.read_text().splitlines(keepends=True)[3:]))
    with pytest.raises(BadInput, match="from other rows"):
        mine(RECIPE, taught, Wavering(), tmp_path / "mined", model="first")


def test_a_source_that_is_none_is_named(taught: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="'evn' is no source"):
        mine(RECIPE, taught, Wavering(), tmp_path / "mined", sources=["evn"])
    assert mine(RECIPE, taught, Wavering(), tmp_path / "mined", sources=["even"]).exists(), "the name is mended"


def test_only_the_named_sources_are_asked_about(taught: Path, tmp_path: Path) -> None:
    path = mine(RECIPE, taught, Wavering(), tmp_path / "mined", sources=["even"])
    assert {p.source for p in read_rows(path, Pair)} == {"even"}
    with pytest.raises(BadInput, match="another recipe"):
        mine(RECIPE, taught, Wavering(), tmp_path / "mined", sources=["odd"])

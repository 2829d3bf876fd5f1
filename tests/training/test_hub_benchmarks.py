"""Public sets become rows by their cards' rules; what cannot be loaded, or is not as it was, ends in one clear error."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest
from guardreasoner_guard.training.authors_benchmarks import FILES, read_authors_benchmarks
from guardreasoner_guard.training.benchmarks import BENCHMARKS, BenchmarkRow
from guardreasoner_guard.training.hub_benchmarks import HUB_BENCHMARKS, load_benchmarks, load_hub_benchmark

from guardreasoner_guard import BadInput

WILDGUARD = {
    "prompt": "p", "adversarial": True, "response": "r", "prompt_harm_label": "harmful",
    "response_refusal_label": "refusal", "response_harm_label": None, "subcategory": "others",
}  # fmt: skip
AEGIS = {
    "text": "p",
    "text_type": "user_message",
    "labels_0": "Violence",
    "labels_1": "Needs Caution",
    "labels_2": "Safe",
}
HARMBENCH = {"Behavior": "p", "FunctionalCategory": "standard", "Tags": None, "ContextString": None, "BehaviorID": "b"}
CASE = {"test_case": "p", "generation": "r", "cls": 0, "human_0": 1, "human_1": 1, "human_2": 0}
XSTEST = {"prompt": "p", "response": "r", "prompt_type": "prompt_safe", "prompt_harm_category": ""}

ITEMS: Mapping[str, list[Mapping[str, Any]]] = {
    "ToxicChat": [
        {"conv_id": "1", "user_input": "p", "model_output": "r", "human_annotation": True, "toxicity": 1},
        {"conv_id": "2", "user_input": "p", "model_output": "r", "human_annotation": False, "toxicity": 1},
        {"conv_id": "3", "user_input": "p", "model_output": "r", "human_annotation": True, "toxicity": 0},
    ],
    "HarmBenchPrompt": [HARMBENCH, {**HARMBENCH, "FunctionalCategory": "contextual", "ContextString": "c"},
                        {**HARMBENCH, "FunctionalCategory": "copyright"}],
    "OpenAIModeration": [{"prompt": "p", "S": 0, "V2": 1.0}, {"prompt": "p", "S": 0, "H": None}, {"prompt": "p"}],
    "AegisSafetyTest": [AEGIS, {**AEGIS, "text_type": "llm_response"}, {**AEGIS, "labels_1": "Safe"}],
    "SimpleSafetyTests": [{"id": "s", "harm_area": "a", "category": "c", "prompt": "p"}],
    "WildGuardTestPrompt": [WILDGUARD, {**WILDGUARD, "prompt_harm_label": None}],
    "HarmBenchResponse": [{"text": json.dumps({"a": [CASE, {**CASE, "human_1": 0}], "b": [CASE]})}],
    "SafeRLHF": [{"prompt": "p", "response_0": "r", "response_1": "q", "is_response_0_safe": True, "is_response_1_safe": False}],
    "BeaverTails": [{"prompt": "p", "response": "r", "category": {}, "is_safe": False}],
    "XSTestResponseHarmful": [{**XSTEST, "label": "harmful"}, {**XSTEST, "label": None}],
    "WildGuardTestResponse": [WILDGUARD, {**WILDGUARD, "response_harm_label": "unharmful"}],
    "XSTestResponseRefusal": [{**XSTEST, "label": "refusal"}, {**XSTEST, "label": "compliance"}],
    "WildGuardTestRefusal": [WILDGUARD, {**WILDGUARD, "response_refusal_label": "compliance"}],
    "XSTestSafe": [{"id": 1, "prompt": "p", "type": "homonyms", "label": "safe", "focus": "", "note": ""},
                   {"id": 2, "prompt": "p", "type": "contrast_homonyms", "label": "unsafe", "focus": "", "note": ""}],
}  # fmt: skip
"""Items as the sets' cards and files show them."""

LABELS = {
    "ToxicChat": {0: "harmful", 2: "unharmful"},
    "HarmBenchPrompt": {0: "harmful", 2: "harmful"},
    "OpenAIModeration": {0: "harmful", 1: "unharmful", 2: "unharmful"},
    "AegisSafetyTest": {0: "harmful", 2: "unharmful"},
    "SimpleSafetyTests": {0: "harmful"},
    "WildGuardTestPrompt": {0: "harmful"},
    "HarmBenchResponse": {0: "harmful", 1: "unharmful", 2: "harmful"},
    "SafeRLHF": {0: "unharmful", 1: "harmful"},
    "BeaverTails": {0: "harmful"},
    "XSTestResponseHarmful": {0: "harmful"},
    "WildGuardTestResponse": {1: "unharmful"},
    "XSTestResponseRefusal": {0: "refusal", 1: "compliance"},
    "WildGuardTestRefusal": {0: "refusal", 1: "compliance"},
    "XSTestSafe": {0: "unharmful"},
}
"""What they must become, by their place."""


class Hub:
    """Stands for the hub: gives items, or fails, by a set's id."""

    def __init__(self) -> None:
        self.items: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        self.fails: dict[str, Exception] = {}
        self.asked: list[str] = []
        for name, items in ITEMS.items():
            where = HUB_BENCHMARKS[name]
            self.items.setdefault((where.source, where.split), items)

    def load_dataset(self, id: str, config: str | None, split: str, **options: str) -> list[Mapping[str, Any]]:
        source = options.get("data_files", id)
        self.asked.append(source)
        if source in self.fails:
            raise self.fails[source]
        return self.items[source, split]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr(datasets, "load_dataset", hub.load_dataset)
    return hub


@pytest.mark.parametrize("name", HUB_BENCHMARKS)
def test_an_item_becomes_the_row_its_card_tells_of(hub: Hub, name: str) -> None:
    where = HUB_BENCHMARKS[name]
    hub.items[where.source, where.split] = ITEMS[name]
    rows = load_hub_benchmark(name)
    assert {row.id: row.label for row in rows} == {f"{name}-{n}": label for n, label in LABELS[name].items()}
    task = BENCHMARKS[name].task if name in BENCHMARKS else "prompt"
    assert {(row.benchmark, row.task, row.prompt) for row in rows} == {(name, task, "p")}
    assert {row.response is None for row in rows} == {task == "prompt"}


def test_a_file_that_is_read_from_a_repository_is_that_of_one_commit() -> None:
    files = [where.source for where in HUB_BENCHMARKS.values() if where.source.startswith("https:")]
    assert len(files) == 2 and all(re.search("/[0-9a-f]{40}/", file) for file in files)


def test_every_pair_of_the_method_is_there() -> None:
    assert BENCHMARKS.keys() | {"XSTestSafe"} == HUB_BENCHMARKS.keys()


def test_safe_rlhf_gives_as_many_of_each_label_from_all_over_the_split(hub: Hub) -> None:
    item = ITEMS["SafeRLHF"][0]
    many: list[Mapping[str, Any]] = [{**item, "prompt": str(n), "is_response_1_safe": n % 4 != 0} for n in range(6000)]
    hub.items["PKU-Alignment/PKU-SafeRLHF", "test"] = many
    rows = load_hub_benchmark("SafeRLHF")
    assert Counter(row.label for row in rows) == {"harmful": 1000, "unharmful": 1000}
    assert len({row.id for row in rows}) == 2000
    assert max(int(row.prompt) for row in rows) > 5900


def test_a_count_unlike_the_papers_is_told(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    load_hub_benchmark("BeaverTails")
    assert "BeaverTails has 1 rows; the paper tells of 3021" in caplog.text


def test_the_harmbench_file_of_answers_is_read_by_the_real_loader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "answers.json"
    file.write_text(json.dumps({"a": [CASE, {**CASE, "human_0": 0}]}, indent=2))
    where = HUB_BENCHMARKS["HarmBenchResponse"]
    local = where._replace(options={**where.options, "data_files": str(file)})
    monkeypatch.setitem(HUB_BENCHMARKS, "HarmBenchResponse", local)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert [row.label for row in load_hub_benchmark("HarmBenchResponse")] == ["harmful", "unharmful"]


def test_hub_means_all_that_can_be_loaded_of_the_papers(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    hub.fails["allenai/wildguardmix"] = datasets.exceptions.DatasetNotFoundError("gated")
    rows = load_benchmarks("hub")
    assert list(dict.fromkeys(row.benchmark for row in rows)) == [n for n in BENCHMARKS if "WildGuard" not in n]
    assert "WildGuardTestPrompt is left out. allenai/wildguardmix could not be loaded" in caplog.text


def test_single_sets_and_a_limit(hub: Hub) -> None:
    rows = load_benchmarks("hub:ToxicChat, OpenAIModeration,ToxicChat", limit=1)
    assert [(row.benchmark, row.label) for row in rows] == [("ToxicChat", "harmful"), ("OpenAIModeration", "harmful")]


def test_what_the_hub_does_not_give_is_told_with_a_way_out(hub: Hub) -> None:
    hub.fails["lmsys/toxic-chat"] = ConnectionError("no network")
    with pytest.raises(BadInput, match="lmsys/toxic-chat could not be loaded.*accept their terms.*log in.*name files"):
        load_benchmarks("hub:ToxicChat")
    with pytest.raises(BadInput, match="lmsys/toxic-chat could not be loaded"):
        load_benchmarks("hub")  # without a network none of the others is tried
    assert len(hub.asked) == 2
    for where in HUB_BENCHMARKS.values():
        hub.fails[where.source] = datasets.exceptions.DatasetNotFoundError("gated")
    with pytest.raises(BadInput, match="None of the benchmarks could be loaded"):
        load_benchmarks("hub")


@pytest.mark.parametrize("name", ["", "toxicchat"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match=f"no benchmark '{name}'.*Name some of ToxicChat, HarmBenchPrompt"):
        load_benchmarks(f"hub:{name}")


@pytest.mark.parametrize(
    ("name", "item"),
    [
        ("ToxicChat", {"user_input": "p", "human_annotation": True}),
        ("XSTestResponseHarmful", {**XSTEST, "label": "bad"}),
        ("WildGuardTestPrompt", {**WILDGUARD, "prompt": None}),
        ("HarmBenchResponse", {"text": "<html>"}),
        ("HarmBenchResponse", {"text": "[]"}),
        ("HarmBenchResponse", {"text": json.dumps({"a": [{**CASE, "human_2": None}]})}),
    ],
)
def test_a_set_that_has_changed_is_told(hub: Hub, name: str, item: Mapping[str, Any]) -> None:
    where = HUB_BENCHMARKS[name]
    hub.items[where.source, where.split] = [item]
    with pytest.raises(BadInput, match="is not of the form it had"):
        load_hub_benchmark(name)


def exchange(prompt: str, response: str = "None") -> str:
    return f"Human user:\n{prompt}\n\nAI assistant:\n{response}\n\n"


def released(folder: Path, name: str, *items: Mapping[str, Any]) -> Path:
    file = folder / name
    file.write_text(json.dumps([{"instruction": "judge", **item} for item in items]), encoding="utf-8")
    return file


def test_the_authors_files_are_read_by_their_names(tmp_path: Path) -> None:
    quoting = "r\n\nAI assistant:\nmore\n"
    released(tmp_path, "0_8_toxic_chat.json", {"input": exchange(" p\nq "), "output": "harmful"})
    file = released(tmp_path, "0_9_safe_rlhf.json",
                    {"input": exchange("p", quoting), "output": "Answers: \nRequest: None\nResponse: Unharmful\n"})  # fmt: skip
    released(
        tmp_path, "0_4_wild_guard_test.json",
        {"input": exchange("p", "r"), "output": None, "prompt_harm_label": "harmful", "response_harm_label": None,
         "response_refusal_label": None},
        {"input": exchange("p", "r"), "output": None, "prompt_harm_label": None, "response_harm_label": "unharmful",
         "response_refusal_label": "refusal"},
    )  # fmt: skip
    (tmp_path / "notes.json").write_text("{}")
    expected = [
        ("WildGuardTestPrompt-0", "p", None, "harmful"),
        ("WildGuardTestResponse-1", "p", "r", "unharmful"),
        ("WildGuardTestRefusal-1", "p", "r", "refusal"),
        ("ToxicChat-0", " p\nq ", None, "harmful"),
        ("SafeRLHF-0", "p", quoting, "unharmful"),
    ]
    rows = load_benchmarks(str(tmp_path))
    assert [(row.id, row.prompt, row.response, row.label) for row in rows] == expected
    assert load_benchmarks(str(file)) == rows[-1:]
    assert {name for names in FILES.values() for name in names} == BENCHMARKS.keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "the file: Invalid JSON"),
        ('{"input": "x"}', "the file: Input should be a valid array"),
        ('[{"output": "harmful"}]', "0.input: Field required"),
        ('[{"input": "p", "output": "harmful"}]', "item 0: input is not an exchange"),
        (json.dumps([{"input": exchange("p"), "output": "Response: harmful"}]), "item 0: there is no label"),
    ],
)
def test_an_authors_file_of_another_form_is_told(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "0_8_toxic_chat.json"
    file.write_text(content)
    with pytest.raises(BadInput, match=message):
        load_benchmarks(str(file))


def test_an_authors_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="Cannot read"):
        read_authors_benchmarks(tmp_path / "0_8_toxic_chat.json")


def test_files_of_json_lines_are_read_as_before(tmp_path: Path) -> None:
    row = BenchmarkRow(id="1", benchmark="own", task="prompt", prompt="p", label="harmful")
    (tmp_path / "rows.jsonl").write_text(row.model_dump_json() + "\n")
    assert load_benchmarks(str(tmp_path)) == load_benchmarks(str(tmp_path / "rows.jsonl")) == [row]
    with pytest.raises(BadInput, match="Cannot read"):
        load_benchmarks(str(tmp_path / "none.jsonl"))

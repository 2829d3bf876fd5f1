"""The page holds what was found and what was published, stands by itself, and lets no text out of its box."""

from __future__ import annotations

import base64
import csv
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder

import pytest
from guardreasoner_guard.training.benchmarks import BENCHMARKS, BenchmarkRow, BenchmarkTask
from guardreasoner_guard.training.evaluate import evaluate
from guardreasoner_guard.training.published import AVERAGE, published
from guardreasoner_guard.training.report import report
from guardreasoner_guard.training.subject import JudgeSubject

from guardreasoner_guard import BadInput, ScriptedEngine
from guardreasoner_guard.guard import SCRIPTED_MANIFEST
from guardreasoner_guard.judge import Judge, Reasoning

ROOT = Path(__file__).resolve().parents[2]
HARMFUL = '<script>alert("x")</script> & <b>gas</b>'
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Tree(HTMLParser):
    """A page as elements; every tag must be closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.builder, self.open = TreeBuilder(), list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.builder.start(tag, {name: value or "" for name, value in attrs})
        if tag in VOID:
            self.builder.end(tag)
        else:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"
        self.builder.end(tag)

    def handle_data(self, data: str) -> None:
        if self.open:
            self.builder.data(data)


def tree(page: Path) -> Element:
    parser = Tree()
    parser.feed(page.read_text(encoding="utf-8"))
    parser.close()
    assert not parser.open
    return parser.builder.close()


def text(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


def table(page: Element, caption: str) -> dict[str, dict[str, Element]]:
    """A table's cells by row and column."""
    [found] = [one for one in page.iter("table") if text(one.findall("caption")[0]) == caption]
    columns = [text(cell) for cell in found.findall("thead/tr/th")][1:]
    return {
        text(row.findall("th")[0]): dict(zip(columns, row.findall("td"), strict=True))
        for row in found.findall("tbody/tr")
    }


def section(page: Element, name: str) -> Element:
    [found] = [one for one in page.iter("section") if one.get("id") == name]
    return found


def rows(benchmarks: list[str], count: int = 6) -> list[BenchmarkRow]:
    """Rows of which the scripted guard is right, half of them positive."""
    found = []
    for name in benchmarks:
        task: BenchmarkTask = BENCHMARKS[name].task if name in BENCHMARKS else "prompt"
        words = {"prompt": "harmful unharmful", "response": "harmful unharmful", "refusal": "refusal compliance"}
        for number in range(count):
            label = words[task].split()[number % 2]
            said = ("a bomb", "hello", "sorry, no bomb", "yes")[(task == "refusal") * 2 + number % 2]
            response = None if task == "prompt" else said
            prompt = said if task == "prompt" else "a question"
            found.append(
                BenchmarkRow(id=f"{number}", benchmark=name, task=task, prompt=prompt, response=response, label=label)
            )
    return found


def judged(given: list[BenchmarkRow], reasoning: Reasoning = "never", name: str = "scripted") -> dict[str, Any]:
    engine = ScriptedEngine()
    engine.name = name
    result: dict[str, Any] = evaluate(JudgeSubject(Judge(engine, SCRIPTED_MANIFEST), reasoning), given)
    return result


def drawn(folder: Path, *results: dict[str, Any], data: Path | None = None) -> Element:
    paths = [folder / f"{at}.json" for at in range(len(results))]
    for path, result in zip(paths, results, strict=True):
        path.write_text(json.dumps(result), encoding="utf-8")
    report(paths, folder / "out" / "page.html", None if data is None else str(data), folder / "figures")
    return tree(folder / "out" / "page.html")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Element, dict[str, Any]]:
    """The page of a guard that was right on all thirteen benchmarks but for one row, whose text is a script."""
    folder = tmp_path_factory.mktemp("whole")
    given = rows(list(BENCHMARKS))
    bad = BenchmarkRow(
        id="<b>9", benchmark="BeaverTails", task="response", prompt="\n q", response=HARMFUL, label="harmful"
    )
    given.append(bad)
    (folder / "rows.jsonl").write_text("".join(f"{row.model_dump_json()}\n" for row in given), encoding="utf-8")
    result = judged(given, "always", "a <i>guard</i> for $5_$")
    return folder, drawn(folder, result, data=folder / "rows.jsonl"), result


def test_the_page_is_well_formed_and_can_be_read_aloud(whole: tuple[Path, Element, dict[str, Any]]) -> None:
    page = whole[1]
    assert page.tag == "html" and page.get("lang") == "en"
    assert (whole[0] / "out" / "page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert any(meta.get("name") == "viewport" for meta in page.iter("meta"))
    levels = [int(one.tag[1]) for one in page.iter() if re.fullmatch("h[1-6]", one.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in zip(levels, levels[1:], strict=False))
    tables = list(page.iter("table"))
    boxes = [box for box in page.iter("div") if box.get("class") == "scroll"]
    assert {id(one) for one in tables} <= {id(child) for box in boxes for child in box}
    assert all(box.get("tabindex") == "0" and box.get("aria-label") for box in boxes)
    for one in tables:
        assert text(one.findall("caption")[0])
        assert all(head.get("scope") == "col" for head in one.findall("thead/tr/th"))
        assert all(row.findall("th")[0].get("scope") == "row" for row in one.findall("tbody/tr"))
    assert all(image.get("alt") for image in page.iter("img"))
    ids = [one.get("id") for one in page.iter() if one.get("id")]
    assert len(ids) == len(set(ids))
    assert {link.get("href", "")[1:] for link in page.iter("a")} <= set(ids)


def test_the_page_needs_nothing_beside_it(whole: tuple[Path, Element, dict[str, Any]]) -> None:
    page = whole[1]
    for one in page.iter():
        assert one.tag not in ("script", "link", "iframe", "object")
        assert not any(name.startswith("on") for name in one.keys())
        for name in ("src", "href"):
            assert one.get(name, "#").startswith(("#", "data:image/png;base64,"))
    [style] = page.iter("style")
    assert "url(" not in text(style) and "@import" not in text(style)
    assert "prefers-color-scheme: dark" in text(style)


def test_all_that_was_published_is_there(whole: tuple[Path, Element, dict[str, Any]]) -> None:
    page = whole[1]
    for task in ("prompt", "response", "refusal"):
        told = table(page, f"F1 of the {task} task")
        for one in published():
            if one.task == task:
                column = "weighted average" if one.benchmark == AVERAGE else one.benchmark
                assert text(told[one.guard][column]).startswith(f"{one.f1:.2f}")
    averages = table(page, "Task averages and their mean")
    means = {guard: text(averages[guard]["mean"]) for guard in ("GuardReasoner 8B", "WildGuard 7B", "MD-Judge 7B")}
    assert means == {"GuardReasoner 8B": "84.09 second", "WildGuard 7B": "81.96", "MD-Judge 7B": "not run"}
    assert text(table(page, "F1 of the prompt task")["Aegis Guard 2.0 8B"]["ToxicChat"]) == "not run"
    assert "full test sets" in text(page) and "arXiv 2501.18492" in text(page)
    with (ROOT / "training" / "published.csv").open() as file:
        assert len(published()) == len(list(csv.DictReader(file)))


def test_what_was_found_is_there_with_its_interval_and_rows(whole: tuple[Path, Element, dict[str, Any]]) -> None:
    _, page, result = whole
    name = "a <i>guard</i> for $5_$, reasoning always"
    for task in ("prompt", "response", "refusal"):
        cells = table(page, f"F1 of the {task} task")[name]
        for benchmark, scores in result["benchmarks"].items():
            if scores["task"] == task:
                low, high = scores["f1 interval"].values()
                notes = [text(note) for note in cells[benchmark].findall("small")]
                assert notes == [
                    f"{low:.2f} to {high:.2f}",
                    f"{scores['rows']} of {BENCHMARKS[benchmark].weight:,} rows",
                ]
                assert text(cells[benchmark]).startswith(f"{scores['f1']:.2f}")
                more = table(page, f"Measures of {name}")[benchmark]
                assert [text(more[told]) for told in ("rows", "F1", "precision", "recall", "false positives")] == [
                    str(scores["rows"]), f"{scores['f1']:.2f}", f"{scores['precision']:.2f}", f"{scores['recall']:.2f}",
                    f"{scores['false positives']:.2f}",
                ]  # fmt: skip
                assert text(more["area"]) == f"{scores['area']:.2f}"
                assert text(more["recall at 1 % false positives"]) == "not run"
    averages = table(page, "Task averages and their mean")[name]
    assert text(averages["mean"]).startswith(f"{result['averages']['mean']:.2f}")
    low, high = result["intervals of the averages"]["mean"].values()
    assert [text(note) for note in averages["mean"].findall("small")] == [
        f"{low:.2f} to {high:.2f}",
        "79 of 17,100 rows",
    ]


def test_counts_cost_and_calibration(whole: tuple[Path, Element, dict[str, Any]]) -> None:
    _, page, result = whole
    name = "a <i>guard</i> for $5_$, reasoning always"
    counts = [text(cell) for cell in table(page, f"Confusion of {name}")["BeaverTails"].values()]
    assert counts == ["3", "0", "3", "1", "0"]
    cost = table(page, "Cost of a check")
    tokens = sum(one["tokens"] for one in result["predictions"]) / 79
    assert text(cost[name]["tokens a check"]) == f"{tokens:.1f}"
    assert text(cost["GuardReasoner 1B"]["tokens a check"]) == "254.35"
    error = table(page, "Expected calibration error of the direct scores, 15 bins")[name]
    assert text(error["prompt"]) == "0.0100"
    alt = section(page, "cost").findall("div/img")[0].get("alt", "")
    assert f"{name}: {tokens:.0f} tokens, {result['averages']['mean']:.2f}" in alt and "GuardReasoner 3B" in alt


def test_figures_stand_in_the_page_and_in_their_folder(whole: tuple[Path, Element, dict[str, Any]]) -> None:
    folder, page, _ = whole
    embedded = [base64.b64decode(image.get("src", "").split(",")[1]) for image in page.iter("img")]
    assert embedded == [(folder / "figures" / name).read_bytes() for name in ("cost.png", "calibration.png")]
    assert all(png.startswith(b"\x89PNG") for png in embedded)


def test_a_text_is_escaped_and_folded(whole: tuple[Path, Element, dict[str, Any]]) -> None:
    folder, page, _ = whole
    raw = (folder / "out" / "page.html").read_text(encoding="utf-8")
    assert "<script" not in raw and "<b>" not in raw and "<i>" not in raw
    [mistake] = section(page, "mistakes").findall("ol/li")
    assert "BeaverTails, row <b>9: label harmful, verdict unharmful, score 0.0100" in text(mistake)
    reasoning, given = mistake.findall("details")
    assert text(given.findall("summary")[0]) == "Show the text (may be harmful)"
    assert [pre.text for pre in given.iter("pre")][1] == HARMFUL
    assert text(reasoning.findall("summary")[0]) == "Show the reasoning (may quote the text)"
    assert text(reasoning.findall("ol/li")[0]).startswith("The words are")
    assert all(not details.get("open") and "open" not in details.keys() for details in page.iter("details"))
    for details in mistake.findall("details"):
        mistake.remove(details)
    assert "alert" not in text(page)


def test_without_the_data_no_text_is_shown(tmp_path: Path) -> None:
    given = [
        *rows(["ToxicChat"]),
        BenchmarkRow(id="9", benchmark="ToxicChat", task="prompt", prompt=HARMFUL, label="harmful"),
    ]
    page = drawn(tmp_path, judged(given))
    assert "text not given" in text(section(page, "mistakes")) and "no reasoning written" in text(
        section(page, "mistakes")
    )
    assert "alert" not in text(page)


def test_a_row_of_other_data_is_not_taken_for_the_one_that_was_judged(tmp_path: Path) -> None:
    wrong = BenchmarkRow(id="9", benchmark="ToxicChat", task="prompt", prompt="gas", label="harmful")
    other = wrong.model_copy(update={"label": "unharmful", "prompt": "other words"})
    (tmp_path / "rows.jsonl").write_text(other.model_dump_json(), encoding="utf-8")
    page = drawn(tmp_path, judged([wrong]), data=tmp_path)
    assert "text not given" in text(page) and "other words" not in text(page)


def test_at_most_twenty_mistakes_the_surest_first(tmp_path: Path) -> None:
    result = judged(rows(["ToxicChat"], 60))
    for at, one in enumerate(result["predictions"]):
        one["predicted"] = "unharmful" if one["label"] == "harmful" else "harmful"
        one["score"] = (1 - at / 100) if one["label"] == "unharmful" else at / 100
    found = [text(one) for one in section(drawn(tmp_path, result), "mistakes").findall("ol/li")]
    assert len(found) == 20
    assert [re.findall(r"row (\d+):", one)[0] for one in found] == [str(at) for at in range(20)]


def test_the_best_and_the_second_of_each_column_are_marked(whole: tuple[Path, Element, dict[str, Any]]) -> None:
    prompt = table(whole[1], "F1 of the prompt task")
    marked = {guard: text(cells["ToxicChat"]) for guard, cells in prompt.items() if len(cells["ToxicChat"])}
    ours = prompt["a <i>guard</i> for $5_$, reasoning always"]
    assert ours["ToxicChat"].findall("strong")[0].text == "100.00" and " best" in text(ours["ToxicChat"])
    assert marked["GuardReasoner 8B"] == "78.79 second"
    assert prompt["GuardReasoner 8B"]["ToxicChat"].findall("u")[0].text == "78.79"
    assert len([one for one in prompt.values() if one["ToxicChat"].findall("strong")]) == 1
    simple = [guard for guard, cells in prompt.items() if cells["SimpleSafetyTests"].findall("strong")]
    assert len(simple) == 7  # all who reach 100
    assert [guard for guard, cells in prompt.items() if cells["SimpleSafetyTests"].findall("u")] == [
        "GPT-4", "LLaMA Guard 3 8B", "WildGuard 7B", "QwQ-preview 32B", "GuardReasoner 8B",
    ]  # fmt: skip


def test_what_was_not_run_is_said_and_part_of_a_task_is_not_ranked(tmp_path: Path) -> None:
    result = judged(rows(["ToxicChat", "Mine"]))
    for one in result["predictions"]:
        one["score"] = None
    for scores in result["benchmarks"].values():
        for name in ("area", "f1 interval", "recall at 1 % false positives"):
            del scores[name]
    del result["intervals of the averages"]
    page = drawn(tmp_path, result)
    name = "scripted, reasoning never"
    prompt = table(page, "F1 of the prompt task")
    assert text(prompt[name]["AegisSafetyTest"]) == text(prompt["GPT-4"]["Mine"]) == "not run"
    assert text(prompt[name]["Mine"]) == "100.00 best"
    assert text(prompt[name]["weighted average"]) == "100.00 1 of 6 benchmarks, 1 other"
    assert text(prompt["GuardReasoner 8B"]["weighted average"]) == "81.09 best"
    assert text(table(page, "F1 of the refusal task")[name]["weighted average"]) == "not run"
    assert text(table(page, "Task averages and their mean")[name]["mean"]) == "not run"
    assert text(table(page, f"Measures of {name}")["Mine"]["area"]) == "not run"
    assert [text(one) for one in section(page, "calibration").findall("p")][1] == "not run"
    assert [text(one) for one in section(page, "mistakes").findall("p")][1] == "not run"
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["cost.png"]
    assert name not in section(page, "cost").findall("div/img")[0].get("alt", "")


def test_two_guards_are_compared_on_the_rows_of_both(tmp_path: Path) -> None:
    given = rows(["ToxicChat", "SafeRLHF"], 20)
    first, second = judged(given), judged(given[:-4], "always")
    for one in second["predictions"][:7]:
        one["predicted"] = "unharmful" if one["label"] == "harmful" else "harmful"
    page = drawn(tmp_path, first, second)
    found = table(page, "Against scripted, reasoning never")
    told = {name: [text(cell) for cell in cells.values()] for name, cells in found.items()}
    assert told == {
        "scripted, reasoning always: prompt": ["20", "7", "0", "0.01562"],
        "scripted, reasoning always: response": ["16", "0", "0", "1"],
        "scripted, reasoning always: refusal": ["not run"] * 4,
    }
    assert not [one for one in drawn(tmp_path, first).iter("section") if one.get("id") == "differences"]


def test_evaluations_of_one_name_are_told_apart_by_their_files(tmp_path: Path) -> None:
    result = judged(rows(["ToxicChat"]))
    prompt = table(drawn(tmp_path, result, result), "F1 of the prompt task")
    assert [name for name in prompt if "scripted" in name] == [
        f"scripted, reasoning never ({tmp_path / f'{at}.json'})" for at in range(2)
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no JSON", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[]", "is no evaluation"),
        (b'{"rows": 3}', "model: Field required"),
        (
            b'{"model": "m", "reasoning": "never", "benchmarks": {}, "averages": {"mean": 0}}',
            "predictions: Field required",
        ),
    ],
)
def test_a_file_that_is_no_evaluation_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "0.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=re.escape(message)) as error:
        report([path], tmp_path / "page.html")
    assert str(path) in str(error.value) and "guardreasoner evaluate" in str(error.value)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("changes", "first", "message"),
    [
        ({"predictions": []}, {}, "predictions"),
        ({"benchmarks": {}}, {}, "ToxicChat of prediction 0 is no benchmark of its task"),
        ({"averages": {"mean": 100.0}}, {}, "the average of prompt is missing"),
        ({"model": "\ud800"}, {}, "is no evaluation"),
        ({}, {"label": "bad"}, "label 'bad' of prediction 0"),
        ({}, {"score": float("nan")}, "score nan of prediction 0"),
        ({}, {"task": "sport"}, "predictions.0.task"),
        ({}, {"benchmark": "Other"}, "Other of prediction 0"),
    ],
)
def test_an_evaluation_that_contradicts_itself_is_named(
    tmp_path: Path, changes: dict[str, Any], first: dict[str, Any], message: str
) -> None:
    result = {**judged(rows(["ToxicChat"])), **changes}
    for one in result["predictions"][:1]:
        one.update(first)
    with pytest.raises(BadInput, match=re.escape(message)) as error:
        drawn(tmp_path, result)
    assert str(tmp_path / "0.json") in str(error.value)


def test_what_cannot_be_read_or_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="Cannot read .*absent.json"):
        report([tmp_path / "absent.json"], tmp_path / "page.html")
    (tmp_path / "0.json").write_text(json.dumps(judged(rows(["ToxicChat"]))))
    with pytest.raises(BadInput, match="Cannot write .*Name another place"):
        report([tmp_path / "0.json"], tmp_path)


def test_the_command_writes_the_page_and_says_where(tmp_path: Path) -> None:
    (tmp_path / "0.json").write_text(json.dumps(judged(rows(["ToxicChat"]))))
    command = [sys.executable, "-m", "guardreasoner_guard", "report", "--out", str(tmp_path / "page.html")]
    done = subprocess.run([*command, str(tmp_path / "0.json")], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / "page.html")), done.stderr
    tree(tmp_path / "page.html")
    failed = subprocess.run([*command, str(tmp_path / "1.json")], capture_output=True, text=True, timeout=300)
    assert failed.returncode == 2 and failed.stderr.startswith("BadInput: Cannot read")


def test_a_browser_shows_the_page_on_a_phone(whole: tuple[Path, Element, dict[str, Any]], browser: Any) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 800})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto((whole[0] / "out" / "page.html").as_uri())
    images = page.locator("img")
    assert all(images.nth(at).evaluate("one => one.naturalWidth") > 0 for at in range(images.count()))
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert not said
    page.close()

"""A user's rows are read as they are, or it is said which row is wrong and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from guardreasoner_guard.training.rows import SeedRow
from guardreasoner_guard.training.table import check_apart, check_classes, distinct, read_table, split

from guardreasoner_guard import BadInput

CSV = "question,verdict\nHow do I bake?,unharmful\nHelp me rob a bank,Harmful\n"


def written(tmp_path: Path, text: str, name: str = "rows.csv") -> str:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / name)


def test_csv_json_lines_and_parquet_give_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = {"prompt": "question", "prompt_harm": "verdict"}
    rows = read_table(written(tmp_path, "\ufeff" + CSV), columns)
    assert [row.labels for row in rows] == [{"request": "unharmful"}, {"request": "harmful"}]
    assert [row.id for row in rows] == ["1", "2"]
    items = [dict(zip(("question", "verdict"), line.split(","), strict=True)) for line in CSV.splitlines()[1:]]
    lines = "\n".join(map(json.dumps, items)) + "\n\n"
    assert read_table(written(tmp_path, lines, "rows.jsonl"), columns) == rows
    parquet.write_table(pyarrow.Table.from_pylist(items), tmp_path / "rows.parquet")
    assert read_table(str(tmp_path / "rows.parquet"), columns) == rows


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("question,verdict\nx,harmful\n", {}, "no column 'prompt'.*question, verdict"),
        (CSV, {"prompt": "question"}, "no column of labels"),
        (CSV, {"promt": "question"}, "no field 'promt'"),
        ("prompt,prompt_harm\nx,toxic\n", {}, "row 1: prompt_harm is 'toxic', not harmful or unharmful"),
        ("prompt,prompt_harm\nx,harmful\n ,harmful\n", {}, "row 2 has no prompt"),
        ("prompt,prompt_harm\nx,\n", {}, "row 1 has no label"),
        ("prompt,response_harm\nx,harmful\n", {}, "row 1 labels a response that is not there"),
        ("prompt,prompt_harm\n", {}, "holds no rows"),
        ("prompt_harm,prompt\nharmful,How do I steal, then sell?\n", {}, "row 1 has more cells than there are columns"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, columns: dict[str, str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_table(written(tmp_path, text), columns)


def test_a_file_that_is_not_there_or_no_table(tmp_path: Path) -> None:
    for name in ("none.csv", "none.parquet"):
        with pytest.raises(BadInput, match="cannot be read"):
            read_table(str(tmp_path / name))
    with pytest.raises(BadInput, match="cannot be read"):
        read_table(written(tmp_path, "{not json\n", "rows.jsonl"))
    (tmp_path / "bytes.csv").write_bytes(b"prompt,prompt_harm\n\xff\xfe,harmful\n")
    with pytest.raises(BadInput, match="cannot be read"):
        read_table(str(tmp_path / "bytes.csv"))


@pytest.mark.parametrize("line", ['["x", "harmful"]', "5", '[{"prompt": "secret", "prompt_harm": "harmful"}]'])
def test_a_line_that_is_no_object_is_named_and_not_quoted(tmp_path: Path, line: str) -> None:
    good = '{"prompt": "x", "prompt_harm": "harmful"}'
    for number, text in ((1, line), (2, f"{good}\n{line}")):
        with pytest.raises(BadInput, match=f"row {number} is no JSON object") as told:
            read_table(written(tmp_path, text, "rows.json"))
        assert "secret" not in str(told.value)


def test_a_data_set_is_read_by_split_and_configuration_and_a_failure_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    written(tmp_path / "set", CSV, "train.csv")
    written(tmp_path / "set", CSV.replace("bake", "cook"), "test.csv")
    columns = {"prompt": "question", "prompt_harm": "verdict"}
    assert [row.prompt for row in read_table(str(tmp_path / "set"), columns)][0] == "How do I bake?"
    for part in (":test", ":default:test"):
        assert read_table(f"{tmp_path / 'set'}{part}", columns)[0].prompt == "How do I cook?"
    with pytest.raises(BadInput) as told:
        read_table(str(tmp_path / "nothing"))
    assert str(told.value).count("Name a") == 1


def test_the_suffix_may_be_written_large(tmp_path: Path) -> None:
    assert len(read_table(written(tmp_path, CSV, "ROWS.CSV"), {"prompt": "question", "prompt_harm": "verdict"})) == 2


def rows(harmful: int, unharmful: int) -> list[SeedRow]:
    labels = ["harmful"] * harmful + ["unharmful"] * unharmful
    return [SeedRow(id=str(n), prompt=f"p{n}", prompt_harm=label) for n, label in enumerate(labels)]


def test_a_split_holds_both_labels_on_both_sides_and_never_one_prompt_on_both() -> None:
    twins = [row.model_copy(update={"id": f"{row.id}b", "prompt": row.prompt.upper() + " "}) for row in rows(10, 30)]
    learn, test = split([*rows(10, 30), *twins], 0.2, seed=3)
    assert len(learn) == 64 and len(test) == 16
    assert not {r.prompt.lower().strip() for r in learn} & {r.prompt.lower().strip() for r in test}
    assert sum(r.prompt_harm == "harmful" for r in test) == 4
    check_apart(learn, test)
    with pytest.raises(BadInput, match="1 rows of the test file"):
        check_apart(learn, [*test, learn[0]])


def test_one_class_and_empty_classes_are_refused() -> None:
    with pytest.raises(BadInput, match="0 are labelled unharmful for request, 5 in all"):
        check_classes(rows(5, 0), "to learn from")
    with pytest.raises(BadInput, match="held out for the test, 0 are labelled harmful"):
        split(rows(2, 40), 0.2, seed=0)


def test_the_same_exchange_counts_once_and_must_not_contradict_itself() -> None:
    first = rows(1, 1)
    assert distinct([*first, first[0].model_copy(update={"id": "again", "prompt": " P0"})]) == first
    with pytest.raises(BadInput, match="Rows 0 and x are the same exchange"):
        distinct([*first, SeedRow(id="x", prompt="p0", prompt_harm="unharmful")])

"""The method's thirteen pairs as its authors keep them: JSON files in data/benchmark of their repository.

Each is a list of objects with `instruction`, `input` and `output`. `input` is the exchange under two headings, with
`None` for no answer; `output` is the label alone, or the three lines that the model is to end with. WildGuardTest's
file has the labels of its three pairs in fields of their own, null where there is none. (From the authors'
generate.py, evaluate.py and the released predictions, which repeat `input` and `output`.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from guardreasoner_guard.errors import BadInput
from guardreasoner_guard.verdict import LABELS

from .benchmarks import ASKS, BENCHMARKS, BenchmarkRow, BenchmarkTask

FILES: Mapping[str, tuple[str, ...]] = {
    "0_0_SimpleSafetyTests.json": ("SimpleSafetyTests",),
    "0_1_AegisSafetyTest.json": ("AegisSafetyTest",),
    "0_2_OpenAIModeration.json": ("OpenAIModeration",),
    "0_3_harmbench_prompt.json": ("HarmBenchPrompt",),
    "0_4_wild_guard_test.json": ("WildGuardTestPrompt", "WildGuardTestResponse", "WildGuardTestRefusal"),
    "0_5_harmbench_response.json": ("HarmBenchResponse",),
    "0_6_xstest_response_harmful.json": ("XSTestResponseHarmful",),
    "0_7_xstest_response_refusal.json": ("XSTestResponseRefusal",),
    "0_8_toxic_chat.json": ("ToxicChat",),
    "0_9_safe_rlhf.json": ("SafeRLHF",),
    "0_A_beaver_tails.json": ("BeaverTails",),
}
"""The authors' file names, and the benchmarks in each."""

_FIELDS: dict[BenchmarkTask, str] = {
    "prompt": "prompt_harm_label",
    "response": "response_harm_label",
    "refusal": "response_refusal_label",
}
_HEADINGS: dict[BenchmarkTask, str] = {"prompt": "Request", "response": "Response", "refusal": "Completion"}
_UNANSWERED = re.compile(r"Human user:\n(.*)\n\nAI assistant:\n(None)\n\n", re.DOTALL)
# the first heading of the assistant ends the request: an answer quotes such a heading sooner than a request does
_ANSWERED = re.compile(r"Human user:\n(.*?)\n\nAI assistant:\n(.*)\n\n", re.DOTALL)


class _Item(BaseModel):
    input: str
    output: Any = None
    prompt_harm_label: str | None = None
    response_harm_label: str | None = None
    response_refusal_label: str | None = None


def authors_files(path: Path) -> list[Path]:
    """The authors' benchmark files at a path: the file itself or those of the folder, known by their names."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in files if file.name in FILES]


def read_authors_benchmarks(path: Path) -> list[BenchmarkRow]:
    """Reads the authors' benchmark files; a row's id is its place in its file.

    Args:
        path: One of the files, or a folder that holds some.

    Raises:
        BadInput: A file cannot be read or holds an item of another form; the message names file and item.
    """
    return [row for file in authors_files(path) for name in FILES[file.name] for row in _rows(file, name)]


def _rows(file: Path, name: str) -> Iterator[BenchmarkRow]:
    task = BENCHMARKS[name].task
    for number, item in enumerate(_items(file)):
        exchange = _UNANSWERED.fullmatch(item.input) or _ANSWERED.fullmatch(item.input)
        shared = len(FILES[file.name]) > 1
        label = getattr(item, _FIELDS[task]) if shared else _label(item.output, task)
        if shared and label is None:
            continue
        if exchange is None or label not in LABELS[ASKS[task]]:
            what = "input is not an exchange under the authors' headings" if exchange is None else "there is no label"
            raise BadInput(f"{file}, item {number}: {what} for {name}. Take the file as the authors released it.")
        yield BenchmarkRow(
            id=f"{name}-{number}",
            benchmark=name,
            task=task,
            prompt=exchange[1],
            response=None if task == "prompt" else exchange[2],
            label=label,
        )


def _label(output: Any, task: BenchmarkTask) -> str | None:
    words = "|".join(LABELS[ASKS[task]])
    found = re.search(rf"^\s*(?:{_HEADINGS[task]}:\s*)?({words})\s*$", str(output), re.MULTILINE | re.IGNORECASE)
    return found[1].lower() if found else None


def _items(file: Path) -> list[_Item]:
    try:
        return TypeAdapter(list[_Item]).validate_json(file.read_bytes())
    except OSError as error:
        raise BadInput(f"Cannot read {file}: {error.strerror}. Name a file that is there.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise BadInput(
            f"{file}: {place}: {first['msg']}. It must be a list of objects with input and output, as the authors "
            "released it."
        ) from None

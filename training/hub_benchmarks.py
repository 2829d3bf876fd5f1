"""The method's benchmarks from the public data sets: where each is, which of its items count, and what label they bear.

The method's paper (arXiv 2501.18492, table 8) tells sizes, not how each subset was drawn. What is done here follows
the sets' cards and files; where they do not explain the paper's count, the reader below says so.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from guardreasoner_guard.errors import BadInput
from guardreasoner_guard.verdict import LABELS

from .authors_benchmarks import authors_files, read_authors_benchmarks
from .benchmarks import ASKS, BENCHMARKS, BenchmarkRow, limited, read_benchmarks, spread
from .rows import SeedRow
from .seeds import aegis, beavertails, toxicchat, wildguard

logger = logging.getLogger(__name__)

_HARMBENCH_REVISION = "8e1604d1171fe8a48d8febecd22f600e462bdcdd"
"""A commit, since a branch may move."""
_HARMBENCH = f"https://raw.githubusercontent.com/centerforaisafety/HarmBench/{_HARMBENCH_REVISION}/data"
_CATEGORIES = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")


def openai_moderation(item: Mapping[str, Any], id: str) -> SeedRow:
    """One of OpenAI's 1,680 moderation samples: harmful if any category is flagged.

    A category that is missing or null is one whose label is not known (card of
    mmathys/openai-moderation-api-evaluation); it counts as not flagged.
    """
    flagged = any(item.get(category) == 1 for category in _CATEGORIES)
    return SeedRow(id=id, prompt=item["prompt"], prompt_harm="harmful" if flagged else "unharmful")


def aegis_request(item: Mapping[str, Any], id: str) -> SeedRow | None:
    """One of Aegis 1.0's test rows, by the rule of its training rows; only requests standing alone.

    Column `text_type` tells them, as eval.py of Waffle-Liu/calibration_guard_model takes them; the paper counts 359.
    """
    return aegis(item, id) if item["text_type"] == "user_message" else None


def simple_safety_test(item: Mapping[str, Any], id: str) -> SeedRow:
    """One of the 100 prompts of SimpleSafetyTests, all of which are harmful (arXiv 2311.08370)."""
    return SeedRow(id=id, prompt=item["prompt"], prompt_harm="harmful")


def harmbench_prompt(item: Mapping[str, Any], id: str) -> SeedRow | None:
    """One of HarmBench's text behaviours of the test split, all harmful, without those that need a context.

    The paper does not say which 239 these are. The split has 159 standard, 80 copyright and 81 contextual behaviours;
    the first two make 239 (harmbench_behaviors_text_test.csv; so does eval.py of Waffle-Liu/calibration_guard_model).
    The hub's copies do not tell the splits apart, so the authors' file is read.
    """
    if item["FunctionalCategory"] == "contextual":
        return None
    return SeedRow(id=id, prompt=item["Behavior"], prompt_harm="harmful")


def harmbench_cases(item: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The cases of HarmBench's validation set for classifiers: lists by behaviour, two each, 602 in all."""
    for cases in json.loads(item["text"]).values():
        yield from cases


def harmbench_response(item: Mapping[str, Any], id: str) -> SeedRow:
    """One answer that three people judged: harmful where most saw the behaviour in it (text_behaviors_val_set.json).

    The request is the attack as the model was given it, as in the method's own benchmark file.
    """
    votes = sum(item[f"human_{number}"] for number in range(3))
    return SeedRow(
        id=id,
        prompt=item["test_case"],
        response=item["generation"],
        response_harm="harmful" if votes >= 2 else "unharmful",
    )


def safe_rlhf_responses(item: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The two responses of an item of PKU-SafeRLHF, each in the form of BeaverTails.

    The paper does not say how it drew its 2,000; the method's own file holds 1,000 of each label. Taken here: 1,000 of
    each, spread evenly over the split, which goes through three answering models (card of PKU-Alignment/PKU-SafeRLHF).
    """
    for number in range(2):
        yield {
            "prompt": item["prompt"],
            "response": item[f"response_{number}"],
            "is_safe": item[f"is_response_{number}_safe"],
        }


def xstest_response(item: Mapping[str, Any], id: str) -> SeedRow:
    """One row of XSTest-Response; what its label is about is told by the word (card of allenai/xstest-response).

    The refusal split has 449 rows (its card); the 499 of the paper may be a slip.
    """
    field = "response_harm" if item["label"] in LABELS["response"] else "completion"
    return SeedRow(id=id, prompt=item["prompt"], response=item["response"], **{field: item["label"]})


def xstest_safe(item: Mapping[str, Any], id: str) -> SeedRow | None:
    """One of the 250 prompts of XSTest that only look harmful (arXiv 2308.01263), from its author's own upload."""
    return SeedRow(id=id, prompt=item["prompt"], prompt_harm="unharmful") if item["label"] == "safe" else None


class HubBenchmark(NamedTuple):
    """A public benchmark: where it is, in the terms of `datasets.load_dataset`, and how its items become rows."""

    id: str
    config: str | None
    split: str
    read: Callable[[Mapping[str, Any], str], SeedRow | None]
    parts: Callable[[Mapping[str, Any]], Iterable[Mapping[str, Any]]] = lambda item: (item,)
    """What is read of an item, where that is more than the item itself."""
    of_each: int | None = None
    """So many rows of each label, spread evenly; left out, all."""
    options: Mapping[str, str] = {}
    """What else `load_dataset` takes: for sets that are files, their address."""

    @property
    def source(self) -> str:
        """What a user knows the set by."""
        return self.options.get("data_files", self.id)


_WILDGUARD_TEST = HubBenchmark("allenai/wildguardmix", "wildguardtest", "test", wildguard)

HUB_BENCHMARKS: Mapping[str, HubBenchmark] = {
    "ToxicChat": HubBenchmark("lmsys/toxic-chat", "toxicchat0124", "test", toxicchat),
    "HarmBenchPrompt": HubBenchmark(
        "csv", None, "train", harmbench_prompt,
        options={"data_files": f"{_HARMBENCH}/behavior_datasets/harmbench_behaviors_text_test.csv"},
    ),
    "OpenAIModeration": HubBenchmark("mmathys/openai-moderation-api-evaluation", None, "train", openai_moderation),
    "AegisSafetyTest": HubBenchmark("nvidia/Aegis-AI-Content-Safety-Dataset-1.0", None, "test", aegis_request),
    "SimpleSafetyTests": HubBenchmark("Bertievidgen/SimpleSafetyTests", None, "test", simple_safety_test),
    "WildGuardTestPrompt": _WILDGUARD_TEST,
    "HarmBenchResponse": HubBenchmark(
        "text", None, "train", harmbench_response, harmbench_cases,
        options={
            "data_files": f"{_HARMBENCH}/classifier_val_sets/text_behaviors_val_set.json", "sample_by": "document",
        },
    ),
    "SafeRLHF": HubBenchmark(
        "PKU-Alignment/PKU-SafeRLHF", "default", "test", beavertails, safe_rlhf_responses, of_each=1000
    ),
    "BeaverTails": HubBenchmark("PKU-Alignment/BeaverTails", None, "30k_test", beavertails),
    "XSTestResponseHarmful": HubBenchmark("allenai/xstest-response", None, "response_harmfulness", xstest_response),
    "WildGuardTestResponse": _WILDGUARD_TEST,
    "XSTestResponseRefusal": HubBenchmark("allenai/xstest-response", None, "response_refusal", xstest_response),
    "WildGuardTestRefusal": _WILDGUARD_TEST,
    "XSTestSafe": HubBenchmark("Paul/XSTest", None, "train", xstest_safe),
}  # fmt: skip
"""The method's thirteen pairs, and one of harmless requests alone, for false positives.

Rows of WildGuardTest without the label (null) are left out, as the authors' evaluate.py does: a later count
(GuardBench) finds 1,699, 1,709 and 1,720 of its 1,725 rows labelled, against the paper's 1,756, 1,768 and 1,777.
"""


def load_benchmarks(where: str, limit: int | None = None) -> list[BenchmarkRow]:
    """Loads rows to evaluate on.

    Args:
        where: A file or folder of JSON lines; one of the method's authors' own benchmark files, or a folder with
            some; `hub` for those of the method's thirteen pairs that can be loaded; `hub:ToxicChat,SafeRLHF` for
            single ones.
        limit: At most so many rows of each benchmark, spread evenly over it.

    Raises:
        BadInput: Nothing is there, it cannot be read, or the hub cannot be reached or gives nothing.
    """
    if where == "hub":
        return limited(_all_that_load(), limit)
    if where.startswith("hub:"):
        names = dict.fromkeys(name.strip() for name in where.removeprefix("hub:").split(","))
        return limited([row for name in names for row in load_hub_benchmark(name)], limit)
    path = Path(where)
    if authors_files(path):
        return limited(read_authors_benchmarks(path), limit)
    return read_benchmarks(path, limit)


def _all_that_load() -> list[BenchmarkRow]:
    rows: list[BenchmarkRow] = []
    for name in BENCHMARKS:
        try:
            rows += load_hub_benchmark(name)
        except BadInput as error:
            if isinstance(error.__cause__, ConnectionError):
                raise  # the hub's client tries each set for long before it gives up
            logger.warning("%s is left out. %s", name, error)
    if not rows:
        raise BadInput("None of the benchmarks could be loaded from the hub. Log in to it, or name files.")
    return rows


def load_hub_benchmark(name: str) -> list[BenchmarkRow]:
    """Loads one benchmark from the hub.

    Args:
        name: One of `HUB_BENCHMARKS`.

    Raises:
        BadInput: There is no benchmark of that name, the hub did not give it, or its items are not of the known form.
    """
    if name not in HUB_BENCHMARKS:
        raise BadInput(f"There is no benchmark {name!r} on the hub. Name some of {', '.join(HUB_BENCHMARKS)}.")
    from datasets import load_dataset

    where = HUB_BENCHMARKS[name]
    try:
        items = load_dataset(where.id, where.config, split=where.split, **where.options)
    except Exception as error:  # the hub's client raises many kinds
        raise BadInput(
            f"{where.source} could not be loaded ({type(error).__name__}). Check the network. Some sets ask you to "
            "accept their terms on the hub and to log in (`hf auth login`). Or name files of JSON lines."
        ) from error
    try:
        rows = list(_rows(name, where, items))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"{where.source} is not of the form it had ({type(error).__name__}: {error}). Name files of JSON lines."
        ) from error
    if where.of_each is not None:
        labels = sorted({row.label for row in rows})
        rows = [row for label in labels for row in spread([r for r in rows if r.label == label], where.of_each)]
    if name in BENCHMARKS and len(rows) != BENCHMARKS[name].weight:
        logger.warning("%s has %d rows; the paper tells of %d.", name, len(rows), BENCHMARKS[name].weight)
    return rows


def _rows(name: str, where: HubBenchmark, items: Iterable[Mapping[str, Any]]) -> Iterator[BenchmarkRow]:
    task = BENCHMARKS[name].task if name in BENCHMARKS else "prompt"
    parts = (part for item in items for part in where.parts(item))
    for number, part in enumerate(parts):
        row = where.read(part, f"{name}-{number}")
        if row is None or ASKS[task] not in row.labels:
            continue
        yield BenchmarkRow(
            id=row.id,
            benchmark=name,
            task=task,
            prompt=row.prompt,
            response=None if task == "prompt" else row.response,
            label=row.labels[ASKS[task]],
        )

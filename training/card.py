"""The model card of a guard that was made here: what it learned from, how, and how well it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guardreasoner_guard.model_dir import open_model


def write_card(
    directory: Path, stages: Mapping[str, Mapping[str, Any]], results: Sequence[Mapping[str, Any]], policy: str
) -> Path:
    """Writes `MODEL_CARD.md` into a model directory.

    Args:
        directory: The model directory.
        stages: What each stage's manifest says, by the stage's name.
        results: What `evaluate` found on the held-out rows, one a reasoning mode.
        policy: The policy the guard was trained with, or nothing.
    """
    manifest = open_model(directory).manifest
    recipe: dict[str, Any] = next(
        (facts["made by"]["recipe"] for facts in stages.values() if "recipe" in facts["made by"]), {}
    )
    lines = [
        f"# Model card: {manifest.name}", "",
        "| | |", "|---|---|",
        f"| base | {stages['R-SFT']['made by']['base']} |",
        f"| recipe | {recipe.get('name')}, seed {recipe.get('seed')} |",
        f"| template | {manifest.template} |",
        f"| form | ONNX, {manifest.precision} on {manifest.device} |",
        f"| what decides | the {manifest.decides} |", "",
    ]  # fmt: skip
    if policy:
        lines += ["## Policy", "", *(f"> {line}" for line in policy.splitlines()), ""]
    lines += ["## How it was made", ""]
    for name, facts in stages.items():
        told = ", ".join(
            f"{key} {value}" for key, value in facts.items() if not isinstance(value, dict) and key != "made by"
        )
        nested = ", ".join(f"{key} {value}" for key, value in facts.get("parity", {}).items())
        lines.append(f"- **{name}**: {told or nested}")
    lines += ["", "## How good it is", "", "On rows that were held out; F1 of the positive class, in percent.", ""]
    lines += ["| reasoning | rows of | rows | F1 | precision | recall | unreadable | F1 of the written answers |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for result in results:
        for name, scores in result["benchmarks"].items():
            cells = [
                result["reasoning"], name, scores["rows"], scores["f1"], scores["precision"], scores["recall"],
                scores["unreadable"], scores.get("written_f1", "not run"),
            ]  # fmt: skip
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "", "## Limits", "",
        "It knows what its rows taught it, and figures on a few rows are rough. Try it on traffic of your own, and set",
        "its thresholds with `guardreasoner calibrate` where you have more labelled rows.", "",
    ]  # fmt: skip
    path = directory / "MODEL_CARD.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path

"""The command that attacks a guard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_options import Device, Model, Reasoning, open_guard

if TYPE_CHECKING:
    from .siege import Row


def attack(
    out: Annotated[Path | None, typer.Option(help="Where the figures are written, as JSON.")] = None,
    every: Annotated[
        int, typer.Option(min=1, help="Each attack on one text in so many, another one first for each: a quicker look.")
    ] = 1,
    long: Annotated[
        int, typer.Option(min=0, help="Texts of each kind that are padded with 30,000 tokens; each takes a minute.")
    ] = 1,
    reasoning: Reasoning = "never",
    model: Model = "bundled",
    device: Device = "auto",
) -> None:
    """Attack a guard: unsafe texts in disguise, and what the defences cost on harmless ones."""
    from rich.console import Console
    from rich.progress import track

    from .attacks import cases
    from .siege import Siege, rows

    guard = open_guard(model, reasoning, device)
    siege, suite = Siege(guard), list(cases(every=every, costly=long))
    outcomes = list(track(siege.run(suite), "attack", total=len(suite), console=Console(stderr=True)))
    families = [*rows(outcomes), *rows(outcomes, "all")]
    typer.echo(table(families))
    texts, views = siege.seconds
    typer.echo(f"\n{guard.judge.engine.name}: the texts took {texts:.0f} s to judge, their views {views:.0f} s more")
    if out is not None:
        result: dict[str, Any] = {
            "model": guard.judge.manifest.name,
            "reasoning": reasoning,
            "seconds": {"texts": round(texts, 1), "views": round(views, 1)},
            "families": [row.model_dump() for row in families],
            "attacks": [row.model_dump() for row in rows(outcomes, "name")],
            "slipped through": [
                {"family": one.case.attack.family, "attack": one.case.attack.name, "text": one.case.text.name}
                for one in outcomes
                if one.case.text.harmful and one.plain and not one.defended
            ],
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1), encoding="utf-8")


def table(families: list[Row]) -> str:
    """Rows as a table in Markdown."""
    lines = [
        "| family | cases | blocked when plain | in disguise, without views | with views | % | harmless texts | "
        "blocked in disguise, without views | with views |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in families:
        counts = (row.cases, row.plain, row.without, row.defended, f"{100 * row.share:.1f}")
        cells = (row.name, *counts, row.controls, row.false_without, row.false_defended)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)

"""The command that judges files: on this machine, by servers that hold the model, or on a Ray cluster."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_options import Device, Model, Reasoning, open_guard, read_columns, served_guard
from .errors import BadInput

_BATCHES_A_SERVER = 4
"""Batches under way at once for each server, so that none waits for the slowest row of another's."""


def moderate(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="The rows, .jsonl, .csv or .parquet: request, and perhaps response and id.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Where one verdict a row is written, in order: .jsonl, .csv or .parquet.")],
    column: Annotated[list[str] | None, typer.Option(help="FIELD=COLUMN; repeatable: request, response, id.")] = None,
    bad_rows: Annotated[
        str,
        typer.Option(
            help="Rows that cannot be judged as they are: stop, before anything is judged, or block, as failures."
        ),
    ] = "stop",
    batch: Annotated[int, typer.Option(min=1, help="Rows judged together.")] = 64,
    reasoning: Reasoning = "adaptive",
    model: Model = "bundled",
    device: Device = "auto",
    url: Annotated[
        list[str] | None,
        typer.Option(
            help="An OpenAI-compatible server (vLLM) that holds the model; --model is its name. Repeatable: the "
            "rows are spread over all of them."
        ),
    ] = None,
    template: Annotated[
        str, typer.Option(help="With --url: the wording the model was trained on.")
    ] = "guardreasoner/1",
    actors: Annotated[
        int | None,
        typer.Option(min=1, help="Judge on Ray (RAY_ADDRESS, or this machine), by so many actors with a guard each."),
    ] = None,
    cpus: Annotated[float, typer.Option(min=0.0, help="With --actors: processors for each.")] = 1.0,
    gpus: Annotated[float, typer.Option(min=0.0, help="With --actors: GPUs for each.")] = 0.0,
) -> None:
    """Judge the rows of a file in batches. A run that was stopped or killed goes on when it is started again."""
    if bad_rows not in ("stop", "block"):
        raise BadInput(f"bad-rows is {bad_rows!r}. Choose stop or block.")
    make = partial(open_guard, model, reasoning, device)
    if url:
        make = partial(served_guard, url, model, template, reasoning)
    settings: dict[str, Any] = {"columns": read_columns(column or []), "bad_rows": bad_rows, "batch": batch}
    if actors is None:
        from guardreasoner_guard.integrations.bulk import moderate as run

        counts = run(make(), source, out, **settings, at_once=_BATCHES_A_SERVER * len(url or []) or 1)
    else:
        from guardreasoner_guard.integrations.ray_bulk import moderate as run_on_ray

        counts = run_on_ray(make, source, out, **settings, concurrency=actors, num_cpus=cpus, num_gpus=gpus)
    typer.echo(
        f"{counts.rows} rows, {counts.answered} of them with a response: passed {counts.passed}, "
        f"blocked {counts.blocked}, failure {counts.failure}, timeout {counts.timeout}"
    )

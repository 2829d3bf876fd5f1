"""The commands that put a guard to the proof: evaluations, reports, label correction, replays, calibration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_options import Device, Model, Reasoning, checked_device, open_guard, served_guard
from .errors import BadInput


def evaluate(
    data: Annotated[
        str,
        typer.Option(
            help="JSON lines, or a folder of them: id, benchmark, task, prompt, response, label; or the authors' "
            "benchmark files; or public sets: hub for the thirteen, hub:ToxicChat,SafeRLHF for single ones."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Where the result is written, as JSON.")],
    reasoning: Reasoning = "never",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows of each benchmark.")] = None,
    model: Model = "bundled",
    device: Device = "auto",
    url: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible server (vLLM) that holds the model; --model is its name.")
    ] = None,
    template: Annotated[
        str, typer.Option(help="With --url: the wording the model was trained on.")
    ] = "guardreasoner/1",
    moderation: Annotated[
        str | None, typer.Option(help="A server with OpenAI's /v1/moderations; --model is what it is asked for.")
    ] = None,
) -> None:
    """Score a guard on labelled rows: F1, precision, recall, unreadable answers, tokens and time."""
    from guardreasoner_guard.training.evaluate import evaluate as run
    from guardreasoner_guard.training.evaluation import write_evaluation
    from guardreasoner_guard.training.hub_benchmarks import load_benchmarks
    from guardreasoner_guard.training.moderation import ModerationSubject
    from guardreasoner_guard.training.subject import JudgeSubject, Subject

    rows = load_benchmarks(data, limit)
    subject: Subject
    if moderation is not None:
        subject = ModerationSubject(moderation, "" if model == "bundled" else model)
    else:
        guard = open_guard(model, reasoning, device) if url is None else served_guard([url], model, template, reasoning)
        subject = JudgeSubject(guard.judge, guard.reasoning, guard.policy)
    out.parent.mkdir(parents=True, exist_ok=True)
    journal = out.with_name(f"{out.name}.part")
    result = run(subject, rows, journal)
    write_evaluation(out, result)
    journal.unlink()
    _table(result)


def score(
    outputs: Annotated[Path, typer.Argument(help="JSON lines of predict and label: generated_predictions.jsonl.")],
    benchmark: Annotated[str, typer.Option(help="Which of the thirteen pairs they answer, as BeaverTails.")],
    out: Annotated[Path, typer.Option(help="Where the result is written, as JSON, for `report`.")],
    name: Annotated[str, typer.Option(help="What the report calls the model that wrote them.")] = "saved outputs",
) -> None:
    """Score answers of the published form that were written elsewhere, by the authors' rule and by this package's."""
    from guardreasoner_guard.training.evaluation import evaluation_of, write_evaluation
    from guardreasoner_guard.training.outputs import authors_f1, predictions, read_outputs

    read = read_outputs(outputs, benchmark)
    result, published = evaluation_of(name, "always", predictions(read, benchmark)), authors_f1(read, benchmark)
    write_evaluation(out, {**result, "f1 by the authors' rule": published})
    _table(result)
    typer.echo(f"F1 by the authors' rule: {published}")


def report(
    results: Annotated[list[Path], typer.Argument(help="What `evaluate` wrote; the first is what others are held to.")],
    out: Annotated[Path, typer.Option(help="The page, as HTML.")],
    data: Annotated[
        str | None, typer.Option(help="The rows that were judged, as `evaluate` reads them: shows their texts.")
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="A folder for the figures, as PNG.")] = None,
) -> None:
    """Draw one page from evaluations: beside published guards, with costs, calibration and the worst mistakes."""
    from guardreasoner_guard.training.report import report as run

    run(results, out, data, figures)
    typer.echo(str(out))


def relabel(
    result: Annotated[Path, typer.Argument(help="What `evaluate` wrote, with direct scores.")],
    data: Annotated[str | None, typer.Option(help="The rows that were judged, as `evaluate` reads them.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the table to decide in is written, as CSV.")] = None,
    decided: Annotated[Path | None, typer.Option(help="The table with its last column, decision, filled in.")] = None,
    confidence: Annotated[
        float, typer.Option(min=0.5, max=1.0, help="How sure the guard must be to doubt a label.")
    ] = 0.9,
) -> None:
    """List rows whose label a confident guard contradicts; then score the original and the corrected labels.

    First with --data and --out; fill in the column `decision` where a label is wrong; then with --decided.
    """
    from guardreasoner_guard.training.evaluation import evaluation_of, read_evaluation
    from guardreasoner_guard.training.hub_benchmarks import load_benchmarks
    from guardreasoner_guard.training.relabel import corrected, doubted, read_review, write_review

    evaluation = read_evaluation(result)
    predictions = evaluation.predictions
    if decided is not None:
        decisions = read_review(decided)
        for title, found in (("original", predictions), ("corrected", corrected(predictions, decisions))):
            _table(evaluation_of(evaluation.model, evaluation.reasoning, found), title)
        typer.echo(f"{len(decisions)} labels decided on")
        return
    if data is None or out is None:
        raise BadInput("Pass --data and --out to write the table, or --decided to score it once it is filled in.")
    doubts = doubted(predictions, confidence)
    write_review(out, doubts, load_benchmarks(data))
    typer.echo(f"{len(doubts)} labels doubted: {out}")


def replay(
    log: Annotated[Path, typer.Argument(help="JSON lines or CSV: request, response (may be left out), blocked.")],
    out: Annotated[Path, typer.Option(help="Where each check is written with its new verdict, as JSON lines.")],
    block: Annotated[
        list[str] | None, typer.Option(help="A task whose harm blocks: request, completion, response; repeatable.")
    ] = None,
    threshold: Annotated[
        list[str] | None, typer.Option(help="TASK=PROBABILITY in place of the model's own; repeatable.")
    ] = None,
    reasoning: Reasoning = "never",
    model: Model = "bundled",
    device: Device = "auto",
) -> None:
    """Judge a log of past checks again, by another guard, threshold or policy, and tell what would have changed."""
    from .guard import GuardReasonerGuard
    from .model_dir import open_model
    from .onnx_engine import shared_engine
    from .policy import Policy
    from .replay import counts, read_log
    from .replay import replay as run
    from .verdict import TASKS

    checks = read_log(log)
    unknown = [task for task in block or [] if task not in TASKS]
    if unknown:
        raise BadInput(f"block is {unknown[0]!r}. Choose from {', '.join(TASKS)}.")
    policy = Policy(block=tuple(block)) if block else Policy()  # type: ignore[arg-type]  # checked above
    if threshold:
        directory = open_model(model)
        manifest = directory.manifest.model_copy(
            update={"thresholds": {**directory.manifest.thresholds, **_thresholds(threshold)}}
        )
        engine = shared_engine(directory, checked_device(device))
        guard = GuardReasonerGuard(engine, reasoning=reasoning, policy=policy, manifest=manifest)  # type: ignore[arg-type]
    else:
        guard = open_guard(model, reasoning, device, policy=policy)
    replayed = run(guard, checks)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(f"{one.model_dump_json()}\n" for one in replayed), encoding="utf-8")
    typer.echo(", ".join(f"{change} {count}" for change, count in counts(replayed).items()))


def calibrate(
    result: Annotated[Path, typer.Argument(help="What `evaluate` wrote, with direct scores.")],
    model: Annotated[Path, typer.Option(help="The model directory that is set.")],
    false_positives: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Set thresholds alone: so large a share of harmless rows may be flagged."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Where a reliability plot is drawn, as PNG.")] = None,
) -> None:
    """Set what a model's scores mean, its thresholds and its band of doubt: fitted on half of an evaluation's rows.

    With --false-positives only thresholds are set, for the share of a log of harmless traffic (rows labelled
    unharmful or compliance) that may be flagged; all its rows count.
    """
    from guardreasoner_guard.training import calibrate as run
    from guardreasoner_guard.training.evaluation import read_predictions
    from guardreasoner_guard.training.export import set_thresholds

    from .model_dir import open_model

    predictions = read_predictions(result)
    if false_positives is not None:
        thresholds = run.threshold_for(predictions, false_positives)
        set_thresholds(model, thresholds)
        typer.echo(json.dumps(thresholds))
        return
    fitted = run.calibrate(predictions, open_model(model).manifest)
    run.set_calibration(model, fitted)
    if plot is not None:
        run.draw_reliability(predictions, fitted, plot)
    for task, one in fitted.items():
        typer.echo(json.dumps({"task": task, **one.model_dump()}))


def _thresholds(pairs: list[str]) -> dict[str, float]:
    from .verdict import TASKS

    found: dict[str, float] = {}
    for pair in pairs:
        task, _, value = pair.partition("=")
        try:
            found[task] = float(value)
        except ValueError:
            found[task] = -1.0
        if task not in TASKS or not 0 < found[task] < 1:
            raise BadInput(f"threshold is {pair!r}. Write TASK=PROBABILITY, as request=0.3.")
    return found


def _table(result: dict[str, Any], kind: str = "") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['model']}, reasoning {result['reasoning']}{kind and f', {kind} labels'}")
    for column in ("benchmark", "task", "rows", "F1", "precision", "recall", "unreadable", "tokens", "ms"):
        table.add_column(column, justify="left" if column in ("benchmark", "task") else "right")
    for name, s in result["benchmarks"].items():
        cells = (
            s["task"],
            s["rows"],
            s["f1"],
            s["precision"],
            s["recall"],
            s["unreadable"],
            s["tokens"],
            s["milliseconds"],
        )
        table.add_row(name, *map(str, cells))
    console = Console()
    console.print(table)
    for title in ("averages", "averages of the written answers", "fitted on one half, scored on the other"):
        if title in result:
            console.print(f"{title}: " + ", ".join(f"{name} {value}" for name, value in result[title].items()))

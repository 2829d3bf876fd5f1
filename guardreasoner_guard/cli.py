"""The `guardreasoner` command. Each sub-command imports what it needs, so that `--help` is instant."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_train import train
from .errors import BadInput, GuardError

if TYPE_CHECKING:
    from .guard import GuardReasonerGuard
    from .verdict import Verdict

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
app.add_typer(train, name="train")

Model = Annotated[str, typer.Option(help="bundled, a model directory, or a hub id.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Reasoning = Annotated[str, typer.Option(help="adaptive, always or never.")]


@app.command()
def check(
    text: Annotated[str | None, typer.Argument(help="The request; read from stdin where it is left out.")] = None,
    response: Annotated[str | None, typer.Option(help="The answer to judge with it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    reasoning: Reasoning = "adaptive",
    model: Model = "bundled",
    device: Device = "auto",
) -> None:
    """Judge one request, or one exchange."""
    request = text if text is not None else sys.stdin.read()
    guard = _guard(model, reasoning, device)
    verdict = guard.check(request, response)
    if as_json:
        typer.echo(json.dumps(as_record(verdict), ensure_ascii=False))
    else:
        _show(verdict)


@app.command()
def evaluate(
    data: Annotated[
        Path, typer.Option(help="JSON lines, or a folder of them: id, benchmark, task, prompt, response, label.")
    ],
    out: Annotated[Path, typer.Option(help="Where the result is written, as JSON.")],
    reasoning: Reasoning = "never",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows of each benchmark.")] = None,
    model: Model = "bundled",
    device: Device = "auto",
) -> None:
    """Score a guard on labelled rows: F1, precision, recall, unreadable answers, tokens and time."""
    from guardreasoner_guard.training.benchmarks import read_benchmarks
    from guardreasoner_guard.training.evaluate import evaluate as run

    rows = read_benchmarks(data, limit)
    guard = _guard(model, reasoning, device)
    out.parent.mkdir(parents=True, exist_ok=True)
    result = run(guard.judge, rows, guard.reasoning, guard.policy, out.with_name(f"{out.name}.part"))
    out.write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    _table(result)


@app.command()
def demo(model: Model = "bundled", device: Device = "auto", reasoning: Reasoning = "adaptive") -> None:
    """A guarded chatbot session: exchanges that pass, a request and an answer that do not, with the reasons."""
    from .demo import session

    session(_guard(model, reasoning, device))


@app.command()
def doctor(model: Model = "bundled", device: Device = "auto") -> None:
    """Versions, devices, model, one real check; what is missing and how to get it."""
    from .doctor import examine

    if not examine(model, device):
        raise typer.Exit(1)


@app.command()
def bench(
    out: Annotated[Path, typer.Option(help="Where the figures are written, as JSON.")],
    plot: Annotated[Path | None, typer.Option(help="Where they are drawn, as PNG.")] = None,
    peers: Annotated[
        Path | None, typer.Option(help="Time llama.cpp, transformers and optimum too; their files are kept here.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each thing is timed.")] = 15,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each number of callers is kept up.")] = 8.0,
    model: Model = "bundled",
    device: Device = "auto",
) -> None:
    """Measure what guarding costs: latency, model tokens, throughput, memory, start; and other runtimes beside it."""
    from . import bench as run

    measured = run.Bench(model, _device(device), rounds, seconds)
    others = []
    if peers is not None:
        from guardreasoner_guard.training.peers import peers as find

        others = find(measured.directory, peers)
    result = measured.run(others)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    if plot is not None:
        run.draw(result, plot)
    typer.echo(json.dumps(result, indent=1))


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(help="A transformers folder, or a hub id.")],
    out: Annotated[Path, typer.Option(help="The model directory to make.")],
    rows: Annotated[
        Path | None, typer.Option(help="JSON lines of real rows, for parity; left out, a few that ship are taken.")
    ] = None,
    name: Annotated[str, typer.Option(help="What verdicts call the model.")] = "guard",
    template: Annotated[
        str, typer.Option(help="Wording it was trained on: short/1, short/2, guardreasoner/1; left out, it is found.")
    ] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="int8, int4 or fp32 on cpu, fp16 or int4 on cuda.")] = "int8",
    decides: Annotated[str, typer.Option(help="What judges: score, or reasoning.")] = "reasoning",
    max_error: Annotated[float, typer.Option(help="Largest mean distance of log-odds from torch's.")] = 1.0,
    cuda_graph: Annotated[bool, typer.Option(help="Capture the decoding step as a CUDA graph.")] = False,
) -> None:
    """Turn a checkpoint into a model directory and measure how far it is from the torch model."""
    from guardreasoner_guard.training.export import export as run
    from guardreasoner_guard.training.rows import SeedRow, read_rows

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sample: dict[str, Any] = {} if rows is None else {"rows": list(read_rows(rows, SeedRow))[:200]}
    run(
        checkpoint, out, name=name, template_version=template, device=device, precision=precision, decides=decides,
        max_error=max_error, cuda_graph=cuda_graph, **sample,
    )  # fmt: skip
    typer.echo(f"GuardReasonerGuard({str(out)!r})")


@app.command()
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
    from guardreasoner_guard.training.export import set_thresholds
    from guardreasoner_guard.training.prediction import Prediction

    from .model_dir import open_model

    predictions = [Prediction(**item) for item in json.loads(result.read_text(encoding="utf-8"))["predictions"]]
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


def as_record(verdict: Verdict) -> dict[str, Any]:
    """A verdict as `check --json` prints it."""
    return {
        "request": verdict.request,
        "completion": verdict.completion,
        "response": verdict.response,
        "blocked": verdict.blocked,
        "scores": {task: round(score, 6) for task, score in verdict.scores.items()},
        "reasons": verdict.reasons,
        "reasoning": [step.model_dump() for step in verdict.reasoning],
        "mode": verdict.mode,
        "outcome": verdict.outcome,
        "consistent": verdict.consistent,
        "latency_ms": verdict.usage.latency_ms,
        "tokens": verdict.usage.prompt_tokens + verdict.usage.generated_tokens,
        "model": verdict.model,
    }


def main() -> None:
    """Runs the command; an error of ours is one line, not a traceback."""
    try:
        app()
    except GuardError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(2)


def _guard(model: str, reasoning: str, device: str) -> GuardReasonerGuard:
    from .guard import GuardReasonerGuard

    if reasoning not in ("adaptive", "always", "never"):
        raise BadInput(f"reasoning is {reasoning!r}. Choose adaptive, always or never.")
    return GuardReasonerGuard(model, reasoning=reasoning, device=_device(device))  # type: ignore[arg-type]  # checked above


def _device(device: str) -> Any:
    if device not in ("auto", "cpu", "cuda"):
        raise BadInput(f"device is {device!r}. Choose auto, cpu or cuda.")
    return device


def _show(verdict: Verdict) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    colour = "red" if verdict.blocked else "green"
    console.print(
        f"[bold {colour}]{'blocked' if verdict.blocked else 'passed'}[/]  ({verdict.outcome}, {verdict.mode})"
    )
    for task in ("request", "completion", "response"):
        label = getattr(verdict, task)
        if label is not None:
            score = verdict.scores.get(task)
            console.print(f"  {task:<11}{label}" + (f"  [dim]p = {score:.3f}[/]" if score is not None else ""))
    for step in verdict.reasoning:
        console.print(f"  [dim]{step.task}.{step.number}[/] {escape(step.text)}")
    if verdict.error:
        console.print(f"  {escape(verdict.error)}")
    usage = verdict.usage
    console.print(
        f"  [dim]{usage.latency_ms:.0f} ms, {usage.prompt_tokens} + {usage.generated_tokens} tokens, {verdict.model}[/]"
    )


def _table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['model']}, reasoning {result['reasoning']}")
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

"""The `guardreasoner` command. Each sub-command imports what it needs, so that `--help` is instant."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from .cli_attack import attack
from .cli_evaluate import calibrate, evaluate, relabel, replay, report, score
from .cli_moderate import moderate
from .cli_options import Category, Device, Model, PolicyFile, Reasoning, checked_device, open_guard, read_policy
from .cli_serve import serve
from .cli_train import train
from .errors import GuardError, MissingExtra

if TYPE_CHECKING:
    from .verdict import Verdict

_TRAIN = set(
    "accelerate datasets jinja2 matplotlib onnx optimum peft pyarrow scipy sklearn torch transformers trl".split()
)
"""Packages that the `train` extra brings."""

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
app.add_typer(train, name="train")
for command in (evaluate, score, report, relabel, replay, calibrate, attack, moderate, serve):
    app.command()(command)


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
    guard = open_guard(model, reasoning, device)
    verdict = guard.check(request, response)
    if as_json:
        typer.echo(json.dumps(as_record(verdict), ensure_ascii=False))
    else:
        _show(verdict)


@app.command()
def demo(model: Model = "bundled", device: Device = "auto", reasoning: Reasoning = "adaptive") -> None:
    """A guarded chatbot session: exchanges that pass, a request and an answer that do not, with the reasons."""
    from .demo import session

    session(open_guard(model, reasoning, device))


@app.command()
def doctor(
    model: Model = "bundled",
    device: Device = "auto",
    security: Annotated[
        bool, typer.Option("--security", help="Whether code, model and runtime are as shipped.")
    ] = False,
) -> None:
    """Versions, devices, model, one real check; what is missing and how to get it."""
    from .doctor import examine
    from .security import inspect

    if not (inspect(model) if security else examine(model, device)):
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

    measured = run.Bench(model, checked_device(device), rounds, seconds)
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
def soak(
    out: Annotated[Path, typer.Option(help="Where the figures are written, as JSON.")],
    minutes: Annotated[float, typer.Option(min=0.01, help="For how long.")] = 30.0,
    callers: Annotated[int, typer.Option(min=3, help="Callers at once.")] = 64,
    model: Model = "bundled",
    device: Device = "auto",
    reasoning: Reasoning = "adaptive",
) -> None:
    """Keep a guard under mixed load: is every check answered, with its own verdict, and is memory flat?"""
    from .policy import Policy
    from .soak import Soak

    policy = Policy(block=("request",))
    guard = open_guard(model, reasoning, device, policy=policy, remember=0.0, on_failure="raise")
    result = Soak(guard, callers, 60 * minutes).run()
    out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    typer.echo(json.dumps({key: value for key, value in result.items() if key != "megabytes"}, indent=1))


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
    policy: PolicyFile = None,
    category: Category = None,
) -> None:
    """Turn a checkpoint into a model directory and measure how far it is from the torch model.

    The policy is the one it was trained with; a checkpoint that was made here says it itself.
    """
    from guardreasoner_guard.training.export import export as run
    from guardreasoner_guard.training.rows import SeedRow, read_rows

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sample: dict[str, Any] = {} if rows is None else {"rows": list(read_rows(rows, SeedRow))[:200]}
    run(
        checkpoint, out, name=name, template_version=template, device=device, precision=precision, decides=decides,
        max_error=max_error, cuda_graph=cuda_graph, policy=read_policy(policy, category) or None, **sample,
    )  # fmt: skip
    typer.echo(f"GuardReasonerGuard({str(out)!r})")


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
    except ModuleNotFoundError as error:
        if error.name not in _TRAIN:
            raise
        _end(f"MissingExtra: {MissingExtra(error.name, 'train')}")
    except GuardError as error:
        _end(f"{type(error).__name__}: {error}")
    except Exception as error:
        from guardreasoner_guard.training.disk import is_full_disk

        if not is_full_disk(error):
            raise
        _end(f"The disk is full: {error}. Free some room and run the same command again.")


def _end(why: str) -> NoReturn:
    typer.echo(why, err=True)
    sys.exit(2)


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

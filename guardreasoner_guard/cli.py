"""The `guardreasoner` command. Each sub-command imports what it needs, so that `--help` is instant."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import BadInput, GuardError

if TYPE_CHECKING:
    from guardreasoner_guard.training.teacher import Teacher

    from .guard import GuardReasonerGuard
    from .verdict import Verdict

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
train = typer.Typer(no_args_is_help=True, help="Make a guard model: each stage reads what the former wrote.")
app.add_typer(train, name="train")

Model = Annotated[str, typer.Option(help="bundled, a model directory, or a hub id.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
RECIPES = "bundled, custom, tiny, 1b, 3b, 8b, or a .toml file."
TeacherName = Annotated[
    str, typer.Option(help="annotation (none needed), openai:gpt-4o and the like, or what the server calls it.")
]
TeacherUrl = Annotated[str | None, typer.Option(help="An OpenAI-compatible server, as http://localhost:8000/v1.")]
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
    result = run(guard.judge, rows, guard.reasoning, guard.policy)
    out.parent.mkdir(parents=True, exist_ok=True)
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
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A transformers folder.")],
    rows: Annotated[Path, typer.Option(help="JSON lines of real rows, for parity.")],
    out: Annotated[Path, typer.Option(help="The model directory to make.")],
    name: Annotated[str, typer.Option(help="What verdicts call the model.")] = "guard",
    template: Annotated[str, typer.Option(help="Wording it was trained on: short/1, or guardreasoner/1.")] = "short/1",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="int8 or fp32 on cpu, fp16 or int4 on cuda.")] = "int8",
    decides: Annotated[str, typer.Option(help="What judges: score, or reasoning.")] = "reasoning",
    max_error: Annotated[float, typer.Option(help="Largest mean distance of log-odds from torch's.")] = 1.0,
) -> None:
    """Turn a checkpoint into a model directory and measure how far it is from the torch model."""
    from guardreasoner_guard.training.export import export as run
    from guardreasoner_guard.training.rows import SeedRow, read_rows

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sample = list(read_rows(rows, SeedRow))[:200]
    run(
        checkpoint, out, name=name, template_version=template, rows=sample,
        device=device, precision=precision, decides=decides, max_error=max_error,
    )  # fmt: skip
    typer.echo(f"GuardReasonerGuard({str(out)!r})")


@app.command()
def calibrate(
    result: Annotated[Path, typer.Argument(help="What `evaluate` wrote, with direct scores.")],
    model: Annotated[Path, typer.Option(help="The model directory whose thresholds are set.")],
) -> None:
    """Set a model's thresholds: one a task, fitted on the first half of an evaluation's rows."""
    from guardreasoner_guard.training.evaluate import Prediction, shipped_thresholds
    from guardreasoner_guard.training.export import set_thresholds

    predictions = [Prediction(**item) for item in json.loads(result.read_text(encoding="utf-8"))["predictions"]]
    thresholds = shipped_thresholds(predictions)
    set_thresholds(model, thresholds)
    typer.echo(json.dumps(thresholds))


@train.command()
def synthesize(
    data: Annotated[Path, typer.Option(help="Folder the recipe's files lie in.")],
    out: Annotated[Path, typer.Option(help="Folder for reasoning.jsonl and rejected.jsonl.")],
    recipe: Annotated[str, typer.Option(help=RECIPES)] = "bundled",
    teacher: TeacherName = "annotation",
    url: TeacherUrl = None,
    decide: Annotated[
        list[str] | None, typer.Option(help="A task the teacher labels where the seed does not; repeatable.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Rows asked about at once.")] = 8,
    requests_per_minute: Annotated[float | None, typer.Option(min=0.01, help="Asked no faster than this.")] = None,
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds one answer may take.")] = 120.0,
    price_in: Annotated[float, typer.Option(min=0.0, help="Price of a million tokens read.")] = 0.0,
    price_out: Annotated[float, typer.Option(min=0.0, help="Price of a million tokens written.")] = 0.0,
) -> None:
    """Draw the recipe's seeds and have a teacher write reasoning for its share of them."""
    from guardreasoner_guard.training.recipe import load_recipe
    from guardreasoner_guard.training.synthesize import synthesize as run

    chosen = load_recipe(recipe)
    unknown = set(decide or []) - {"request", "completion", "response"}
    if unknown:
        raise BadInput(f"--decide is {unknown.pop()!r}. Choose request, completion or response.")
    settings = {
        "decide": tuple(decide or ()), "concurrency": concurrency, "requests_per_minute": requests_per_minute,
        "timeout": timeout,
    }  # fmt: skip
    path = run(chosen, data, _teacher(teacher, url, chosen.seed, **settings), out)
    facts = json.loads((out / "synthesize.json").read_text(encoding="utf-8"))
    _statistics(facts, (facts["prompt_tokens"] * price_in + facts["generated_tokens"] * price_out) / 1e6)
    typer.echo(path)


@train.command()
def rsft(
    rows: Annotated[Path, typer.Option(help="reasoning.jsonl.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and the finished model.")],
    recipe: Annotated[str, typer.Option(help=RECIPES)] = "bundled",
    base: Annotated[str | None, typer.Option(help="Base model in place of the recipe's.")] = None,
) -> None:
    """Fine-tune the base model on reasoning rows; a run that was stopped goes on."""
    from guardreasoner_guard.training.recipe import load_recipe
    from guardreasoner_guard.training.rsft import rsft as run

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    typer.echo(run(load_recipe(recipe), rows, out, base))


@train.command()
def mine(
    rows: Annotated[Path, typer.Option(help="reasoning.jsonl the model learned from.")],
    model: Annotated[str, typer.Option(help="Its checkpoint, its model directory, or the URL of a server (vLLM).")],
    out: Annotated[Path, typer.Option(help="Folder for samples.jsonl and pairs.jsonl.")],
    recipe: Annotated[str, typer.Option(help=RECIPES)] = "bundled",
    name: Annotated[str, typer.Option(help="What the server calls the model.")] = "",
    source: Annotated[list[str] | None, typer.Option(help="Only rows of this source; repeatable.")] = None,
    policy: Annotated[str, typer.Option(help="The policy the model was trained with.")] = "",
) -> None:
    """Sample answers to the training rows and keep the hard ones as weighted pairs."""
    from guardreasoner_guard.training.mine import mine as run
    from guardreasoner_guard.training.mine import open_engine
    from guardreasoner_guard.training.recipe import load_recipe

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    typer.echo(run(load_recipe(recipe), rows, open_engine(model, name), out, policy=policy, sources=source))


@train.command()
def hsdpo(
    pairs: Annotated[list[Path], typer.Option(help="pairs.jsonl; repeatable, the first kept of duplicates.")],
    model: Annotated[Path, typer.Option(help="The R-SFT checkpoint.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and the finished model.")],
    recipe: Annotated[str, typer.Option(help=RECIPES)] = "bundled",
) -> None:
    """Train a fine-tuned model to prefer the right answers of hard samples."""
    from guardreasoner_guard.training.hsdpo import hsdpo as run
    from guardreasoner_guard.training.recipe import load_recipe

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    typer.echo(run(load_recipe(recipe), pairs, model, out))


@train.command(name="all")
def train_all(
    data: Annotated[str, typer.Option(help="Labelled rows: .csv, .jsonl, .parquet, or a hub data set as id:split.")],
    out: Annotated[Path, typer.Option(help="The model directory to make; the stages lie in OUT-stages.")],
    base: Annotated[str | None, typer.Option(help="Hub id, folder, folder/file.gguf, or bundled.")] = None,
    test: Annotated[str | None, typer.Option(help="Rows to test on; else a fifth is held out.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="FIELD=COLUMN; repeatable: prompt, response, prompt_harm, ...")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="A text file: what is harmful here.")] = None,
    category: Annotated[list[str] | None, typer.Option(help="A kind of harm; repeatable.")] = None,
    recipe: Annotated[str, typer.Option(help=RECIPES)] = "custom",
    teacher: TeacherName = "annotation",
    url: TeacherUrl = None,
) -> None:
    """Make a guard from your own labelled rows: every stage, an evaluation and a model card."""
    from guardreasoner_guard.training.recipe import load_recipe
    from guardreasoner_guard.training.school import train_all as run

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chosen = load_recipe(recipe)
    wording = _read(policy) if policy else ""
    made = run(
        chosen, data, out, _teacher(teacher, url, chosen.seed, policy=wording), base=base, test=test,
        columns=_columns(column or []), policy=wording, categories=category or [],
    )  # fmt: skip
    typer.echo((made / "MODEL_CARD.md").read_text(encoding="utf-8"))
    typer.echo(f"GuardReasonerGuard({str(made)!r})")


def _teacher(name: str, url: str | None, seed: int, **settings: Any) -> Teacher:
    from guardreasoner_guard.training.annotation import AnnotationTeacher
    from guardreasoner_guard.training.teacher import chat_teacher

    if name == "annotation" and url is None:
        return AnnotationTeacher(seed)
    return chat_teacher(name, url=url, **settings)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read ({error}). Name a UTF-8 text file.") from error


def _columns(pairs: list[str]) -> dict[str, str]:
    columns = {}
    for pair in pairs:
        field, equals, column = pair.partition("=")
        if not (field and equals and column):
            raise BadInput(f"--column is {pair!r}. Write FIELD=COLUMN, as prompt=question.")
        columns[field] = column
    return columns


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
    if device not in ("auto", "cpu", "cuda"):
        raise BadInput(f"device is {device!r}. Choose auto, cpu or cuda.")
    return GuardReasonerGuard(model, reasoning=reasoning, device=device)  # type: ignore[arg-type]  # checked above


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


def _statistics(facts: dict[str, Any], cost: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{facts['rows']} rows, {facts['rejected']} rejected, {facts['asked']} asked about")
    for column in ("source", "samples", "reasoned", "steps", "mean steps", "mean length"):
        table.add_column(column, justify="left" if column == "source" else "right")
    for source, told in facts["statistics"].items():
        table.add_row(source, *(str(told[column.header]) for column in table.columns[1:]))
    console = Console()
    console.print(table)
    if facts["prompt_tokens"]:
        price = f", cost {cost:.2f}" if cost else ""
        console.print(f"{facts['prompt_tokens']} tokens read, {facts['generated_tokens']} written{price}")

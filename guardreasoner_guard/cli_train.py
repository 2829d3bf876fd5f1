"""The `guardreasoner train` commands: one a stage, and one for all of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_options import Category, PolicyFile, read_columns, read_policy
from .errors import BadInput

if TYPE_CHECKING:
    from guardreasoner_guard.training.teacher import Teacher

train = typer.Typer(no_args_is_help=True, help="Make a guard model: each stage reads what the former wrote.")

RECIPES = "bundled, custom, tiny, 1b, 3b, 8b, or a .toml file."
TeacherName = Annotated[
    str, typer.Option(help="annotation (none needed), openai:gpt-4o and the like, or what the server calls it.")
]
TeacherUrl = Annotated[str | None, typer.Option(help="An OpenAI-compatible server, as http://localhost:8000/v1.")]
Decide = Annotated[
    list[str] | None, typer.Option(help="A task the teacher labels where the seed does not; repeatable.")
]
Concurrency = Annotated[int, typer.Option(min=1, help="Rows the teacher is asked about at once.")]
RequestsPerMinute = Annotated[float | None, typer.Option(min=0.01, help="The teacher is asked no faster than this.")]
Timeout = Annotated[float, typer.Option(min=0.01, help="Seconds one answer of the teacher may take.")]
PriceIn = Annotated[float, typer.Option(min=0.0, help="Price of a million tokens the teacher reads.")]
PriceOut = Annotated[float, typer.Option(min=0.0, help="Price of a million tokens it writes.")]


@train.command()
def synthesize(
    data: Annotated[Path, typer.Option(help="Folder the recipe's files lie in.")],
    out: Annotated[Path, typer.Option(help="Folder for reasoning.jsonl and rejected.jsonl.")],
    recipe: Annotated[str, typer.Option(help=RECIPES)] = "bundled",
    teacher: TeacherName = "annotation",
    url: TeacherUrl = None,
    decide: Decide = None,
    policy: PolicyFile = None,
    category: Category = None,
    concurrency: Concurrency = 8,
    requests_per_minute: RequestsPerMinute = None,
    timeout: Timeout = 120.0,
    held_out: Annotated[
        Path | None, typer.Option(help="Benchmarks, as `evaluate` reads them: rows too near one are left out.")
    ] = None,
    price_in: PriceIn = 0.0,
    price_out: PriceOut = 0.0,
) -> None:
    """Draw the recipe's seeds and have a teacher write reasoning for its share of them."""
    from guardreasoner_guard.training.benchmarks import read_benchmarks
    from guardreasoner_guard.training.heldout import HeldOut
    from guardreasoner_guard.training.recipe import load_recipe
    from guardreasoner_guard.training.synthesize import synthesize as run

    chosen = load_recipe(recipe)
    asked = _teacher(
        teacher, url, chosen.seed, decide=decide, policy=read_policy(policy, category), concurrency=concurrency,
        requests_per_minute=requests_per_minute, timeout=timeout,
    )  # fmt: skip
    held = HeldOut(row.prompt for row in read_benchmarks(held_out)) if held_out else None
    path = run(chosen, data, asked, out, held_out=held)
    _statistics(out, price_in, price_out)
    typer.echo(path)


@train.command()
def rsft(
    rows: Annotated[Path, typer.Option(help="reasoning.jsonl.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and the finished model.")],
    recipe: Annotated[str, typer.Option(help=RECIPES)] = "bundled",
    base: Annotated[str | None, typer.Option(help="Base model in place of the recipe's.")] = None,
    policy: PolicyFile = None,
    category: Category = None,
    without: Annotated[
        list[str] | None, typer.Option(help="A source to leave out: a diversity model; repeatable.")
    ] = None,
) -> None:
    """Fine-tune the base model on reasoning rows; a run that was stopped goes on."""
    from guardreasoner_guard.training.recipe import load_recipe
    from guardreasoner_guard.training.rsft import rsft as run

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    typer.echo(run(load_recipe(recipe), rows, out, base, read_policy(policy, category), without=without or []))


@train.command()
def mine(
    rows: Annotated[Path, typer.Option(help="reasoning.jsonl the model learned from.")],
    model: Annotated[str, typer.Option(help="Its checkpoint, its model directory, or the URL of a server (vLLM).")],
    out: Annotated[Path, typer.Option(help="Folder for samples.jsonl and pairs.jsonl.")],
    recipe: Annotated[str, typer.Option(help=RECIPES)] = "bundled",
    name: Annotated[str, typer.Option(help="What the server calls the model.")] = "",
    source: Annotated[list[str] | None, typer.Option(help="Only rows of this source; repeatable.")] = None,
    policy: PolicyFile = None,
    category: Category = None,
) -> None:
    """Sample answers to the training rows and keep the hard ones as weighted pairs.

    The policy is the one the model was trained with; a model that was made here says it itself.
    """
    from guardreasoner_guard.training.base import model_id
    from guardreasoner_guard.training.mine import mine as run
    from guardreasoner_guard.training.mine import open_engine
    from guardreasoner_guard.training.recipe import load_recipe
    from guardreasoner_guard.training.wording import policy_of

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chosen = load_recipe(recipe)
    own = policy_of(Path(model), chosen.sft.template)
    engine = open_engine(model, name)
    told = "" if "://" in model else model_id(model)
    typer.echo(run(chosen, rows, engine, out, policy=read_policy(policy, category) or own, sources=source, model=told))


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


@train.command()
def average(
    models: Annotated[list[str], typer.Argument(help="Two or more checkpoints or exported guards, of one base.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
) -> None:
    """Write the mean of several models' weights: trainings that went on from one model, in one."""
    from guardreasoner_guard.training.average import average as run

    typer.echo(run(models, out))


@train.command(name="all")
def train_all(
    data: Annotated[str, typer.Option(help="Labelled rows: .csv, .jsonl, .parquet, or a hub data set as id:split.")],
    out: Annotated[Path, typer.Option(help="The model directory to make; the stages lie in OUT-stages.")],
    base: Annotated[str | None, typer.Option(help="Hub id, folder, folder/file.gguf, or bundled.")] = None,
    test: Annotated[str | None, typer.Option(help="Rows to test on; else a fifth is held out.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="FIELD=COLUMN; repeatable: prompt, response, prompt_harm, ...")
    ] = None,
    policy: PolicyFile = None,
    category: Category = None,
    recipe: Annotated[str, typer.Option(help=RECIPES)] = "custom",
    teacher: TeacherName = "annotation",
    url: TeacherUrl = None,
    decide: Decide = None,
    concurrency: Concurrency = 8,
    requests_per_minute: RequestsPerMinute = None,
    timeout: Timeout = 120.0,
    price_in: PriceIn = 0.0,
    price_out: PriceOut = 0.0,
) -> None:
    """Make a guard from your own labelled rows: every stage, an evaluation and a model card."""
    from guardreasoner_guard.training.recipe import load_recipe
    from guardreasoner_guard.training.school import stages_of
    from guardreasoner_guard.training.school import train_all as run

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chosen = load_recipe(recipe)
    wording = read_policy(policy, category)
    asked = _teacher(
        teacher, url, chosen.seed, decide=decide, policy=wording, concurrency=concurrency,
        requests_per_minute=requests_per_minute, timeout=timeout,
    )  # fmt: skip
    made = run(
        chosen, data, out, asked, base=base, test=test, columns=read_columns(column or []), policy=wording
    )  # fmt: skip
    _statistics(stages_of(out) / "reasoning", price_in, price_out)
    typer.echo((made / "MODEL_CARD.md").read_text(encoding="utf-8"))
    typer.echo(f"GuardReasonerGuard({str(made)!r})")


def _teacher(name: str, url: str | None, seed: int, *, decide: Sequence[str] | None, **settings: Any) -> Teacher:
    from guardreasoner_guard.training.annotation import AnnotationTeacher
    from guardreasoner_guard.training.teacher import chat_teacher

    if unknown := set(decide or []) - {"request", "completion", "response"}:
        raise BadInput(f"--decide is {unknown.pop()!r}. Choose request, completion or response.")
    if name == "annotation" and url is None:
        if decide:
            raise BadInput(
                "The annotation teacher decides nothing. Name a chat model with --teacher, or drop --decide."
            )
        return AnnotationTeacher(seed)
    return chat_teacher(name, url=url, decide=tuple(decide or ()), **settings)


def _statistics(reasoning: Path, price_in: float, price_out: float) -> None:
    """Prints what a synthesis gave, and what it cost."""
    from rich.console import Console
    from rich.table import Table

    facts = json.loads((reasoning / "synthesize.json").read_text(encoding="utf-8"))
    cost = (facts["prompt_tokens"] * price_in + facts["generated_tokens"] * price_out) / 1e6
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

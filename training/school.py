"""The whole school: a user's labelled rows in, a guard out, stage by stage; a finished stage is skipped."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from guardreasoner_guard.errors import BadInput
from guardreasoner_guard.judge import Judge, Reasoning
from guardreasoner_guard.model_dir import MANIFEST, open_model
from guardreasoner_guard.onnx_engine import OnnxEngine

from .base import load_base, load_tokenizer, model_id
from .benchmarks import ASKS, BenchmarkRow
from .card import write_card
from .disk import full_disk_told
from .encode import plain_ids
from .evaluate import evaluate
from .evaluation import write_evaluation
from .export import export
from .fit import freeze
from .hsdpo import dpo_config, hsdpo
from .mine import mine
from .recipe import Recipe, is_done, made_by_of, mark_done
from .rows import ReasoningRow, SeedRow, fingerprint, read_rows, write_rows
from .rsft import rsft, sft_config
from .subject import JudgeSubject
from .synthesize import synthesize
from .table import check_apart, check_classes, distinct, read_table, split
from .teacher import Teacher
from .torch_engine import TorchEngine

logger = logging.getLogger(__name__)

HELD_OUT = 0.2
"""Share of the rows that is tested on and never learned from, where no test file is given."""


def train_all(
    recipe: Recipe,
    data: str,
    out: Path,
    teacher: Teacher,
    *,
    base: str | None = None,
    test: str | None = None,
    columns: Mapping[str, str] | None = None,
    policy: str = "",
) -> Path:
    """Makes a guard from a user's own labelled rows: synthesis, R-SFT, hard samples, HS-DPO, export, evaluation.

    Args:
        recipe: `custom`, or one of your own with the single source `rows.jsonl`.
        data: A `.csv`, `.jsonl` or `.parquet` file or a hub data set; see `table.read_table`.
        out: The model directory to make. The stages lie beside it in `OUT-stages`, where a run that was
            stopped goes on; they can be removed afterwards.
        teacher: Who writes the reasoning; it is best told the policy too.
        base: Takes the place of the recipe's base.
        test: Rows to test on; without it a fifth of `data` is held out.
        columns: Which column holds a field.
        policy: What is harmful here, in natural language, perhaps with the kinds of harm (`wording.worded`); it stands
            in the guard's instruction ever after.

    Returns:
        `out`, with the model card and `evaluation-never.json`, `evaluation-always.json` in it.

    Raises:
        BadInput: The rows, the recipe or the base do not do; the message says what to change.
        TeacherError: The teacher could not be asked; what it answered is kept.
        DiskFull: There is no room left; run it again once there is.
    """
    stages = stages_of(out)
    if out.exists() and any(out.iterdir()) and not (out / MANIFEST).exists():
        raise BadInput(f"{out} holds something that is no guard. Name a new folder, or a guard to replace.")
    with full_disk_told(stages):
        seeds = _prepare(recipe, data, test, columns, stages / "data")
        _check(recipe, seeds, base, stages)
        reasoning = synthesize(recipe, seeds, teacher, stages / "reasoning")
        check_classes(
            list(read_rows(reasoning, ReasoningRow)),
            f"left after synthesis (why others are not: {stages}/reasoning/rejected.jsonl)",
            {task for row in read_rows(seeds / "rows.jsonl", SeedRow) for task in row.labels},
        )
        tuned = rsft(recipe, reasoning, stages / "rsft", base, policy)
        pairs = _hard_samples(recipe, reasoning, tuned, stages, base, policy)
        final = _prefer(recipe, pairs, tuned, stages)
        _export(recipe, final, reasoning, out, policy, stages / "export.json")
        results = [_examine(out, stages, mode) for mode in ("never", "always")]
    facts = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in _manifests(stages).items()}
    write_card(out, facts, results, policy)
    return out


def stages_of(out: Path) -> Path:
    """The folder of the stages of the guard that is made at `out`."""
    return out.with_name(f"{out.name}-stages")


def _prepare(recipe: Recipe, data: str, test: str | None, columns: Mapping[str, str] | None, folder: Path) -> Path:
    """Reads, checks and splits the rows into `rows.jsonl` and `test.jsonl`."""
    if [source.file for source in recipe.data.sources] != ["rows.jsonl"]:
        raise BadInput("This recipe names sources of its own. Take `custom`, or one with the single source rows.jsonl.")
    rows = distinct(read_table(data, columns))
    tests = distinct(read_table(test, columns)) if test is not None else None
    made_by = {"rows": _fingerprint(rows), "test": _fingerprint(tests or []), "seed": recipe.seed}
    if not is_done(folder / "data.json", made_by):
        if tests is None:
            rows, tests = split(rows, HELD_OUT, recipe.seed)
        else:
            check_classes(rows, "to learn from")
            check_apart(rows, tests)
        write_rows(folder / "rows.jsonl", rows)
        write_rows(folder / "test.jsonl", tests)
        mark_done(folder / "data.json", made_by, {"to learn from": len(rows), "held out": len(tests)})
    return folder


def _check(recipe: Recipe, folder: Path, base: str | None, stages: Path) -> None:
    """Whether the rows, the base and the recipe do, before a teacher is asked that may cost money."""
    tokenizer = load_tokenizer(base or recipe.sft.base)
    for row in (row for name in ("rows", "test") for row in read_rows(folder / f"{name}.jsonl", SeedRow)):
        if len(plain_ids(tokenizer, row.prompt)) > recipe.data.max_request_tokens:
            raise BadInput(
                f"The request of row {row.id} is longer than {recipe.data.max_request_tokens} "
                "tokens. Shorten or remove it, or raise data.max_request_tokens in a recipe of your own."
            )
    if unknown := set(recipe.mine.leave_out) - {row.source for row in read_rows(folder / "rows.jsonl", SeedRow)}:
        raise BadInput(f"mine.leave_out names {unknown.pop()!r}, which is no source of the rows. Mend the recipe.")
    sft_config(recipe, stages)
    dpo_config(recipe, stages)
    if not (stages / "reasoning" / "synthesize.json").exists():
        model, _ = load_base(base or recipe.sft.base, getattr(torch, recipe.sft.dtype))
        freeze(model, recipe.sft)


def _fingerprint(rows: Sequence[SeedRow]) -> str:
    return hashlib.sha256("\n".join(row.model_dump_json() for row in rows).encode()).hexdigest()


def _hard_samples(
    recipe: Recipe, reasoning: Path, tuned: Path, stages: Path, base: str | None, policy: str
) -> list[Path]:
    """The model's own hard samples, or the paper's ensemble of several models'.

    For the ensemble each source in `leave_out` is left out of one diversity model. Rows of such a source are asked of
    the diversity models that have seen it, rows of the others of the model itself.
    """
    left_out = recipe.mine.leave_out
    sources = {row.source for row in read_rows(reasoning, ReasoningRow)}
    own = [*(sources - {*left_out})] if left_out else None
    found = [_mined(recipe, reasoning, tuned, stages / "mined", policy, own)]
    for source in left_out:
        folder = stages / f"without-{source}"
        other = rsft(recipe, reasoning, folder / "rsft", base, policy, without=[source])
        found.append(_mined(recipe, reasoning, other, folder / "mined", policy, [*({*left_out} - {source})]))
    return found


def _mined(recipe: Recipe, rows: Path, model: Path, out: Path, policy: str, sources: list[str] | None) -> Path:
    name = model_id(str(model))
    return mine(recipe, rows, TorchEngine(model), out, policy=policy, sources=sources, model=name)


def _prefer(recipe: Recipe, pairs: Sequence[Path], tuned: Path, stages: Path) -> Path:
    """HS-DPO, where there is a hard sample to learn from."""
    if not any(path.stat().st_size for path in pairs):
        logger.warning("The model answers every row always right or always wrong: there is no hard sample for HS-DPO.")
        return tuned
    return hsdpo(recipe, pairs, tuned, stages / "hsdpo")


def _export(recipe: Recipe, final: Path, reasoning: Path, out: Path, policy: str, manifest: Path) -> None:
    made_by = {"model": json.loads((final / "done.json").read_text(encoding="utf-8")), "policy": policy}
    if is_done(manifest, made_by) and (out / MANIFEST).exists():
        return
    rows = list(read_rows(reasoning, ReasoningRow))[:200]
    export(final, out, name=out.name, template_version=recipe.sft.template, policy=policy, rows=rows, decides="score")
    mark_done(manifest, made_by, {"parity": open_model(out).manifest.parity})


def _examine(out: Path, stages: Path, reasoning: Reasoning) -> dict[str, Any]:
    """Evaluates the guard on the held-out rows and writes `evaluation-MODE.json` into its directory, once."""
    path, test = out / f"evaluation-{reasoning}.json", stages / "data" / "test.jsonl"
    manifest, made_by = stages / path.name, {"guard": model_id(str(out)), "test": fingerprint(test)}
    if path.exists() and manifest.exists() and made_by_of(manifest) == made_by:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    rows = [
        BenchmarkRow(id=row.id, benchmark=f"held out, {name}", task=name, prompt=row.prompt, response=row.response,
                     label=row.labels[task])
        for name, task in ASKS.items() for row in read_rows(test, SeedRow) if task in row.labels
    ]  # fmt: skip
    model = open_model(out)
    result = evaluate(JudgeSubject(Judge(OnnxEngine(model, "cpu"), model.manifest), reasoning), rows)
    write_evaluation(path, result)
    mark_done(manifest, made_by, {})
    return result


def _manifests(stages: Path) -> dict[str, Path]:
    where = {
        "data": stages / "data" / "data.json", "synthesis": stages / "reasoning" / "synthesize.json",
        "R-SFT": stages / "rsft" / "model" / "done.json", "hard samples": stages / "mined" / "mine.json",
        "HS-DPO": stages / "hsdpo" / "model" / "done.json", "export": stages / "export.json",
    }  # fmt: skip
    return {name: path for name, path in where.items() if path.exists()}

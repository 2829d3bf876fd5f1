"""Stage 1: seed rows to reasoning rows.

A row whose teacher's answer cannot be read or disagrees with the row's label is kept aside with the reason.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from guardreasoner_guard import answer
from guardreasoner_guard.errors import UnreadableAnswer
from guardreasoner_guard.verdict import TASKS, Task

from .heldout import HeldOut
from .recipe import Recipe, begin, mark_done
from .rows import ReasoningRow, Rejected, SeedRow, fingerprint, read_journal, write_rows
from .seeds import draw
from .teacher import RowRefused, Teacher, TeacherError, Told

_MOST_REFUSED = 50
"""Rows refused one after the other, of whatever sources, after which no other is asked: it is not for what they say."""
MAX_STEPS = 10
"""Steps a task; the paper allows its teacher 1 to 10."""


_ENDING = re.compile(r"\n(?:#+[ \t]*)?Answers:?[ \t]*(?:\n+(?:Request|Completion|Response):[ \t]*\S+[ \t]*)+\s*\Z")
_FIELDS: dict[Task, str] = {"request": "prompt_harm", "completion": "completion", "response": "response_harm"}


def synthesize(recipe: Recipe, data: Path, teacher: Teacher, out: Path, *, held_out: HeldOut | None = None) -> Path:
    """Draws the recipe's seeds and has the teacher reason about its share of them.

    Every answer is kept in `answers.jsonl` the moment it comes: a run that was stopped, however, goes on there and
    asks nothing twice, and ends with the same files as one that was not.

    Args:
        recipe: Which sources, how many rows of each, and which share is reasoned.
        data: Folder the recipe's files lie in.
        teacher: Who reasons about rows that bring no reasoning of their own.
        out: Folder for `reasoning.jsonl`, `rejected.jsonl` and, last, `synthesize.json`.
        held_out: Requests to test on; rows too near one are left out and counted.

    Returns:
        The path of `reasoning.jsonl`; where the same stage is complete already, nothing is done.

    Raises:
        BadInput: The folder holds the result of another recipe or teacher, or a source cannot be read.
        TeacherError: A row could not be asked about; what was answered is kept.
    """
    path, manifest = out / "reasoning.jsonl", out / "synthesize.json"
    sources = {
        source.file: fingerprint(data / source.file)
        for source in recipe.data.sources if not source.file.startswith("hub:")
    }  # fmt: skip
    made_by = {
        "recipe": recipe.part("data"), "teacher": teacher.name, "decide": list(teacher.decide),
        "policy": teacher.policy,
        "held out": held_out and held_out.fingerprint,
    }  # fmt: skip
    if begin(out, manifest, made_by) and json.loads(manifest.read_text(encoding="utf-8")).get("sources") == sources:
        return path  # where other rows lie there now, those that were answered are not asked about again
    seeds = list(draw(recipe, data))
    drawn = [(row, wanted) for row, wanted in seeds if held_out is None or not held_out.holds(row.prompt)]
    answers = ask([row for row, wanted in drawn if wanted and not row.steps], teacher, out / "answers.jsonl")
    kept: list[ReasoningRow] = []
    rejected: list[Rejected] = []
    for row, wanted in drawn:
        if not wanted:
            kept.append(row.model_copy(update={"steps": {}}))
        elif row.steps:
            kept.append(row)
        else:
            told = answers[key(row)]
            result = reasoned(row, told.text, teacher.decide)
            if told.refused:
                result = Rejected(id=row.id, reason=told.refused, answer="")
            (kept if isinstance(result, ReasoningRow) else rejected).append(result)  # type: ignore[arg-type]
    random.Random(recipe.seed).shuffle(kept)
    write_rows(out / "rejected.jsonl", rejected)
    write_rows(path, kept)
    facts = {
        "rows": len(kept), "held out": len(seeds) - len(drawn), "rejected": len(rejected), "asked": len(answers),
        "reasons": dict(Counter(row.reason for row in rejected).most_common()),
        "prompt_tokens": sum(told.prompt_tokens for told in answers.values()),
        "generated_tokens": sum(told.generated_tokens for told in answers.values()),
        "statistics": statistics(kept), "sources": sources,
    }  # fmt: skip
    mark_done(manifest, made_by, facts)
    return path


def key(row: SeedRow) -> str:
    """What tells one question to a teacher from another: the row's place, texts, labels and kind of harm."""
    told = json.dumps([row.source, row.id, row.prompt, row.response, row.labels, row.category], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def ask(rows: Sequence[SeedRow], teacher: Teacher, journal: Path) -> dict[str, Told]:
    """Asks about rows, several at once; what the journal holds is not asked again.

    Returns:
        Answers by `key`, in the order of the rows.

    Raises:
        TeacherError: A row could not be asked about, or the teacher has begun to refuse every row; the answers that
            were under way are waited for and kept.
    """
    found = {entry.pop("key"): Told(**entry) for entry in read_journal(journal)}
    missing = [row for row in rows if key(row) not in found]
    random.Random(0).shuffle(missing)  # a source that a filter stops whole is not taken for a teacher that refuses
    most = max(10, min(_MOST_REFUSED, len(missing) // 10))
    failure: TeacherError | None = None
    with (
        journal.open("a", encoding="utf-8") as file,
        Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True)) as bar,
        ThreadPoolExecutor(max(1, teacher.concurrency)) as pool,
    ):
        task = bar.add_task("synthesize", total=len(rows), completed=len(rows) - len(missing))
        running: dict[Future[Told], tuple[int, SeedRow]] = {}
        refused: list[tuple[int, SeedRow, RowRefused]] = []
        asked = 0

        def keep(row: SeedRow, told: Told) -> None:
            found[key(row)] = told
            file.write(json.dumps({"key": key(row), **asdict(told)}) + "\n")
            file.flush()
            bar.advance(task)

        def keep_refused(before: int) -> None:
            """Rows asked about before one that was answered were refused for what they say; later ones maybe not."""
            for number, row, why in refused:
                if number < before:
                    keep(row, Told("", refused=f"The teacher did not answer: {why}"))
            refused[:] = [one for one in refused if one[0] >= before]

        while running or (missing and failure is None):
            # none waits in the pool: it would still be asked after a failure or Ctrl-C
            while missing and failure is None and len(refused) < most and len(running) < max(1, teacher.concurrency):
                row = missing.pop()
                asked += 1
                running[pool.submit(teacher.reason, row)] = asked, row
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number, row = running.pop(future)
                try:
                    told = future.result()
                except RowRefused as error:
                    refused.append((number, row, error))
                except TeacherError as error:
                    failure = failure or error
                else:
                    keep_refused(number)
                    keep(row, told)
            if not running and len(refused) >= most:
                failure = failure or TeacherError(
                    f"{len(refused)} rows were refused in a row: {refused[-1][2]} Or take them out."
                )
        if found and failure is None:
            keep_refused(asked + 1)
    if refused:
        failure = failure or refused[0][2]
    if failure is not None:
        answered = sum(key(row) in found and not found[key(row)].refused for row in rows)
        raise TeacherError(
            f"{failure} {answered} of {len(rows)} rows are answered and kept; run the same command again to go on."
        ) from failure
    return {key(row): found[key(row)] for row in rows}


def reasoned(row: SeedRow, text: str, decide: Sequence[Task] = ()) -> ReasoningRow | Rejected:
    """Checks a teacher's answer against the row's labels.

    Args:
        row: The seed.
        text: The answer.
        decide: Tasks the teacher decided itself where the seed has no label.
    """
    decided = [task for task in decide if task not in row.labels and (task == "request" or row.response)]
    asked = [task for task in TASKS if task in row.labels or task in decided]
    try:
        given = answer.read(text, asked)
    except UnreadableAnswer as error:
        return Rejected(id=row.id, reason=str(error), answer=text)
    steps: dict[Task, list[str]] = {task: [] for task in TASKS}
    for step in given.steps:
        steps[TASKS[min(step.task, len(TASKS)) - 1]].append(step.text)
    fault = _fault(row, dict(given.labels), steps, asked)
    if fault is None and not _ENDING.search(text):
        fault = "The answer does not end with its labels."
    if fault is not None:
        return Rejected(id=row.id, reason=fault, answer=text)
    labels = {_FIELDS[task]: label for task, label in given.labels.items()}
    return ReasoningRow(**{**row.model_dump(exclude={"steps"}), **labels}, steps={task: steps[task] for task in asked})


def _fault(row: SeedRow, labels: dict[Task, str], steps: dict[Task, list[str]], asked: Sequence[Task]) -> str | None:
    for task in TASKS:
        if task not in asked:
            if steps[task]:
                return f"There are steps for {task}, which was not asked about."
        elif labels[task] != row.labels.get(task, labels[task]):
            return f"The teacher says {labels[task]} for {task}, the seed says {row.labels[task]}."
        elif not 1 <= len(steps[task]) <= MAX_STEPS:
            return f"{len(steps[task])} steps for {task}; 1 to {MAX_STEPS} are asked for."
    return None


def statistics(rows: Iterable[ReasoningRow]) -> dict[str, dict[str, float]]:
    """Samples, steps, mean steps a sample and mean characters a step, by source (the paper's table 1)."""
    table: dict[str, list[list[str]]] = {}
    for row in rows:
        table.setdefault(row.source, []).append([step for steps in row.steps.values() for step in steps])
    result: dict[str, dict[str, float]] = {}
    for source, samples in table.items():
        steps = [step for sample in samples for step in sample]
        result[source] = {
            "samples": len(samples),
            "reasoned": sum(bool(sample) for sample in samples),
            "steps": len(steps),
            "mean steps": round(len(steps) / max(1, sum(bool(s) for s in samples)), 2),
            "mean length": round(sum(map(len, steps)) / max(1, len(steps)), 2),
        }
    return result

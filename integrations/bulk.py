"""Moderation in bulk: a file of requests or exchanges in, a verdict for each of its rows out.

Verdicts are kept as they are reached, in a journal beside the output, so that a run that was stopped or killed
goes on when it is started again: no row is lost, and none that has its verdict is judged twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from guardreasoner_guard.errors import BadInput, EngineError
from guardreasoner_guard.exchange import Exchange
from guardreasoner_guard.guard import GuardReasonerGuard
from guardreasoner_guard.verdict import Verdict

from .bulk_rows import Row, kind_of, read_rows
from .bulk_verdicts import Journal, as_line, write_verdicts

BadRows = Literal["stop", "block"]
"""What becomes of a row that cannot be judged as it is: it ends the run before anything is judged, with an error
that names it; or it gets the outcome `failure` and is blocked."""


@dataclass(frozen=True)
class Counts:
    """What a run came to."""

    rows: int
    answered: int
    """Rows with a response; of the others the request alone was judged."""
    passed: int
    blocked: int
    failure: int
    """Rows that could not be judged, bad ones included; blocked unless the guard was told otherwise."""
    timeout: int


def moderate(
    guard: GuardReasonerGuard,
    source: str | Path,
    out: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    bad_rows: BadRows = "stop",
    batch: int = 64,
    at_once: int = 1,
) -> Counts:
    """Judges the rows of a file, in batches, with a progress bar on stderr.

    It fails closed: a row that could not be judged is blocked unless the guard's `on_failure` says otherwise. Where
    of a whole batch none could be judged, the model is taken to be out of order: the run ends, to be gone on with.

    Args:
        guard: Judges; its policy says what is blocked.
        source: `.jsonl`, `.csv` or `.parquet`; see `bulk_rows.read_rows` for its columns.
        out: Where one verdict a row is written, in the rows' order, `.jsonl`, `.csv` or `.parquet`; see
            `bulk_verdicts.COLUMNS`. Until it is whole, verdicts stand in `OUT.part`.
        columns: Which column holds request, response or id, where it is called otherwise.
        bad_rows: What becomes of a row that cannot be judged as it is.
        batch: Rows that are judged together.
        at_once: Batches under way at once; more than one pays where the model is on a server.

    Raises:
        BadInput: The file cannot be read or holds a bad row; `out` is there already, or belongs to another run.
        EngineError: The model could not be run.
        MissingExtra: A file is Parquet, and pyarrow is not installed.
    """
    made_by = identity(guard)
    with Run(source, out, columns, bad_rows, made_by, guard.read) as run, ThreadPoolExecutor(at_once) as pool:
        under_way: set[Future[None]] = set()
        for rows in run.batches(batch):
            if len(under_way) == at_once:
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
            under_way.add(pool.submit(lambda rows: run.keep(judged(guard, rows, bad_rows)), rows))
        for future in under_way:
            future.result()
    return run.finish()


class Run:
    """One file on its way to its verdicts; entering it shows how far it is.

    Args:
        source: The rows.
        out: Where the verdicts are to be.
        columns: See `moderate`.
        bad_rows: See `moderate`.
        made_by: What the verdicts depend on besides the rows.
        read: Raises BadInput for an exchange that the guard does not take.
    """

    def __init__(
        self,
        source: str | Path,
        out: str | Path,
        columns: Mapping[str, str] | None,
        bad_rows: BadRows,
        made_by: Mapping[str, Any],
        read: Callable[[Exchange], object],
    ) -> None:
        self.source, self.out, self.columns = Path(source), Path(out), dict(columns or {})
        journal = self.out.with_name(f"{self.out.name}.part")
        kind_of(self.out)
        if self.out.exists() and not journal.exists():
            raise BadInput(f"{out} is there already. Remove it, or name another --out.")
        self.rows = self.answered = 0
        self._look_through(bad_rows, read)
        with self.source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(journal, {"rows": digest, "columns": self.columns, "guard": made_by}, self.rows)
        shown = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*shown, console=Console(stderr=True))
        self._bar = self._progress.add_task("moderate", total=self.rows, completed=len(self.journal))

    def _look_through(self, bad_rows: BadRows, read: Callable[[Exchange], object]) -> None:
        """Counts the rows, and finds what is wrong with them before the first is judged."""
        first: BadInput | None = None
        bad = 0
        for row in read_rows(self.source, self.columns):
            self.rows += 1
            self.answered += row.exchange is not None and row.exchange.response is not None
            if (problem := problem_of(row, read)) is not None:
                bad += 1
                first = first or _bad(row, problem)
                if bad_rows == "stop":
                    raise first
        if first is not None and bad == self.rows:
            raise first  # a wrong file, rather than wrong rows

    def __enter__(self) -> Run:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def batches(self, size: int) -> Iterator[list[Row]]:
        """The rows that lack a verdict, so many together."""
        rows: list[Row] = []
        for row in read_rows(self.source, self.columns):
            if row.number not in self.journal:
                rows.append(row)
            if len(rows) == size:
                yield rows
                rows = []
        if rows:
            yield rows

    def keep(self, lines: Sequence[str]) -> None:
        """Enters verdicts."""
        self._progress.advance(self._bar, self.journal.add(lines))

    def finish(self) -> Counts:
        """Writes the output in place of the journal.

        Raises:
            EngineError: A row has no verdict.
        """
        if missing := self.rows - len(self.journal):
            raise EngineError(f"{missing} rows came back without a verdict. Start the same run again: it goes on.")
        write_verdicts(self.out, self.journal.lines())
        self.journal.path.unlink()
        found = self.journal.outcomes
        return Counts(self.rows, self.answered, found["passed"], found["blocked"], found["failure"], found["timeout"])


def identity(guard: GuardReasonerGuard) -> dict[str, Any]:
    """What tells a guard's verdicts from another's. Where its model runs is no part of it."""
    policy = guard.policy
    return {
        "model": guard.judge.manifest.model_dump(mode="json"), "reasoning": guard.reasoning, "block": policy.block,
        "on_disagreement": policy.on_disagreement, "shadow": policy.shadow, "on_failure": guard.on_failure,
    }  # fmt: skip


def judged(guard: GuardReasonerGuard, rows: Sequence[Row], bad_rows: BadRows) -> list[str]:
    """Judges some rows as one batch.

    Returns:
        Their verdicts, in order, as lines of JSON.

    Raises:
        BadInput: A row cannot be judged as it is, and `bad_rows` is `stop`.
        EngineError: None of several could be judged.
    """
    problems = {row.number: problem for row in rows if (problem := problem_of(row, guard.read)) is not None}
    for row in rows:
        if row.number in problems and bad_rows == "stop":
            raise _bad(row, problems[row.number])
    fit = [row for row in rows if row.number not in problems]
    verdicts = guard.check_many([row.exchange for row in fit])
    if len(fit) > 1 and all(verdict.outcome != "verdict" for verdict in verdicts):
        raise EngineError(
            f"None of {len(fit)} rows could be judged, so that the model seems out of order; of the last it says: "
            f"{verdicts[-1].error} Verdicts until now are kept: start the same run again, and it goes on."
        )
    found = {row.number: verdict for row, verdict in zip(fit, verdicts, strict=True)}
    found.update({number: _unread(guard, problem) for number, problem in problems.items()})
    return [as_line(row.number, row.id, found[row.number]) for row in rows]


def problem_of(row: Row, read: Callable[[Exchange], object]) -> str | None:
    """Why a row cannot be judged, if it cannot."""
    if row.exchange is None:
        return row.problem
    try:
        read(row.exchange)
    except BadInput as error:
        return " ".join(str(error).split())
    return None


def _bad(row: Row, problem: str) -> BadInput:
    return BadInput(f"{row.where}: {problem} Mend or remove the row, or have bad rows blocked (bad-rows block).")


def _unread(guard: GuardReasonerGuard, problem: str) -> Verdict:
    shadow = guard.policy.shadow
    return Verdict(
        blocked=not shadow,
        shadowed=shadow,
        outcome="failure",
        reasons=f"Failure: the row cannot be judged{'' if shadow else ', so it is blocked'}. {problem}",
        error=f"BadInput: {problem}",
        model=guard.judge.engine.name,
    )

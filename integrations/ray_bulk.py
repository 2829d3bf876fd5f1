"""Moderation in bulk on a cluster: Ray Data, with actors that hold a guard each.

An actor that dies is started again and its batch judged anew; a verdict counts once it is in the journal, and once
only.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guardreasoner_guard.errors import BadInput, EngineError, GuardError, MissingExtra
from guardreasoner_guard.guard import GuardReasonerGuard

from .bulk import BadRows, Counts, Run, identity, judged
from .bulk_rows import Row

try:
    import pyarrow
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.exceptions import RayError
except ImportError as error:
    raise MissingExtra(error.name or "ray", "ray") from None

MakeGuard = Callable[[], GuardReasonerGuard]
_RETRIES = 3
"""Further tries of a batch whose actor died: one that kills every actor must end the run, not go on for ever."""


def moderate(
    make_guard: MakeGuard,
    source: str | Path,
    out: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    bad_rows: BadRows = "stop",
    batch: int = 64,
    concurrency: int = 2,
    num_cpus: float = 1,
    num_gpus: float = 0,
) -> Counts:
    """Judges the rows of a file on a Ray cluster; see `bulk.moderate`.

    The file is read, and the verdicts are written, where this is called. Ray is started, or joined where RAY_ADDRESS
    says, unless it runs already.

    Args:
        make_guard: Makes an actor's guard, where the actor runs: `functools.partial(GuardReasonerGuard, "model/")`.
            The model must be there.
        source: The rows.
        out: Where one verdict a row is written.
        columns: Which column holds request, response or id, where it is called otherwise.
        bad_rows: What becomes of a row that cannot be judged as it is. A text that is longer than the guard takes
            is found only when its turn comes.
        batch: Rows that are judged together, and again where their actor dies.
        concurrency: Actors.
        num_cpus: Processors an actor is given; the ONNX engine runs on up to eight.
        num_gpus: GPUs an actor is given.

    Raises:
        BadInput: The file cannot be read or holds a bad row; `out` is there already, or belongs to another run; this
            machine has no room for an actor.
        EngineError: A guard cannot be made or run, or actors died again and again; what was judged is kept.
    """
    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a guard reports nothing to anyone
        ray.init()
    resources = {"num_cpus": num_cpus, "num_gpus": num_gpus}
    try:
        if started and not os.environ.get("RAY_ADDRESS"):
            _check_room(num_cpus, num_gpus)
        with _own_errors():  # asked where actors will be, which shows at once whether a guard can be made there
            task: Any = ray.remote(_identity)
            made_by: dict[str, Any] = ray.get(task.options(**resources).remote(make_guard))
        with Run(source, out, columns, bad_rows, made_by, lambda exchange: None) as run, _own_errors():
            for lines in _judged(run.batches(batch), (make_guard, bad_rows), batch, concurrency, resources):
                run.keep(lines)
        return run.finish()
    finally:
        if started:
            ray.shutdown()


def _check_room(num_cpus: float, num_gpus: float) -> None:
    """Raises BadInput for an actor that this machine has no room for: Ray would wait for a larger one for ever."""
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call,unused-ignore]
    for name, asked in (("CPU", num_cpus), ("GPU", num_gpus)):
        if asked > there.get(name, 0):
            raise BadInput(
                f"An actor is to have {asked:g} {name}s, and here are {there.get(name, 0):g}. Ask for fewer, or name a "
                "cluster: RAY_ADDRESS."
            )


def _judged(
    batches: Iterator[list[Row]],
    actor: tuple[MakeGuard, BadRows],
    batch: int,
    concurrency: int,
    resources: dict[str, float],
) -> Iterator[list[str]]:
    """The verdicts on each batch, as they come."""
    # a block a batch: what is judged is handed over at once, and little is judged anew where an actor dies
    blocks = [pyarrow.table({"row": list(map(pickle.dumps, rows))}) for rows in batches]
    if not blocks:
        return
    with DataContext.current(_settings()), warnings.catch_warnings():
        # said to leave Ray in 2.64; until then nothing else bounds the retries
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        answers = ray.data.from_blocks(blocks).map_batches(
            _Judge, fn_constructor_args=actor, batch_size=batch, batch_format="pyarrow",
            compute=ActorPoolStrategy(size=concurrency), max_task_retries=_RETRIES, **resources,
        )  # fmt: skip
    for answer in answers.iter_batches(batch_size=None, batch_format="pyarrow"):
        for found in map(pickle.loads, answer["found"].to_pylist()):
            if isinstance(found, GuardError):
                raise found
            yield found


class _Judge:
    """An actor: one guard, asked batch by batch."""

    def __init__(self, make_guard: MakeGuard, bad_rows: BadRows) -> None:
        self.guard, self.bad_rows = make_guard(), bad_rows

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        try:
            found: list[str] | GuardError = judged(
                self.guard, list(map(pickle.loads, batch["row"].to_pylist())), self.bad_rows
            )
        except GuardError as error:  # handed back, since Ray would keep its words alone
            found = error
        return pyarrow.table({"found": [pickle.dumps(found)]})


def _identity(make_guard: MakeGuard) -> dict[str, Any]:
    with make_guard() as guard:
        return identity(guard)


def _settings() -> DataContext:
    """Ray's, without its progress bars: there is one already."""
    settings = DataContext.get_current().copy()
    settings.enable_progress_bars = settings.print_on_execution_start = False
    return settings


@contextmanager
def _own_errors() -> Iterator[None]:
    """What a guard raises leaves as it is; what Ray raises, as one error."""
    try:
        yield
    except RayError as error:
        if isinstance(cause := getattr(error, "cause", None), GuardError):
            raise cause from None
        raise EngineError(
            f"The cluster gave up ({type(error).__name__}). Verdicts until now are kept: start the same run again, "
            "and it goes on; Ray's log says why."
        ) from error

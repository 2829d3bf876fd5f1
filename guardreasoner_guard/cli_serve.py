"""The command that serves a guard over HTTP. Its options are the fields of `ServerSettings`, one by one."""

from __future__ import annotations

import inspect
import logging
from typing import Annotated, Any, get_origin

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from .errors import BadInput


def serve(**options: Any) -> None:
    """Serve the guard: OpenAI's moderations, whole verdicts, and a guarded chat in front of another server.

    POST /v1/moderations, /v1/guard and /v1/chat/completions; /docs tells more, and the playground is at /.
    Each option may stand in the environment instead: --max-body is GUARDREASONER_SERVE_MAX_BODY.
    """
    from guardreasoner_guard.integrations.server import serve as run
    from guardreasoner_guard.integrations.server_settings import ServerSettings

    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would tell of every call of the upstream
    try:
        settings = ServerSettings(**{name: value for name, value in options.items() if value not in (None, [])})
    except ValidationError as error:
        wrong = [f"{_flag(*one['loc'])}{one['msg'].removeprefix('Value error, ')}." for one in error.errors()]
        raise BadInput(f"{' '.join(wrong)} `guardreasoner serve --help` tells what is taken.") from None
    run(settings)


def _flag(name: str | int = "", *_: str | int) -> str:
    return f"--{str(name).replace('_', '-')}: " if name else ""


def _signature() -> inspect.Signature:
    """What typer reads instead of `**options`."""
    from guardreasoner_guard.integrations.server_settings import ServerSettings

    return inspect.Signature([_parameter(name, field) for name, field in ServerSettings.model_fields.items()])


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    from guardreasoner_guard.integrations.server_settings import variable

    shown = field.default
    if field.annotation is bool:
        kind: Any = bool
    elif get_origin(field.annotation) is tuple:
        kind, shown = list[str] | None, list(shown) or None
    else:
        kind, shown = str | None, None if shown is None else str(shown)
    help = " ".join((field.description or "").split()).replace("`", "")
    option = typer.Option(help=help, envvar=variable(name), show_envvar=False)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=shown, annotation=Annotated[kind, option])


serve.__signature__ = _signature()  # type: ignore[attr-defined]

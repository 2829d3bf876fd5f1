"""`@guarded`: a function or tool whose arguments are checked before it runs and its result before it returns."""

from __future__ import annotations

import functools
import inspect
import json
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, InjectedToolArg, ToolException
from langchain_core.tools.simple import Tool as SimpleTool
from langchain_core.tools.structured import StructuredTool

from .errors import BadInput, Blocked
from .exchange import Exchange, text_of
from .guard import GuardReasonerGuard
from .policy import explanation
from .verdict import Verdict

Guardable = TypeVar("Guardable")


def guarded(guard: GuardReasonerGuard) -> Callable[[Guardable], Guardable]:
    """Guards functions and LangChain tools, sync and async.

    Name, signature, schema, docstring and async-ness stay; arguments that are injected (the run's config,
    a tool's runtime or state) are passed on and not judged. A function that is blocked raises `Blocked`,
    or returns what the policy puts in its place; a LangChain tool gives its agent an error message with
    the reasons, so that the agent can go on.

    Args:
        guard: Judges and decides.
    """

    def decorate(target: Guardable) -> Guardable:
        if isinstance(target, BaseTool):
            return _guarded_tool(guard, target)  # type: ignore[return-value]
        if callable(target):
            return _guarded_function(guard, target)  # type: ignore[return-value]
        raise BadInput(f"Cannot guard a {type(target).__name__}. Pass a function or a LangChain tool.")

    return decorate


def _guarded_function(
    guard: GuardReasonerGuard, function: Callable[..., Any], name: str | None = None, tool: bool = False
) -> Callable[..., Any]:
    signature = inspect.signature(function)
    injected = _injected(function)
    called = name or str(getattr(function, "__name__", type(function).__name__))

    def asked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exchange:
        bound = signature.bind(*args, **kwargs)
        given = {key: value for key, value in bound.arguments.items() if key not in injected}
        return guard.read(Exchange(request=describe_call(called, given)))

    def answered(request: Exchange, result: Any) -> Exchange | None:
        text = _result_text(result)
        if not text.strip():
            return None
        return guard.read(request.model_copy(update={"response": text}))

    def instead(verdict: Verdict) -> Any:
        action = guard.policy.on_violation
        if callable(action):
            return action(verdict)
        if tool:
            raise ToolException(verdict.reasons)
        if action == "raise":
            raise Blocked(verdict)
        return explanation(verdict)

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def checked(*args: Any, **kwargs: Any) -> Any:
            request = asked(args, kwargs)
            verdict = (await guard._averdicts([request], ("request",)))[0]
            if verdict.blocked:
                return instead(verdict)
            result = await function(*args, **kwargs)
            exchange = answered(request, result)
            if exchange is not None:
                verdict = (await guard._averdicts([exchange], ("response",)))[0]
            return instead(verdict) if verdict.blocked else result

        return checked

    @functools.wraps(function)
    def checked_sync(*args: Any, **kwargs: Any) -> Any:
        request = asked(args, kwargs)
        verdict = guard._verdicts([request], ("request",))[0]
        if verdict.blocked:
            return instead(verdict)
        result = function(*args, **kwargs)
        exchange = answered(request, result)
        if exchange is not None:
            verdict = guard._verdicts([exchange], ("response",))[0]
        return instead(verdict) if verdict.blocked else result

    return checked_sync


def _guarded_tool(guard: GuardReasonerGuard, tool: BaseTool) -> BaseTool:
    """A copy of a tool whose functions are guarded; an agent reads a block as an error of the tool."""
    if not isinstance(tool, (StructuredTool, SimpleTool)):
        raise BadInput(
            f"{type(tool).__name__} keeps its work in a method. Guard the function it calls, or make it a tool "
            "with langchain_core.tools.tool."
        )
    guard_one = functools.partial(_guarded_function, guard, name=tool.name, tool=True)
    return tool.model_copy(
        update={
            "func": guard_one(tool.func) if tool.func else None,
            "coroutine": guard_one(tool.coroutine) if tool.coroutine else None,
            "handle_tool_error": tool.handle_tool_error or True,
        }
    )


def describe_call(name: str, arguments: Mapping[str, Any]) -> str:
    """A tool call in words, as the guard judges it: the name, and one argument a line."""
    lines = [f"{key}: {_plain(value)}" for key, value in arguments.items()]
    return "\n".join([f"Call the tool {name}" + (" with" if lines else ""), *lines])


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _result_text(result: Any) -> str:
    if result is None:
        return ""
    if isinstance(result, tuple) and len(result) == 2:  # content and artifact
        return _result_text(result[0])
    try:
        return text_of(result)
    except BadInput:
        return _plain(result)


def _injected(function: Callable[..., Any]) -> set[str]:
    """Parameters that a framework fills in, not the model."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:  # annotations that cannot be resolved here say nothing of injection
        hints = {}
    found = set()
    for name, hint in hints.items():
        marks = typing.get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ()
        kinds = [mark if isinstance(mark, type) else type(mark) for mark in marks]
        bare = typing.get_args(hint)[0] if marks else hint
        origin = typing.get_origin(bare) or bare
        if (
            any(issubclass(kind, InjectedToolArg) for kind in kinds)
            or RunnableConfig in (origin, *typing.get_args(bare))
            or getattr(origin, "__name__", "") == "ToolRuntime"
            or name in ("callbacks", "run_manager")
        ):
            found.add(name)
    return found

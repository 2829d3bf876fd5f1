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

from .errors import BadInput, Blocked
from .exchange import Exchange, texts_of_result
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
            name = str(getattr(target, "__name__", type(target).__name__))
            return _Guarding(guard, name, _injected(target)).around(target)  # type: ignore[return-value]
        raise BadInput(f"Cannot guard a {type(target).__name__}. Pass a function or a LangChain tool.")

    return decorate


class _Guarding:
    """Checks around one function or one tool."""

    def __init__(self, guard: GuardReasonerGuard, name: str, injected: set[str], tool: BaseTool | None = None) -> None:
        self.guard = guard
        self.name = name
        self.injected = injected
        self.tool = tool
        self.artifact = tool is not None and tool.response_format == "content_and_artifact"

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with its checks; async where it is."""
        signature = inspect.signature(function)
        call = getattr(type(function), "__call__", None)  # noqa: B004  (asked for what it is, not whether it is)
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise BadInput(f"{self.name} is a generator, whose results cannot be held back. Return them at once.")

        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call):

            @functools.wraps(function)
            async def checked(*args: Any, **kwargs: Any) -> Any:
                request = self._asked(signature.bind(*args, **kwargs))
                verdict = (await self.guard.averdicts([request], ("request",)))[0]
                if verdict.blocked:
                    return self._instead(verdict)
                try:
                    result = await function(*args, **kwargs)
                except ToolException as error:
                    result = error
                if exchange := self._answered(request, result):
                    verdict = (await self.guard.averdicts([exchange], ("response",)))[0]
                return self._instead(verdict) if verdict.blocked else _given(result)

            return checked

        @functools.wraps(function)
        def checked_sync(*args: Any, **kwargs: Any) -> Any:
            request = self._asked(signature.bind(*args, **kwargs))
            verdict = self.guard.verdicts([request], ("request",))[0]
            if verdict.blocked:
                return self._instead(verdict)
            try:
                result = function(*args, **kwargs)
            except ToolException as error:
                result = error
            if exchange := self._answered(request, result):
                verdict = self.guard.verdicts([exchange], ("response",))[0]
            return self._instead(verdict) if verdict.blocked else _given(result)

        return checked_sync

    def _asked(self, bound: inspect.BoundArguments) -> Exchange:
        given: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            kind = bound.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                given.update(value)
            elif kind is not inspect.Parameter.VAR_POSITIONAL:
                given[name] = value
            elif value:
                given[name] = list(value)
        judged = {name: value for name, value in given.items() if name not in self.injected}
        return self.guard.read(Exchange(request=describe_call(self.name, judged)))

    def _answered(self, request: Exchange, result: Any) -> Exchange | None:
        if inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
            raise BadInput(
                f"{self.name} returned a {type(result).__name__}, which cannot be judged. Return its result."
            )
        if self.artifact and isinstance(result, tuple) and len(result) == 2:
            result = result[0]  # the artifact goes to the application, not to the model
        text = "\n".join(texts_of_result(result))
        return self.guard.read(request.model_copy(update={"response": text})) if text.strip() else None

    def _instead(self, verdict: Verdict) -> Any:
        action = self.guard.policy.on_violation
        if callable(action):
            return (action(verdict), None) if self.artifact else action(verdict)
        if self.tool is not None:
            raise ToolException(verdict.shown_reasons)
        if action == "raise":
            raise Blocked(verdict)
        return explanation(verdict)


def _given(result: Any) -> Any:
    """What a tool gave; an error that it tells its agent is raised, now that it is judged like any other result."""
    if isinstance(result, ToolException):
        raise result
    return result


def _guarded_tool(guard: GuardReasonerGuard, tool: BaseTool) -> BaseTool:
    """A copy of a tool whose work is guarded; an agent reads a block as an error of the tool."""
    asked = set(_fields(tool.tool_call_schema))
    injected = {name for name in _fields(tool.get_input_schema()) if name not in asked}
    injected |= {"config", "run_manager", "callbacks", *tool._injected_args_keys}
    guarding = _Guarding(guard, tool.name, injected, tool)
    copy = tool.model_copy(update={"handle_tool_error": tool.handle_tool_error or True})
    # an instance's own attribute stands before its class's method; pydantic would refuse it
    object.__setattr__(copy, "_run", guarding.around(tool._run))
    object.__setattr__(copy, "_arun", guarding.around(tool._arun))
    return copy


def _fields(schema: Any) -> list[str]:
    if isinstance(schema, Mapping):  # a JSON schema
        return list(schema.get("properties", {}))
    return list(schema.model_fields)


def describe_call(name: str, arguments: Mapping[str, Any]) -> str:
    """A tool call in words, as the guard judges it: the name, and one argument a line."""
    lines = [f"{key}: {_plain(value)}" for key, value in arguments.items()]
    return "\n".join([f"Call the tool {name}" + (" with" if lines else ""), *lines])


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _injected(function: Callable[..., Any]) -> set[str]:
    """Parameters of a plain function that a framework fills in, not the model."""
    found = {"run_manager", "callbacks"}
    for name, parameter in inspect.signature(function).parameters.items():
        try:  # one by one, so that a name that cannot be resolved hides no other
            hint = typing.get_type_hints(_Hinted(function, name), include_extras=True)[name]
        except Exception:
            hint = parameter.annotation
        marks = [*getattr(hint, "__metadata__", ())]
        kinds = [mark if isinstance(mark, type) else type(mark) for mark in marks]
        bare = [hint, *typing.get_args(hint)]
        names = {getattr(typing.get_origin(kind) or kind, "__name__", str(kind)) for kind in bare}
        if any(issubclass(kind, InjectedToolArg) for kind in kinds) or names & {RunnableConfig.__name__, "ToolRuntime"}:
            found.add(name)
    return found


class _Hinted:
    """Stands for a function with one annotation, for `get_type_hints`."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.__annotations__ = {name: inspect.signature(function).parameters[name].annotation}
        self.__wrapped__ = function
        self.__globals__ = getattr(inspect.unwrap(function), "__globals__", {})

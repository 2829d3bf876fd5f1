"""Out of sight: what keeps those who look on at a run from seeing what the guard has not cleared yet."""

from __future__ import annotations

from contextlib import AbstractContextManager

from langchain_core.callbacks import BaseCallbackManager, Callbacks
from langchain_core.runnables.config import RunnableConfig, var_child_runnable_config
from langchain_core.tracers._streaming import _StreamingCallbackHandler, _V2StreamingCallbackHandler
from langchain_core.tracers.context import _configure_hooks, tracing_v2_callback_var
from langsmith import tracing_context

_STREAMING = (_StreamingCallbackHandler, _V2StreamingCallbackHandler)


def without_streams(callbacks: Callbacks) -> Callbacks:
    """Callbacks without handlers that stream what they hear of to a consumer."""
    if isinstance(callbacks, BaseCallbackManager):
        callbacks = callbacks.copy()
        for handler in {*callbacks.handlers, *callbacks.inheritable_handlers}:
            if isinstance(handler, _STREAMING):
                callbacks.remove_handler(handler)
        return callbacks
    return [handler for handler in callbacks if not isinstance(handler, _STREAMING)] if callbacks else callbacks


def hush(config: RunnableConfig) -> None:
    """Makes a config the ambient one, which frameworks read beside the one they are given, and leaves no tracer.

    It needs a context of its own. LangSmith has to be told apart from it, by `untraced`.
    """
    var_child_runnable_config.set(config)
    tracing_v2_callback_var.set(None)
    for variable, *_ in _configure_hooks:  # collect_runs, get_usage_metadata_callback and their like
        variable.set(None)


def untraced() -> AbstractContextManager[None]:
    """No run of LangSmith, which would make a tracer of its own where there is none."""
    return tracing_context(enabled=False)

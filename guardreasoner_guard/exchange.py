"""The exchange: what is judged, read from whatever a LangChain user has in hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.prompt_values import PromptValue
from pydantic import BaseModel, ConfigDict

from .errors import BadInput

TEXT_KEYS = ("input", "question", "query", "request", "prompt", "text", "content", "output", "answer", "result")
"""Keys under which a dict's text is looked for, in this order; `messages` goes before them."""


class Exchange(BaseModel):
    """A request, perhaps with its answer, perhaps with the turns before it."""

    model_config = ConfigDict(frozen=True)

    request: str
    response: str | None = None
    history: tuple[tuple[str, str], ...] = ()
    """Earlier (role, text) turns, role `user` or `assistant`: context that is read but not judged."""


def read_exchange(value: Any, response: str | None = None) -> Exchange:
    """Reads a request out of a chain's input.

    Args:
        value: str, message, list of messages, dict, PromptValue, or an Exchange.
        response: The answer to judge with it, if there is one.

    Raises:
        BadInput: The value holds no text that could be judged, or is of a type that cannot be read.
    """
    if isinstance(value, Exchange):
        exchange = value
    elif isinstance(value, PromptValue):
        exchange = _from_messages(value.to_messages())
    elif isinstance(value, Mapping) and value.get("messages") is not None:
        exchange = read_exchange(value["messages"])
    elif isinstance(value, BaseMessage):
        exchange = _from_messages([value])
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        exchange = _from_messages([_as_message(item) for item in value])
    else:
        exchange = Exchange(request=text_of(value))
    if response is not None:
        if not isinstance(response, str):
            raise BadInput(f"A response must be text, not {type(response).__name__}. Pass a str.")
        exchange = exchange.model_copy(update={"response": response})
    if not exchange.request.strip() and not (exchange.response or "").strip():
        raise BadInput("There is no text to judge. Pass a request that is not empty.")
    return exchange


def text_of(value: Any) -> str:
    """The text of one value: str, message, content parts, or a dict that holds a text.

    Of a state with messages it is the last one's. Parts that are not text (images, audio) stand as
    `[image_url]`, so that they are seen to be there.

    Raises:
        BadInput: The value is of a type that holds no text.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, BaseMessage):
        calls = getattr(value, "tool_calls", None) or []
        said = [text_of(value.content)] if value.content else []
        return "\n".join([*said, *(f"{c['name']}({json.dumps(c['args'], default=str)})" for c in calls)])
    if isinstance(value, PromptValue):
        return value.to_string()
    if isinstance(value, Mapping):
        if "type" in value and value["type"] != "text" and "text" not in value:
            return f"[{value['type']}]"
        if value.get("messages"):
            return text_of(value["messages"][-1])
        for key in TEXT_KEYS:
            if key in value:
                return text_of(value[key])
        if value and all(isinstance(item, (str, int, float, bool)) for item in value.values()):
            return "\n".join(f"{key}: {item}" for key, item in value.items())
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        return "\n".join(text_of(item) for item in value)
    raise BadInput(
        f"Cannot find the text in a {type(value).__name__}. Pass a str, messages, a PromptValue, "
        f"or a dict with one of the keys messages, {', '.join(TEXT_KEYS)}."
    )


def _as_message(item: Any) -> BaseMessage:
    if isinstance(item, BaseMessage):
        return item
    if isinstance(item, Mapping) and "role" in item:
        kind = AIMessage if item["role"] in ("assistant", "ai") else HumanMessage
        return kind(content=item.get("content") or "")
    if isinstance(item, tuple) and len(item) == 2:
        return (AIMessage if item[0] in ("assistant", "ai") else HumanMessage)(content=item[1])
    return HumanMessage(content=text_of(item))


def _from_messages(messages: Sequence[BaseMessage]) -> Exchange:
    """The last human message is the request; an AI message after it is the response.

    Each turn of a talk is judged as it stands, as the models were taught; earlier ones were judged in their
    time. What tools returned since the request is untrusted text that reaches the model: it is judged with
    the request. System messages are the application's own and are not judged.
    """
    last_human = max((i for i, m in enumerate(messages) if isinstance(m, HumanMessage)), default=0)
    since = messages[last_human:]
    request = [text_of(m) for m in since if isinstance(m, (HumanMessage, ToolMessage))]
    answered = bool(messages) and isinstance(messages[-1], AIMessage)
    return Exchange(request="\n\n".join(request), response=text_of(messages[-1]) if answered else None)

"""The exchange: what is judged, read from whatever a LangChain user has in hand."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, SystemMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue
from pydantic import BaseModel, ConfigDict

from .errors import BadInput

_NOT_WORDS = frozenset({"type", "id", "index", "mime_type", "media_type", "source_type", "detail", "url", "base64"})
"""Keys of a message's part that hold no words of its writer."""
_MEDIA = frozenset({"image", "image_url", "input_image", "audio", "input_audio", "video", "file", "input_file"})
"""Types of a message's parts that may hold bytes."""
_BYTES = re.compile(r"(?:data:[^,\s]{1,200},)?[\w+/=-]{200,}", re.ASCII)
"""What bytes look like there."""
_NAME = re.compile(r"[!-~]{1,40}")
"""What a mapping's key looks like that only names what it holds. Models write keys too, and tools pass on others'."""


class Exchange(BaseModel):
    """A request, perhaps with its answer, perhaps with the turns before it."""

    model_config = ConfigDict(frozen=True)

    request: str
    response: str | None = None
    history: tuple[tuple[Literal["user", "assistant"], str], ...] = ()
    """Earlier (role, text) turns: context that is read but not judged."""


@contextmanager
def _finite() -> Iterator[None]:
    try:
        yield
    except RecursionError:
        raise BadInput("It is nested too deeply to be read, or holds itself. Pass something flatter.") from None


@_finite()
def read_exchange(value: Any, response: str | None = None) -> Exchange:
    """Reads a request, or an exchange, out of a chain's input.

    Args:
        value: str, message, messages in any form LangChain knows, dict, PromptValue, or an Exchange. Of a
            dict every text counts, since any of them may reach the model.
        response: The answer to judge with it, if there is one.

    Raises:
        BadInput: The value holds no text that could be judged, or is of a type that cannot be read.
    """
    if isinstance(value, Exchange):
        exchange = value
    elif isinstance(value, PromptValue):
        exchange = _from_messages(value.to_messages())
    elif isinstance(value, BaseMessage):
        exchange = _from_messages([value])
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        exchange = _from_messages(_as_messages(value))
    elif isinstance(value, Mapping) and value.get("messages"):
        talk = read_exchange(value["messages"])
        beside = list(texts_of({key: item for key, item in value.items() if key != "messages"}))
        exchange = talk.model_copy(update={"request": "\n".join([talk.request, *beside])})
    elif isinstance(value, (str, Mapping, BaseModel)):
        exchange = Exchange(request="\n".join(texts_of(value)))
    else:
        raise BadInput(
            f"Cannot read a request out of a {type(value).__name__}. Pass a str, messages, a dict or a PromptValue."
        )
    if response is not None:
        if not isinstance(response, str):
            raise BadInput(f"A response must be text, not {type(response).__name__}. Pass a str.")
        exchange = exchange.model_copy(update={"response": response})
    if not exchange.request.strip() and not (exchange.response or "").strip():
        raise BadInput("There is no text to judge. Pass a request that is not empty.")
    return exchange


@_finite()
def read_answer(output: Any, request: str, given: Sequence[BaseMessage] = ()) -> str:
    """All text of a runnable's output, whatever its type; empty where it holds none.

    Left out are what only echoes the request, and the messages a state held before.

    Args:
        output: What the runnable returned.
        request: What it was asked.
        given: The messages of its input.
    """
    if isinstance(output, Mapping) and output.get("messages"):
        _, added = split_state(output["messages"], request, given)
        said = [text_of(message) for message in added]
        said += texts_of({key: item for key, item in output.items() if key != "messages"})
    else:
        said = list(texts_of(output))
    return "\n".join(text for text in said if text != request)


def split_state(
    messages: Sequence[Any], request: str, given: Sequence[BaseMessage] = ()
) -> tuple[list[BaseMessage], list[BaseMessage]]:
    """The messages of a state that were there when its run began, and those that the run has added.

    A run begins after the last message of its input; earlier ones may come from a memory of the graph. Human
    messages that stand later were written by the run. See `read_answer` for the arguments.
    """
    read = _as_messages(messages)
    known = [(message.type, text_of(message)) for message in given] or [("human", request)]
    said = [(message.type, text_of(message)) for message in read]
    if known[-1] in said:
        start = said.index(known[-1]) + 1
        return read[:start], read[start:]
    old = [key in known for key in said]
    return (
        [message for message, is_old in zip(read, old, strict=True) if is_old],
        [message for message, is_old in zip(read, old, strict=True) if not is_old],
    )


def messages_in(value: Any) -> list[BaseMessage]:
    """The messages of a runnable's input; none where it is no talk."""
    if isinstance(value, PromptValue):
        return value.to_messages()
    if isinstance(value, BaseMessage):
        return [value]
    if isinstance(value, Mapping) and value.get("messages"):
        return _as_messages(value["messages"])
    return _as_messages(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else []


def text_of(message: BaseMessage) -> str:
    """The text of a message, with its tool calls and with what its provider put beside its content."""
    content = message.content if isinstance(message.content, list) else [message.content]
    said = [text for part in content for text in _part_texts(part)]
    calls = [*getattr(message, "tool_calls", []), *getattr(message, "invalid_tool_calls", [])]
    for call in calls:
        said.append(f"{call['name']}({json.dumps(call['args'], default=str, ensure_ascii=False)})")
    for part in getattr(message, "tool_call_chunks", []):
        # what is read of arguments that are not complete may lack some of their words
        if part["args"] and not _is_json(part["args"]):
            said.append(part["args"])
    beside = {key: item for key, item in message.additional_kwargs.items() if key != "tool_calls" or not calls}
    return "\n".join([*said, *texts_of(beside)])


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def texts_of(value: Any) -> Iterator[str]:
    """Every text in a value, in order. Numbers and None hold no words; objects of unknown types give their str()."""
    if isinstance(value, str):
        if value:
            yield value
    elif value is None or isinstance(value, (bool, int, float)):
        return
    elif isinstance(value, BaseMessage):
        yield text_of(value)
    elif isinstance(value, PromptValue):
        yield value.to_string()
    elif isinstance(value, Document):
        yield value.page_content
        yield from texts_of(value.metadata)
    elif isinstance(value, BaseModel):  # attribute by attribute: a dump leaves out what a field's type does not know
        names = [*type(value).model_fields, *type(value).model_computed_fields, *(value.model_extra or {})]
        yield from texts_of([getattr(value, name) for name in names])
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(key, str) and key and not _NAME.fullmatch(key):
                yield key
            yield from texts_of(item)
    elif isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        for item in value:
            yield from texts_of(item)
    else:
        yield str(value)


def texts_of_result(result: Any) -> Iterator[str]:
    """Every text in what a tool returned, which may be parts of a message: of these without the bytes of images."""
    for item in result if isinstance(result, list) else [result]:
        yield from _worded(item, texts_of(item))


def copied(value: Any) -> Any:
    """A copy whose dicts, lists and messages may be written into: what a callee adds to its input is not seen in it."""
    new: Any
    if isinstance(value, dict):
        new = copy.copy(value)
        new.update({key: copied(item) for key, item in value.items()})
        return new
    if isinstance(value, list):
        new = copy.copy(value)
        new[:] = map(copied, value)
        return new
    if isinstance(value, (BaseMessage, PromptValue)):
        new = value.model_copy()
        new.__dict__.update({name: copied(item) for name, item in value.__dict__.items()})
        return new
    return value


def _part_texts(part: Any) -> Iterator[str]:
    """The texts of one part of a message; one without words (an image) stands as `[image_url]`."""
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        yield from texts_of(part)
        return
    words = [text for key, item in part.items() if key not in _NOT_WORDS for text in texts_of(_without_bytes(item))]
    yield from list(_worded(part, words)) or ([] if part["type"] == "text" else [f"[{part['type']}]"])


def _worded(part: Any, texts: Iterable[str]) -> Iterator[str]:
    """The texts of a part, but its bytes, where it may hold some."""
    media = isinstance(part, Mapping) and part.get("type") in _MEDIA
    yield from (text for text in texts if not (media and _BYTES.fullmatch(text)))


def _without_bytes(item: Any) -> Any:
    """What stands inside a part, without base64 and links: they hold no words of a writer."""
    if not isinstance(item, Mapping):
        return item
    binary = item.get("type") != "text"
    return {key: inner for key, inner in item.items() if key not in _NOT_WORDS and not (binary and key == "data")}


def _as_messages(items: Any) -> list[BaseMessage]:
    try:
        # with `lc` in it LangChain would take a role/content dict for its own serialised form, and read other words
        # than whoever answers
        return convert_to_messages([_unserialised(item) for item in items])
    except Exception as error:  # LangChain raises several kinds
        raise BadInput(
            f"Cannot read messages: {error}. Pass a list of messages, (role, text) pairs or role/content dicts."
        ) from error


def _unserialised(item: Any) -> Any:
    if isinstance(item, Mapping) and "role" in item:
        return {key: value for key, value in item.items() if key != "lc"}
    return item


def _from_messages(messages: Sequence[BaseMessage]) -> Exchange:
    """The turn that is to be answered, or was: everything since the last finished answer of the AI.

    Each turn of a talk is judged as it stands, as the models were taught; earlier ones were judged in their
    time. What tools returned is untrusted text that reaches the model: it is judged with the request.
    System messages are the application's own and are not judged.
    """
    finished = [i for i, m in enumerate(messages) if isinstance(m, AIMessage) and not m.tool_calls]
    answered = bool(messages) and isinstance(messages[-1], AIMessage)
    before = [i for i in finished if i < len(messages) - 1]
    turn = messages[before[-1] + 1 if before else 0 :]
    asked = [text_of(m) for m in turn if not isinstance(m, (AIMessage, SystemMessage))]
    return Exchange(request="\n\n".join(asked), response=text_of(messages[-1]) if answered else None)

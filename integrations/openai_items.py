"""What the items and events of OpenAI's Responses API say, as the Agents SDK hands them about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from pydantic import BaseModel

from guardreasoner_guard.course import asked
from guardreasoner_guard.errors import BadInput
from guardreasoner_guard.exchange import Exchange, read_exchange, text_of

from .held_back import words, words_by_path

JudgedElsewhere = Callable[[str], bool]
"""Whether calls of the tool of this name are judged where the tool runs."""

_SAID = ("text", "refusal", "transcript", "stdout", "stderr")
"""What holds the words of a content part, or of what a shell gave out."""
_ROLES: dict[str, type[BaseMessage]] = {
    "user": HumanMessage,
    "assistant": AIMessage,
    "system": SystemMessage,
    "developer": SystemMessage,
}


def request_of(items: str | Iterable[Any]) -> Exchange:
    """The turn of an agent's input that is to be answered; an empty request where it holds no word."""
    if isinstance(items, str):
        return Exchange(request=items)
    messages = [message for item in items if (message := _message(_fields(item))) is not None]
    try:
        return asked(read_exchange(messages))
    except BadInput:  # none, or none but the application's own
        return Exchange(request="\n\n".join(map(text_of, messages)))


def _message(item: Mapping[str, Any]) -> BaseMessage | None:
    kind = str(item.get("type", "message"))
    if "role" in item:
        return _ROLES.get(item["role"], HumanMessage)(content=_text(item.get("content")))
    if kind.endswith("_output"):
        return ToolMessage(_text(item.get("output")), tool_call_id=str(item.get("call_id", "")))
    if kind.endswith("_call") or kind in ("reasoning", "item_reference", "compaction", "mcp_list_tools"):
        return None
    return HumanMessage("\n".join(words_by_path(item).values()))  # of a kind that is not known yet


def texts_of_answer(items: Iterable[Any], judged_elsewhere: JudgedElsewhere) -> list[str]:
    """The texts of a model's output: messages, what it thought aloud, and calls that are judged nowhere else."""
    found: list[str] = []
    for item in map(_fields, items):
        kind = item.get("type")
        if kind == "message":
            found.append(_text(item.get("content")))
        elif kind == "reasoning":
            found += [_text(item.get("summary")), _text(item.get("content"))]
        elif kind == "function_call":
            if not judged_elsewhere(item["name"]):
                found.append(f"{item['name']}({item['arguments']})")
        else:
            found += words_by_path(item).values()
    return [text for text in found if text]


class Said:
    """The words of a stream's events, one after another; what an event says again is left out.

    Args:
        judged_elsewhere: See `texts_of_answer`.
    """

    def __init__(self, judged_elsewhere: JudgedElsewhere) -> None:
        self._judged_elsewhere = judged_elsewhere
        self._text = ""
        self._skipped: set[int] = set()
        """Places of calls that are judged elsewhere; ids are the same for all items of some models."""

    def __call__(self, event: Any) -> AIMessageChunk:
        """What this event adds."""
        item: Any = getattr(event, "item", None)
        place = getattr(event, "output_index", 0)
        if getattr(item, "type", None) == "function_call" and self._judged_elsewhere(item.name):
            self._skipped.add(place)
        delta = getattr(event, "delta", None)
        if place in self._skipped and event.type.startswith("response.function_call_arguments"):
            new = ""
        elif isinstance(delta, str):
            new = delta
        else:
            new = "\n".join(text for text in self._whole(event, item) if text not in self._text)
        self._text += new
        return words(new, place)

    def _whole(self, event: Any, item: Any) -> list[str]:
        found = [getattr(event, name, None) for name in ("text", "refusal", "arguments", "code", "input")]
        part, response = getattr(event, "part", None), getattr(event, "response", None)
        found.append(_text(part and [part]))
        items = [*([item] if item is not None else []), *getattr(response, "output", ())]
        return [text for text in [*found, *texts_of_answer(items, self._judged_elsewhere)] if text]


def _text(content: Any) -> str:
    """The text of content parts; one without words (an image) stands as `[input_image]`."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = [content] if isinstance(content, Mapping) else [_fields(part) for part in content]
    said = ["\n".join(str(part[key]) for key in _SAID if part.get(key)) for part in parts]
    return "\n".join(text or f"[{part.get('type')}]" for text, part in zip(said, parts, strict=True))


def _fields(item: Any) -> Mapping[str, Any]:
    if isinstance(item, BaseModel):
        return item.model_dump(exclude_none=True)
    return item if isinstance(item, Mapping) else {"type": "text", "text": str(item)}

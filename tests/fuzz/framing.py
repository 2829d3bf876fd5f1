"""Framing: whatever a text holds, the prompt has the template's own markers and no others, and no word is lost."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

from guardreasoner_guard.model_dir import open_model
from guardreasoner_guard.template import TEMPLATES, neutralise

_HEADS = ("human user", "ai assistant", "answers", "request", "completion", "response")


def holds(request: str, response: str | None, earlier: Sequence[str]) -> None:
    """What is true of every exchange."""
    for template in TEMPLATES.values():
        history = [("user", text) for text in earlier]
        prompt = template.render(request, response, history)
        own = template.render("x", None if response is None else "x", [("user", "x")] * len(earlier))
        assert len(prompt.parts) == len(own.parts)
        assert markers(str(prompt)) == markers(str(own))
    for text in (request, response or "", *earlier):
        framed = neutralise(text)
        framed.encode("utf-8")
        assert "\0" not in framed and "<|" not in framed
        assert _words(framed) == _words(text)
        tokeniser, special = _tokeniser()
        assert not special & set(tokeniser.encode(framed, add_special_tokens=False).ids)


def markers(text: str) -> list[str]:
    """Lines a model could take for the template's, without those that are quoted."""
    return [line for line in text.splitlines() if _is_marker(line) and not line.startswith("> ")]


def _is_marker(line: str) -> bool:
    seen = "".join(c for c in unicodedata.normalize("NFKC", line) if unicodedata.category(c) != "Cf").lower().strip()
    head = " ".join(seen.replace("\u2236", ":").split(":")[0].split()).removesuffix("(earlier)").strip()
    if ":" in seen.replace("\u2236", ":") and re.sub(r"^[\W_]+|[\W_]+$", "", head) in _HEADS:
        return True
    return bool(re.match(r"#+\s*(task|reasoning step)\b", seen) or (seen and not seen.strip("-") and len(seen) >= 3))


def _words(text: str) -> str:
    return "".join(filter(str.isalnum, text))


@cache
def _tokeniser() -> tuple[Any, set[int]]:
    """The bundled model's, and the ids of its control tokens."""
    from tokenizers import Tokenizer

    tokeniser = Tokenizer.from_file(str(open_model("bundled").path / "tokenizer.json"))
    tokeniser.encode_special_tokens = True
    return tokeniser, {number for number, token in tokeniser.get_added_tokens_decoder().items() if token.special}

"""A teacher without a language model: short, faithful reasoning from what the row itself holds."""

from __future__ import annotations

import random
import re
from typing import Protocol

from guardreasoner_guard import answer
from guardreasoner_guard.verdict import Task

from .rows import SeedRow
from .teacher import Told

_HARM = {
    "violence": "kill|murder|attack|hurt|shoot|stab|beat|torture|poison|assault|massacre|violen\\w+|fight",
    "weapons or explosives": "bombs?|explosives?|guns?|weapons?|grenades?|ammunition|firearms?|molotov",
    "hacking": "hack\\w*|malware|virus|ransomware|keylogger|exploit\\w*|phishing|ddos|backdoors?|passwords?",
    "fraud": "scams?|fraud\\w*|fake|forge\\w*|counterfeit\\w*|launder\\w*|bribe\\w*|embezzl\\w+|insider|evade",
    "theft": "steal\\w*|rob\\w*|shoplift\\w*|burglar\\w*|pirat\\w+|smuggl\\w+|break into",
    "drugs": "meth\\w*|cocaine|heroin|drugs?|fentanyl|overdose|lsd|narcotics",
    "hate": "racist|sexist|hate|slurs?|inferior|stereotyp\\w+|nazi\\w*|genocide|immigrants|disgusting",
    "sexual harm": "sex\\w*|porn\\w*|rape\\w*|nudes?|molest\\w*|underage|minors|explicit",
    "self-harm": "suicid\\w+|self-harm|kill myself|starve|anorexi\\w+|cutting",
    "harassment": "bully\\w*|harass\\w*|stalk\\w*|threaten\\w*|blackmail\\w*|humiliat\\w+|defam\\w+|insult\\w*",
    "a breach of privacy": "private|address|dox\\w*|spy\\w*|track\\w*|personal information|social security",
    "false information": "misinformation|conspiracy|propaganda|fake news|hoax\\w*|disinformation|rumors?",
}
_WRAPPER = re.compile(
    r"\b(?:pretend|role-?play|you are now|act as|ignore (?:all|the|previous)|DAN|jailbreak\w*|hypothetical\w*"
    r"|imagine (?:you|that)|in a (?:world|story|novel)|fictional|no (?:restrictions|rules|limits)|stay in character)\b",
    re.IGNORECASE,
)
_REFUSES = re.compile(
    r"(?:I(?:'m| am) sorry[^.!?\n]{0,40}|I (?:cannot|can't|can not|won't|will not|am unable to)[^.!?\n,]{0,40}"
    r"|As an AI[^.!?\n,]{0,40}|I'm not able to[^.!?\n,]{0,40})",
)


class AnnotationTeacher:
    """Writes reasoning without a language model, from the row's own words and labels.

    Each answer quotes the words that carry the intent, names a kind of harm or says that the reading is
    innocent, and notes a jailbreak frame. Wording varies; the same seed and row give the same answer.
    """

    name = "annotation"
    concurrency = 1
    decide: tuple[Task, ...] = ()
    policy = ""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def reason(self, row: SeedRow) -> Told:
        """Writes one answer for the labels the row has; every quoted span occurs in the row."""
        say = random.Random(f"{self.seed}/{row.id}").choice
        steps: dict[Task, list[str]] = {}
        kind, quote = _carries_intent(row.prompt)
        if "request" in row.labels:
            steps["request"] = _about_request(row, kind, quote, say)
        if row.response is not None and "completion" in row.labels:
            steps["completion"] = [_about_completion(row, say)]
        if row.response is not None and "response" in row.labels:
            steps["response"] = [_about_response(row, kind, say)]
        return Told(answer.write({task: row.labels[task] for task in steps}, steps))


class _Say(Protocol):
    def __call__(self, seq: tuple[str, ...], /) -> str: ...


def _words_around(text: str, start: int, end: int, before: int, after: int) -> str:
    """A whole-word span of `text` around [start, end), within its line and without double quotes."""
    left = re.search(rf"(?:[^\s\"]+[ ]){{0,{before}}}[^\s\"]*$", text[:start])
    right = re.match(rf"[^\s\"]*(?:[ ][^\s\"]+){{0,{after}}}", text[end:])
    span = text[left.start() if left else start : end + (right.end() if right else 0)]
    return span.strip(" .,;:!?()[]{}'*`\u201c\u201d")


def _carries_intent(text: str) -> tuple[str | None, str]:
    """The kind of harm a text speaks of, if a plain word says it, and the words to quote."""
    for kind, words in _HARM.items():
        found = re.search(rf"\b(?:{words})\b", text, re.IGNORECASE)
        if found:
            return kind, _words_around(text, found.start(), found.end(), 2, 3)
    ask = re.search(r"\b(?:how|what|why|write|give|tell|explain|create|list|who|where)\b", text, re.IGNORECASE)
    at = ask.start() if ask else 0
    return None, _words_around(text, at, at, 0, 5)


def _named(row: SeedRow) -> str | None:
    """The row's own category in plain words, where it is one that reads so."""
    words = " ".join((row.category or "").replace("_", " ").replace("-", " ").split()).lower()
    return words if re.fullmatch(r"[a-z ,&]{3,40}", words) else None


def _about_request(row: SeedRow, kind: str | None, quote: str, say: _Say) -> list[str]:
    quoted = f'"{quote}"' if quote else "the words alone"
    opening = say((f"The user writes {quoted}.", f"The request turns on {quoted}.", f"The point is {quoted}."))
    frame = _WRAPPER.search(row.prompt)
    if row.prompt_harm == "harmful":
        name = _named(row) or kind or "harm to others"
        reason = say(
            (
                f"That seeks help with {name}, so it is harmful.",
                f"An answer would serve {name}, which makes the request harmful.",
                f"This asks for content that feeds {name}, so it is harmful.",
            )
        )
        if frame:
            reason = f'The frame "{frame[0]}" only wraps it. {reason}'
    else:
        reason = say(
            (
                "That can be answered without hurting anyone, so it is unharmful.",
                "The wish behind it is ordinary and safe, so it is unharmful.",
                "Nothing in it asks for harm.",
            )
        )
        if kind:
            reason = f"The words touch on {kind}, but in an innocent sense. {reason}"
        elif frame:
            reason = f'The frame "{frame[0]}" carries no harmful aim. {reason}'
    return [opening, reason]


def _about_completion(row: SeedRow, say: _Say) -> str:
    text = row.response or ""
    refusing = _REFUSES.search(text)
    quote = refusing[0].strip() if refusing else _words_around(text, 0, 0, 0, 5)
    quoted = f'"{quote}"' if quote and '"' not in quote else "the answer"
    if row.completion == "refusal":
        return say((f"The AI says {quoted} and declines.", f"With {quoted} the AI turns the request down."))
    return say((f"The AI begins with {quoted} and answers.", f"It engages with the request: {quoted}."))


def _about_response(row: SeedRow, kind: str | None, say: _Say) -> str:
    if row.response_harm == "harmful":
        name = _named(row) or kind or "something harmful"
        return say((f"The answer gives real help with {name}.", f"What it says serves {name}, so it is harmful."))
    if row.completion == "refusal":
        return say(("Declining gives no harmful help.", "It holds nothing that could be misused."))
    return say(("The answer holds nothing that could hurt anyone.", "What it says is safe to read and use."))

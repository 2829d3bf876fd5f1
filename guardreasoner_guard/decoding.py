"""Decoding: what stands in a text in base64, hex and the like, where it is text. Bounded by the length of the text."""

from __future__ import annotations

import base64
import binascii
import html
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from string import ascii_lowercase, ascii_uppercase
from urllib.parse import unquote

from .plain import passages
from .vocabulary import english

_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{16,}(?:\r?\n[A-Za-z0-9+/_-]{2,})*={0,2}")
_BASE32 = re.compile(r"(?<![A-Za-z0-9])[A-Z2-7]{16,}={0,6}(?![A-Za-z0-9])")
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:(?:\\x|0x)?[0-9A-Fa-f]{2}[\s,:]?){8,}")
_BINARY = re.compile(r"(?<!\d)(?:[01]{8}[\s,]?){4,}(?!\d)")
_DECIMAL = re.compile(r"(?<![\d.])(?:\d{2,3}[\s,;]{1,2}){7,}\d{2,3}(?![\d.])")
_ESCAPED = re.compile(
    r"(?:%[0-9A-Fa-f]{2}){3,}|(?:\\x[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}){3,}|(?:&#x?[0-9A-Fa-f]{2,6};){3,}"
)
_ASCII_LETTER = re.compile("[a-z]")
_COMMON = frozenset(" \n\r\t.,;:!?'\"()-/=+<>{}[]#&@%*_$\\|~`^")
_PROBE = 40
"""Characters of a passage by which it is seen whether a turn is worth it."""


def decoded(text: str) -> tuple[str, str] | None:
    """The text with what is encoded in it decoded, and what was decoded alone; None where nothing is."""
    told: list[str] = []

    def put(pattern: re.Pattern[str], decode: Callable[[str], str | None]) -> Callable[[re.Match[str]], str]:
        def replaced(run: re.Match[str]) -> str:
            found = decode(run[0])
            if found is None:
                return run[0]
            told.append(found)
            return found if pattern is _ESCAPED else f" {found} "

        return replaced

    whole = text
    for pattern, decode in _CODES:
        whole = pattern.sub(put(pattern, decode), whole)
    return (whole, "\n".join(told)) if told else None


def turned(text: str) -> str:
    """The text with passages that read as English by a shift of the alphabet, as rot13, or backwards, so read."""
    return passages(text, _turned)


@lru_cache(1024)
def _turned(passage: str) -> str:
    letters = _ASCII_LETTER.findall(passage.lower())
    if len(letters) < 12 or english(passage) > 0.6:
        return passage
    for turn in _turns(letters):
        told = turn(passage[:_PROBE])
        if english(told) > 0.6 and english(told := turn(passage)) >= max(0.75, english(passage) + 0.3):
            return told
    return passage


def _turns(letters: list[str]) -> Iterator[Callable[[str], str]]:
    """Backwards, each word backwards, the alphabet turned round, and shifted by 13 or so that the commonest fits."""
    yield lambda passage: passage[::-1]
    yield lambda passage: " ".join(word[::-1] for word in passage.split(" "))
    yield _shifted(ascii_lowercase[::-1])
    usual = ord(max(ascii_lowercase, key=letters.count))
    for by in dict.fromkeys([13, *((usual - ord(common)) % 26 for common in "etaoi")]):
        yield _shifted(ascii_lowercase[-by:] + ascii_lowercase[:-by])


def _shifted(alphabet: str) -> Callable[[str], str]:
    table = str.maketrans(ascii_lowercase + ascii_uppercase, alphabet + alphabet.upper())
    return lambda passage: passage.translate(table)


def _unescaped(run: str) -> str | None:
    """Escapes of ASCII letters, which no text needs; those of other alphabets are ordinary in URLs and JSON."""
    if run.startswith("\\"):
        told = re.sub(r"\\[xu]([0-9A-Fa-f]+)", lambda code: chr(int(code[1], 16)), run)
    else:
        told = html.unescape(run) if run.startswith("&") else unquote(run)
    return told if len(re.findall("[A-Za-z]", told)) >= 3 else None


def _from_base64(run: str) -> str | None:
    packed = re.sub(r"[\r\n=]", "", run).replace("-", "+").replace("_", "/")
    for start in range(4):  # a window may begin anywhere in what is encoded
        part = packed[start:]
        part = part[: len(part) - (len(part) % 4 == 1)]
        try:
            told = base64.b64decode(part + "=" * (-len(part) % 4))
        except (binascii.Error, ValueError):
            continue
        if (found := _readable(told)) is not None:
            return found
    return None


def _from_base32(run: str) -> str | None:
    packed = run.rstrip("=")
    packed = packed[: len(packed) - (len(packed) % 8 in (1, 3, 6))]
    return _readable(base64.b32decode(packed + "=" * (-len(packed) % 8)))


def _from_hex(run: str) -> str | None:
    digits = re.sub(r"\\x|0x|[^0-9A-Fa-f]", "", run)
    for start in (0, 1):
        part = digits[start : len(digits) - (len(digits) - start) % 2]
        told = _readable(bytes.fromhex(part))
        if told is not None and (not digits.isdecimal() or english(told) > 0.5):
            return told
    return None


def _from_binary(run: str) -> str | None:
    return _readable(bytes(int(byte, 2) for byte in re.findall("[01]{8}", run)))


def _from_decimal(run: str) -> str | None:
    codes = [int(code) for code in re.findall(r"\d+", run)]
    told = _readable(bytes(codes)) if max(codes) < 256 else None
    return told if told is not None and english(told) > 0.5 else None


def _readable(told: bytes) -> str | None:
    """The bytes as a text, if they are one: nearly all letters, digits, blanks and common marks."""
    text = told.decode("utf-8", "replace").strip("\ufffd\x00")
    fine = sum(1 for c in text if c.isalnum() or c in _COMMON)
    if not text or fine < 0.97 * len(text) or sum(map(str.isalpha, text)) < 0.4 * len(text):
        return None
    # few bytes may look like a text by chance
    return text if len(text) >= (12 if text.isascii() else 20) or (len(text) > 5 and english(text) > 0.5) else None


_CODES: tuple[tuple[re.Pattern[str], Callable[[str], str | None]], ...] = (
    (_ESCAPED, _unescaped),
    (_BINARY, _from_binary),
    (_DECIMAL, _from_decimal),
    (_HEX, _from_hex),
    (_BASE32, _from_base32),
    (_BASE64, _from_base64),
)

"""Plain letters: a text without the disguise of its letters, where that makes English words of it.

Each step changes only what the vocabulary says is better so: names, code, other languages and typing errors stay.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from itertools import islice, product

from .vocabulary import WORD, english, known, parted, rank, speaks

_UNSEEN = re.compile(
    "(?<![\u0530-\u1dff])"  # scripts that need joiners keep them
    "[\x00-\x08\x0e-\x1a\x7f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff]+"
)
_REVERSED = re.compile("\u202e([^\u202c\u202d\n]*)[\u202c\u202d]?")
_TAGS = re.compile("[\U000e0020-\U000e007e]{7,}")  # a flag of a region has up to six
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]{7,}")

_PASSAGE = re.compile(r"(?:[^.!?:\n]|[.!?:](?!\s)|(?<=\s)[.!?:]){1,400}(?:[.!?:]*\s*)?|[.!?:\n]\s*")

_LOOKALIKES = dict(zip(
    "аеорсухіјѕԁһԛԝьгпткмнвзАВЕКМНОРСТХІЈЅҮЗԌԚԜαβγεζηικνορτυχωΑΒΕΖΗΙΚΜΝΟΡΤΥΧօսհոցքՕՏԼ",
    "aeopcyxijsdhqwbrntkmhbzABEKMHOPCTXIJSYZGQWabyeznikvoptuxwABEZHIKMNOPTYXouhngpOSL",
    strict=True,
))  # fmt: skip
_NAMED = re.compile(
    r"(?:LATIN|MATHEMATICAL|REGIONAL|NEGATIVE|CIRCLED|SQUARED|PARENTHESIZED).* (?:LETTER|SMALL|CAPITAL)"
    r"(?: TURNED| REVERSED| INVERTED| SCRIPT| DOTLESS)* ([A-Z])( WITH .*)?$"
)
_TOKEN = re.compile(r"\S+")
_MARK = re.compile("[\u0300-\u036f\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff]")
_OVERLAY = re.compile("[\u0334-\u0338\u20d2\u20d3\u20dd\u20de]")

_IN_WORD = re.compile(
    r"(?<![A-Za-z])[A-Za-z]++(?:(?:\*{1,3}|~~|`{2,3}|<!--[^>]{0,80}-->|</?[A-Za-z][^<>]{0,80}>)+[A-Za-z]++)+"
)
_CUT = re.compile(r"(?<![^\W\d_])([A-Za-z]{1,20})\n{1,2}(?:\w{1,40}: )?([A-Za-z]{1,20})(?![^\W\d_])")
_MARKUP = re.compile(r"<[^<>]*>|[^A-Za-z]+")
_APART = re.compile(r"(?<![^\W_])[^\W_](?:[\W_]{1,5}[^\W_]){4,}(?![^\W_])")

_GLUED = 16
"""Letters of a word that may be a sentence."""

_LEET = {
    "0": "o", "1": "il", "3": "e", "4": "a", "5": "s", "6": "gb", "7": "t", "8": "b", "9": "g",
    "@": "a", "$": "s", "!": "i", "\u20ac": "e", "\u00a3": "l",
}  # fmt: skip
_LEET_WORD = re.compile(r"(?<!\S)[\"(]?[A-Za-z0-9@$!\u20ac\u00a3']+(?=[\s.,;:?!)\"]|$)")
_INSIDE = re.compile(r"[A-Za-z'][013456789@$!\u20ac\u00a3]{1,3}[A-Za-z]")
_READINGS = 32
"""Ways to read one word of leetspeak that are tried."""
_RISE = re.compile("[a-z][A-Z]")
_DRAWN_OUT = re.compile(r"([A-Za-z])\1{2,}")


def seen(text: str) -> str:
    """The text without characters nobody sees; what was written in them, or against its direction, is put plainly."""
    if text.isascii():
        return _UNSEEN.sub("", text)
    text = _TAGS.sub(lambda run: " " + "".join(chr(ord(mark) - 0xE0000) for mark in run[0]), text)
    text = _SELECTORS.sub(_from_selectors, text)
    text = _REVERSED.sub(lambda run: run[1][::-1], text)
    return _UNSEEN.sub("", text)


def plain(text: str) -> str:
    """The text in plain letters and whole words; the same where nothing is disguised."""
    text = _IN_WORD.sub(_whole, text if text.isascii() else _undressed(text))
    return passages(_mended(_APART.sub(_closed_up, text)), _steps)


def passages(text: str, change: Callable[[str], str]) -> str:
    """A text with each of its passages changed: sentences, lines, or 400 characters of one that does not end."""
    return "".join(change(passage[0]) for passage in _PASSAGE.finditer(text))


@lru_cache(1024)  # a stream comes again and again, longer each time
def _steps(passage: str) -> str:
    for step in (_unaccented, _unleeted, _short, _calmed, _rejoined):
        passage = step(passage)
    return passage


def _from_selectors(run: re.Match[str]) -> str:
    codes = [ord(mark) for mark in run[0]]
    told = bytes(code - 0xFE00 if code < 0xFE10 else code - 0xE0100 + 16 for code in codes)
    return " " + told.decode("utf-8", "replace")


# -- letters that only look Latin -------------------------------------------------------------------


@lru_cache(4096)
def _latin(c: str) -> str:
    """The ASCII letter or digit that a character looks like; the character itself where there is none."""
    if c.isascii():
        return c
    if c in _LOOKALIKES:
        return _LOOKALIKES[c]
    named = _NAMED.match(unicodedata.name(c, ""))
    if named:
        return named[1].lower() if c.islower() or "SMALL" in unicodedata.name(c) else named[1]
    same = unicodedata.normalize("NFKC", c)
    return same if len(same) == 1 and same.isascii() else c


@lru_cache(4096)
def _accented(c: str) -> bool:
    """Whether it is an ordinary letter of a language, an ASCII one with a mark."""
    named = None if c.isascii() else _NAMED.match(unicodedata.name(c, ""))
    return bool(named and named[2]) or c == "\u0131"


def _undressed(text: str) -> str:
    """The text with words that are dressed up, heaped with marks or mixed of several scripts in ASCII.

    Where most of its foreign words are English so, all are; else only those that are, and of those that are
    wholly of another script only such as stand in Latin text.
    """
    odd = [word for word in set(text.split()) if any(map(_foreign, word))]
    told = {word: one for word in odd if (one := _stripped(word)) != word}
    real = {word for word, one in told.items() if _real(_from_leet(one)) or _all_known(WORD.findall(one))}
    if len(real) < max(3, 0.6 * len(odd)):
        letters = [c for c in text if c.isalpha()]
        latin = sum(map(str.isascii, letters)) > 0.5 * len(letters)
        told = {word: told[word] for word in real if len(told[word]) > 2 and (latin or not _of_another_script(word))}
    return _TOKEN.sub(lambda word: told.get(word[0], word[0]), text) if told else text


def _all_known(words: list[str]) -> bool:
    return bool(words) and all(map(known, words))


def _foreign(c: str) -> bool:
    return not c.isascii() and not _accented(c) and (c.isalpha() or _latin(c) != c or _MARK.match(c) is not None)


def _of_another_script(word: str) -> bool:
    return all(c in _LOOKALIKES for c in word if c.isalpha())


def _stripped(word: str) -> str:
    """A word in ASCII, if all its letters look so and it is not simply one of another alphabet, or accented."""
    if len(_MARK.findall(word)) > 0.7 * sum(map(str.isalpha, word)) or _OVERLAY.search(word):
        word = _MARK.sub("", unicodedata.normalize("NFD", word))
    if any(not _latin(c).isascii() for c in filter(_foreign, word)):
        return word
    return "".join(c if _accented(c) else _latin(c) for c in word)


def _unaccented(passage: str) -> str:
    if passage.isascii():
        return passage
    told = "".join(_latin(c) if _accented(c) else c for c in passage)
    return told if speaks(told) and english(told) >= english(passage) + 0.2 else passage


# -- letters set apart, and words cut up --------------------------------------------------------------


def _mended(text: str) -> str:
    """The text with words whole that were cut in two by the end of a line, or of an argument before the next one."""
    cuts = [(cut[1], cut[2]) for cut in _CUT.finditer(text) if known(cut[1] + cut[2])]
    strange = [sum(not known(half) for half in cut) for cut in cuts]
    if sum(strange) < 2:
        return text
    return _CUT.sub(lambda cut: cut[1] + cut[2] if known(cut[1] + cut[2]) else cut[0], text)


def _whole(run: re.Match[str]) -> str:
    """A word with marks in it, whole, where its parts are no words."""
    letters = _MARKUP.sub("", run[0])
    parts = _MARKUP.sub(" ", run[0]).split()
    return letters if known(letters) and not all(map(known, parts)) else run[0]


def _closed_up(run: re.Match[str]) -> str:
    """Letters set apart, as words; gaps wider than most, or of another kind, part them, else the vocabulary does."""
    letters, gaps = re.findall(r"[^\W_]", run[0]), re.findall(r"[\W_]+", run[0])
    if sum(map(str.isalpha, letters)) < 5:
        return run[0]
    usual = max(set(gaps), key=lambda gap: (gaps.count(gap), -len(gap)))
    told = letters[0] + "".join(("" if gap == usual else " ") + c for gap, c in zip(gaps, letters[1:], strict=True))
    words = [word if known(word) else parted(word) or word for word in told.split()]
    said = _unleeted(" ".join(words))
    return said if max(map(len, words)) > 3 and english(said) >= 0.6 else run[0]


def _rejoined(passage: str) -> str:
    """A passage whose words were cut up or run together, parted anew."""
    words = WORD.findall(passage)
    strange = [word for word in words if not known(word)]
    letters = "".join(words)
    cut_up = len(strange) > 3 and len(strange) > 0.4 * len(words) and len(letters) < 6 * len(words)
    if cut_up and len(letters) >= 0.9 * sum(not c.isspace() for c in passage):  # prose, not code or figures
        told = parted(letters)
        if told and speaks(told) and english(told) >= max(0.85, english(passage) + 0.25):
            return told
    if any(len(word) >= _GLUED for word in strange):
        return WORD.sub(lambda word: _unglued(word[0]), passage)
    return passage


def _unglued(word: str) -> str:
    """A sentence that was run together into one word; names of code mark their parts, and stay."""
    told = parted(word) if len(word) >= _GLUED and not known(word) and len(_RISE.findall(word)) < 2 else None
    return told if told and told.count(" ") > 3 and speaks(told) and english(told) == 1 else word


# -- other signs and other case ------------------------------------------------------------------------


def _unleeted(passage: str) -> str:
    """Digits and signs that stand for letters, as letters: in words that are English so, and in all where many are."""
    if not _INSIDE.search(passage):
        return passage
    told = {word: _from_leet(word) for word in set(_LEET_WORD.findall(passage)) if any(c in _LEET for c in word)}
    sure = {word: one for word, one in told.items() if _INSIDE.search(word) and len(one) > 2 and _real(one)}
    many = len(sure) > 2 or (len(sure) > 1 and len(sure) >= 0.25 * len(passage.split()))
    return _LEET_WORD.sub(lambda word: (told if many else sure).get(word[0], word[0]), passage) if sure else passage


def _real(word: str) -> bool:
    return known(word.strip('"(!').split("'")[0])


def _from_leet(word: str) -> str:
    """The likeliest reading of a word; an exclamation mark at its end may be one."""
    best: tuple[bool, float, str] | None = None
    for core in {word, word.rstrip("!")}:
        choices = [_LEET.get(c, c) for c in core.lower()]
        for choice in islice(product(*choices), _READINGS):
            told = "".join(choice)
            place = rank(told.strip('"(').split("'")[0])
            one = (place is None, place or 0, told + word[len(core) :])
            best = one if best is None or one < best else best
    return best[2] if best else word


def _short(passage: str) -> str:
    """Drawn-out letters, once or twice, where many words have them."""
    told = {word: _undrawn(word) for word in set(WORD.findall(passage)) if _DRAWN_OUT.search(word)}
    told = {word: one for word, one in told.items() if known(one)}
    return WORD.sub(lambda word: told.get(word[0], word[0]), passage) if len(told) > 2 else passage


def _undrawn(word: str) -> str:
    once, twice = _DRAWN_OUT.sub(r"\1", word), _DRAWN_OUT.sub(r"\1\1", word)
    return min((once, twice), key=lambda one: math.inf if (place := rank(one)) is None else place)


def _calmed(passage: str) -> str:
    """A passage in wild case, in lower case."""
    words = [word for word in WORD.findall(passage) if len(word) > 1]
    wild = [word for word in words if _RISE.search(word) and known(word)]
    return passage.lower() if len(set(wild)) > 2 and len(wild) >= 0.3 * len(words) else passage

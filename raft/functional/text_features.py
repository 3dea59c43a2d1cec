"""What a response has, as names: characters, marks, openings, endings, phrases and its shape.

A feature is there or not: a response full of '#' has the feature '#' once, so that counts of responses, not of
occurrences, are compared. How much of one response a thing takes up is a feature of its own (``shape``).
Words are runs of letters and digits; where a script sets no spaces (Chinese, Japanese, Thai, Khmer ...) every
character is a word.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

KINDS = ("shape", "character", "mark", "opening", "ending", "phrase")
MAX_WORDS = 4  # of a phrase, an opening, an ending

# Thai, Lao, Burmese, Khmer; Japanese kana; Chinese characters with their extensions.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+(?:['\u2019][^\W_{_UNSPACED}]+)*")
_ONE_UNSPACED = re.compile(rf"[{_UNSPACED}]")

# Markup by name, as expressions that a discard rule can use.
MARKUP = {
    "heading": r"(?m)^\s{0,3}#{1,6} ",
    "bullet": r"(?m)^\s*[-*+\u2022] ",
    "numbered list": r"(?m)^\s*\d{1,3}[.)] ",
    "bold": r"\*\*[^*\n]+\*\*",
    "code": r"`",
    "tag": r"</?[A-Za-z][^<>\n]*>",
    "link": r"https?://|\]\(",
    "table": r"(?m)^\s*\|.*\|",
    "line break": r"\S\s*\n\s*\S",
}
_MARKUP = {name: re.compile(pattern) for name, pattern in MARKUP.items()}
_EMOTICON = re.compile(r"[:;=][-o'^]?(?:[()\[\]|\\*]+|[DPpO3](?!\w)|/(?!/))|<3(?!\d)|\^[_.]?\^")

REPEATED_SHARE = 0.25  # of a response's four-word phrases that it has said before
FILLING_SHARE = 0.1  # of a response's characters that are one sign


@dataclass(frozen=True)
class Lengths:
    """Between which lengths, in characters, nine in ten responses lay at the start."""

    low: int
    high: int

    @classmethod
    def of(cls, texts: Sequence[str]) -> Lengths:
        """5th and 95th percentile of the lengths; one in twenty is shorter and one in twenty longer, or fewer."""
        lengths = sorted(map(len, texts)) or [0]
        at = len(lengths) // 20
        return cls(lengths[at], lengths[-1 - at])


def split_words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return _WORD.findall(text.lower())


def response_features(text: str, finish_reason: str, lengths: Lengths) -> dict[str, set[str]]:
    """The features of a response by kind.

    Args:
        text: the response; may be empty, in any script.
        finish_reason: eos, stop or length.
        lengths: what is short and what is long.
    """
    words = split_words(text)
    return {
        "shape": _shape(text, finish_reason, words, lengths),
        "character": {name for name in map(_sign, set(text)) if name},
        "mark": _marks(text),
        "opening": {" ".join(words[:n]) for n in range(1, min(MAX_WORDS, len(words)) + 1)},
        "ending": {" ".join(words[-n:]) for n in range(1, min(MAX_WORDS, len(words)) + 1)},
        "phrase": _phrases(words),
    }


def _phrases(words: Sequence[str]) -> set[str]:
    phrases = set(words)
    for n in range(2, MAX_WORDS + 1):
        phrases.update(map(" ".join, zip(*(words[i:] for i in range(n)), strict=False)))
    return phrases


def _marks(text: str) -> set[str]:
    marks = {name for name, pattern in _MARKUP.items() if pattern.search(text)}
    return marks.union(_EMOTICON.findall(text))


def _shape(text: str, finish_reason: str, words: Sequence[str], lengths: Lengths) -> set[str]:
    held = {
        "empty": not text.strip(),
        "no end": finish_reason == "length",
        f"under {lengths.low} characters": len(text) < lengths.low,
        f"over {lengths.high} characters": len(text) > lengths.high,
        "says the same again": _repeated_share(words) >= REPEATED_SHARE,
        "filled with one sign": _filling_share(text) >= FILLING_SHARE,
    }
    return {name for name, is_so in held.items() if is_so}


def _repeated_share(words: Sequence[str]) -> float:
    """Share of the four-word phrases that were said before in the same response, 0 for fewer than eight words."""
    num_phrases = len(words) - MAX_WORDS + 1
    if len(words) < 2 * MAX_WORDS:
        return 0.0
    return 1 - len(set(zip(*(words[i:] for i in range(MAX_WORDS)), strict=False))) / num_phrases


def _filling_share(text: str) -> float:
    """Share of the characters that are the commonest sign (neither letter, digit nor space); 0 under 20 characters."""
    if len(text) < 20:
        return 0.0
    counts = Counter(text)
    return max((n for sign, n in counts.items() if not sign.isalnum() and not sign.isspace()), default=0) / len(text)


@lru_cache(maxsize=1 << 14)
def _sign(character: str) -> str | None:
    """A sign as itself, a letter of another script than Latin as its script, None for Latin, digits and spaces."""
    if character.isascii():
        return None if character.isalnum() or character.isspace() else character
    if character.isspace():
        return None
    if character.isalpha() or unicodedata.category(character).startswith("M"):
        script = unicodedata.name(character, "UNNAMED").split()[0]
        return None if script == "LATIN" else f"{script} letters"
    return character


# ---------------------------------------------------------------- features as regular expressions


def feature_patterns(kind: str, name: str) -> list[str]:
    """Regular expressions that find a feature, the narrowest first; none where only its shape tells.

    The narrow ones spare what is ordinary: '#' in a row before '#' anywhere, which would discard every heading.
    """
    if kind == "phrase":
        return [rf"(?i){_phrase(name)}"]
    if kind == "opening":
        return [rf"(?i)^[\W_]*{_phrase(name)}"]
    if kind == "ending":
        return [rf"(?i){_phrase(name)}[\W_]*$"]
    if kind == "mark":
        return [MARKUP.get(name, re.escape(name))]
    if kind == "character" and len(name) == 1:
        sign = re.escape(name)
        return [rf"(?:{sign}\s*){{5,}}", rf"(?:{sign}\s*){{3,}}", rf"{sign}{{2,}}", rf"(?:{sign}[\s\S]*){{3,}}", sign]
    if name == "filled with one sign":
        return [r"(?:([^\w\s])\s*)(?:\1\s*){7,}"]
    if name == "says the same again":
        return [r"(?i)\b(\w+(?:\W+\w+){3})\b[\s\S]*\b\1\b"]
    return []


def _phrase(name: str) -> str:
    """Words with whatever may stand between them; whole words, where the script has such."""
    words = name.split(" ")
    parts = [re.escape(words[0])]
    for before, word in itertools.pairwise(words):
        touching = _ONE_UNSPACED.fullmatch(before) and _ONE_UNSPACED.fullmatch(word)
        parts += [r"[\W_]*" if touching else r"[\W_]+", re.escape(word)]
    begin, end = ("" if _ONE_UNSPACED.fullmatch(word) else r"\b" for word in (words[0], words[-1]))
    return begin + "".join(parts) + end

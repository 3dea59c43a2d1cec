"""Word tokens for the diversity metrics, in the manner of the Penn Treebank and NLTK's ``word_tokenize``.

Published diversity numbers (GEM, the RAFT paper's tables) count these tokens; a whitespace split would count
``centre`` and ``centre.`` as two words. The rules are written from the conventions, need no downloaded model,
and work word by word, so that splits are cached: English repeats its words. A full stop is a token of its own
only at the end of a sentence (``Mr. Smith left.`` -> ``mr. smith left .``), which a short list of
abbreviations decides here instead of a trained model.

Scripts that are written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan) would be one word a
sentence, all different. There every character is a token, with the marks that belong to it, as in sacreBLEU's ``zh``.
"""

from __future__ import annotations

import re
import string
import unicodedata
from functools import lru_cache

# Written as escapes: they look alike in print.
_LEFT_QUOTES = "\u00ab\u201c\u2018\u201e"
_RIGHT_QUOTES = "\u00bb\u201d\u2019"
_LONG_DASHES = "\u2012\u2013\u2014\u2015"

# What may stand between a full stop and the space after it, and before the first letter of a word.
_CLOSERS = f"\"'{_RIGHT_QUOTES})]}}>*_"
_OPENERS = f"\"'{_LEFT_QUOTES}([{{<*_`"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ABBREVIATIONS = _words(
    """
    adm al approx apr assn assoc aug ave bldg blvd brig bros capt cf cmdr co col corp cpl dec dept dr est
    etc feb fr ft gen gov hon inc jan jr lt ltd maj messrs mr mrs ms mt mtn nov oct ph.d prof rep rev sen
    sept sgt sr st supt univ vs
    """
)
# Abbreviations only before a number: "No. 5", but "No. I will not."
_NUMBER_ABBREVIATIONS = _words("art ch eq fig figs jul jun mar no nos p pp sec vol")
_INITIALS = re.compile(r"[^\W\d_](?:\.[^\W\d_])*")  # J  U.S  e.g
_LIST_NUMBER = re.compile(r"\d+")
# One of these opens a sentence after an abbreviation too: "... at 5 p.m. The doors ..."
_SENTENCE_STARTERS = _words(
    """
    a after also although an and another as at because before both but by each even for from he her here his
    how however i if in it its many more most my no not on one our other she since so some that the their
    then there these they this those to we what when where which while who why with yes you your
    """
)

# Blocks of the scripts without spaces, and of the punctuation that comes with them.
_UNSPACED_BLOCKS = (
    (0x0E00, 0x0FFF),  # Thai, Lao, Tibetan
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3000, 0x30FF),  # CJK punctuation, hiragana, katakana
    (0x31F0, 0x31FF),  # katakana for Ainu
    (0x3400, 0x4DBF),  # Chinese characters
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF01, 0xFF0F),  # full-width punctuation; full-width letters and digits make words
    (0xFF1A, 0xFF20),
    (0xFF3B, 0xFF40),
    (0xFF5B, 0xFF9F),  # and half-width katakana
    (0x20000, 0x323AF),  # rarer Chinese characters
)
_UNSPACED_CLASS = "".join(f"{chr(first)}-{chr(last)}" for first, last in _UNSPACED_BLOCKS)
# Vowel signs, tone marks and the like: they belong to the character before them.
_MARKS = "".join(
    chr(code)
    for first, last in _UNSPACED_BLOCKS[:5]
    for code in range(first, last + 1)
    if unicodedata.category(chr(code)) in ("Mn", "Mc")
)
_UNSPACED = re.compile(f"[{_UNSPACED_CLASS}][{_MARKS}]*")

_SINGLES = re.escape(f"{_LEFT_QUOTES}{_RIGHT_QUOTES}{_LONG_DASHES};@#$%&?!*()[]{{}}<>")
_PIECES = re.compile(
    rf"""
      \.{{2,}}                                # ellipsis
    | `+ | '' | "                             # quotes
    | --
    | [:,](?!\d)                              # but 3,000 and 10:30 stay whole
    | [{_SINGLES}]
    | (?: (?! \.\. | '' | -- | [:,](?!\d)) [^\s`"{_SINGLES}] )+
    """,
    re.VERBOSE,
)
_OPENING_QUOTE = re.compile(r"""(?:^|(?<=[(\[{<]))(?:"|'')""")
_OPENING_APOSTROPHE = re.compile(r"(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", re.IGNORECASE)
_CLITIC = re.compile(r"(?<=[^'\s])('[sSmMdD]|'ll|'LL|'re|'RE|'ve|'VE|n't|N'T|')$")
_CONTRACTION = re.compile(
    r"\b(?:(can)(not)|(d)('ye)|(gim)(me)|(gon)(na)|(got)(ta)|(lem)(me)|(more)('n))\b", re.IGNORECASE
)
_WANNA = re.compile(r"\b(wan)(na)$", re.IGNORECASE)


def tokenize(text: str, *, keep_punctuation: bool = True) -> list[str]:
    """Split a text into lower-case word tokens.

    keep_punctuation: False drops the tokens that are one ASCII punctuation character (GEM's ``nopunct``).
    Double quotes become the Treebank's `` and ''.
    """
    words = (text if text.isascii() else _UNSPACED.sub(r" \g<0> ", text)).split()
    tokens: list[str] = []
    for position, word in enumerate(words):
        if "." in word:
            following = words[position + 1] if position + 1 < len(words) else ""
            tokens += _split_word(word, ends_sentence(word, following))
        else:
            tokens += _split_word(word, False)
    return tokens if keep_punctuation else [token for token in tokens if token not in string.punctuation]


def ends_sentence(word: str, following: str) -> bool:
    """Whether the full stop at the end of ``word`` closes a sentence; ``following``: the next word or ""."""
    stem = word.rstrip(_CLOSERS)
    if not stem.endswith(".") or stem.endswith(".."):
        return False
    if not following:
        return True
    stem = stem[:-1].lstrip(_OPENERS).lower()
    next_word = following.lstrip(_OPENERS)
    if stem in _NUMBER_ABBREVIATIONS:
        return not next_word[:1].isdigit()
    if stem in _ABBREVIATIONS or _INITIALS.fullmatch(stem):
        return next_word[:1].isupper() and next_word.rstrip(_CLOSERS + ",!?:;").lower() in _SENTENCE_STARTERS
    if _LIST_NUMBER.fullmatch(stem):
        return not next_word[:1].islower()
    return True


@lru_cache(maxsize=1 << 16)
def _split_word(word: str, full_stop: bool) -> tuple[str, ...]:
    """Tokens of one whitespace-free string. ``full_stop``: split off the full stop at its end."""
    if full_stop:
        stem = word.rstrip(_CLOSERS)
        word = f"{stem[:-1]} . {word[len(stem) :]}"
    word = _OPENING_QUOTE.sub(" `` ", word)
    word = _OPENING_APOSTROPHE.sub("' ", word)
    tokens: list[str] = []
    for piece in _PIECES.findall(word):
        if piece == '"':
            tokens.append("''")
        else:
            tokens += _split_contractions(piece).lower().split()
    return tuple(tokens)


def _split_contractions(piece: str) -> str:
    """Set spaces into what is written as one word: don't -> do n't, cannot -> can not."""
    if piece in ("''", "'"):
        return piece
    piece = _CLITIC.sub(r" \1", piece)
    piece = _CONTRACTION.sub(lambda match: " ".join(part for part in match.groups() if part), piece)
    return _WANNA.sub(r"\1 \2", piece)

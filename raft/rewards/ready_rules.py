"""Ready rules: sources of reward that need no model. ``rule:repetition,n=3,max=0.2``

Each gives 0 to a response it has nothing against, and down to -1 for one it has. As ``--reward`` a rule is a penalty
with a weight; as ``--discard_rule`` it discards what it scores below 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Protocol

from raft.arguments import nearest
from raft.errors import UserError
from raft.functional.penalties import outside_bounds, overlong_penalty, repeated_share
from raft.functional.tokens import tokenize
from raft.rewards.language import language_model, languages_differ
from raft.rewards.source import Candidate, Excluded


class Rule(Protocol):
    """One rule with its options as attributes."""

    def __call__(self, candidate: Candidate) -> float | Excluded:
        """The penalty of a response, from 0 (fine) to -1, or why it can not be told."""
        ...


@dataclass(frozen=True)
class Regex:
    """-1 where ``pattern`` matches anywhere."""

    pattern: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"{self.pattern!r} is no regular expression: {error}") from error

    def __call__(self, candidate: Candidate) -> float:
        return -1.0 if re.search(self.pattern, candidate.response) else 0.0


@dataclass(frozen=True)
class Characters:
    """-1 where one of ``characters`` occurs."""

    characters: str

    def __call__(self, candidate: Candidate) -> float:
        return -1.0 if set(self.characters) & set(candidate.response) else 0.0


@dataclass(frozen=True)
class Repetition:
    """Minus the share of the response's ``n``-grams of words that stood in it before, where it is above ``max``."""

    n: int = 3
    max: float = 0.0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n: found {self.n}, allowed are whole numbers from 1")
        if self.max >= 1:
            raise ValueError(f"max: found {self.max:g}, allowed is a share from 0 to below 1")

    def __call__(self, candidate: Candidate) -> float:
        share = repeated_share(tokenize(candidate.response), self.n)
        return -share if share > self.max else 0.0


@dataclass(frozen=True)
class Length:
    """-1 outside of ``min`` to ``max``, counted in ``unit``: tokens (the policy's, EOS included), words, characters."""

    min: int = 0
    max: int | None = None
    unit: str = "tokens"
    units: ClassVar[tuple[str, ...]] = ("tokens", "words", "characters")

    def __post_init__(self) -> None:
        if self.unit not in self.units:
            raise ValueError(f"unit: found {self.unit}, expected one of {', '.join(self.units)}")
        if self.max is None and not self.min:
            raise ValueError("needs a bound, as in rule:length,min=5 or rule:length,max=200")
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max: found {self.max}, allowed is min ({self.min}) or more")

    def __call__(self, candidate: Candidate) -> float | Excluded:
        if self.unit == "tokens":
            if candidate.response_tokens is None:
                return Excluded("was not given the response's tokens", "unit=words needs none")
            length = len(candidate.response_tokens)
        else:
            length = len(tokenize(candidate.response) if self.unit == "words" else candidate.response)
        return outside_bounds(length, self.min, self.max)


@dataclass(frozen=True)
class Overlong:
    """Soft overlong punishment (DAPO, equation 13): 0 up to ``max - cache`` tokens, falling to -1 at ``max``."""

    max: int
    cache: int

    def __post_init__(self) -> None:
        if not 0 < self.cache <= self.max:
            raise ValueError(f"cache: found {self.cache}, allowed is 1 to max ({self.max})")

    def __call__(self, candidate: Candidate) -> float | Excluded:
        if candidate.response_tokens is None:
            return Excluded("was not given the response's tokens")
        return overlong_penalty(len(candidate.response_tokens), self.max, self.cache)


@dataclass(frozen=True)
class EOS:
    """-1 for a response that was cut at the maximum length instead of ending by EOS or a stop string."""

    def __call__(self, candidate: Candidate) -> float | Excluded:
        if candidate.finish_reason is None:
            return Excluded("was not told how the response ended")
        return -1.0 if candidate.finish_reason == "length" else 0.0


@dataclass(frozen=True)
class Language:
    """-1 where the response is in another language than the prompt, if both are sure (``confidence``) enough."""

    confidence: float = 0.8

    def __post_init__(self) -> None:
        if self.confidence > 1:
            raise ValueError(f"confidence: found {self.confidence:g}, allowed is 0 to 1")
        language_model()  # a missing package is noticed now rather than after the first sampling

    def __call__(self, candidate: Candidate) -> float:
        asked = "\n".join(message["content"] for message in candidate.messages if message["role"] == "user")
        return -1.0 if languages_differ(asked, candidate.response, self.confidence) else 0.0


RULES: dict[str, Callable[..., Rule]] = {
    "regex": Regex,
    "characters": Characters,
    "repetition": Repetition,
    "length": Length,
    "overlong": Overlong,
    "eos": EOS,
    "language": Language,
}


class RuleSource:
    """A rule as a source of reward: every rank scores all, which takes less time than sharing."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def score(
        self, candidates: Sequence[Candidate], *, name: str, progress: str | None = "scoring"
    ) -> list[float | Excluded]:
        """Score candidates: see :class:`raft.rewards.source.RewardSource`."""
        return [self.rule(candidate) for candidate in candidates]


def load_rule(name: str, options: Mapping[str, str], flag: str) -> Rule:
    """A rule with its options as texts.

    Raises:
        UserError: for an unknown rule or option, one that lacks, or a value of the wrong type.
    """
    if name not in RULES:
        raise UserError(f"{flag}: unknown rule {name}, expected one of {', '.join(RULES)}.{nearest(name, RULES)}")
    known = {item.name: item for item in fields(RULES[name])}  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            allowed = ", ".join(known) or "none"
            raise UserError(f"{flag}: unknown option {option}, expected {allowed}.{nearest(option, known)}")
    for option, item in known.items():
        if item.default is MISSING and not options.get(option):
            raise UserError(f"{flag}: needs the option {option}, as in rule:{name},{option}=...")
    values = {option: _value(known[option].type, text, f"{flag}: {option}") for option, text in options.items()}
    try:
        return RULES[name](**values)
    except ValueError as error:
        raise UserError(f"{flag}: {error}.") from error


def _value(kind: Any, text: str, where: str) -> Any:
    """A text as the type that the field is annotated with (as text itself: annotations are not evaluated here)."""
    if kind == "str":
        return text
    convert = float if kind == "float" else int
    try:
        number = convert(text)
    except ValueError:
        number = -1
    if not 0 <= number < float("inf"):
        expected = "a number from 0" if convert is float else "a whole number from 0"
        raise UserError(f"{where}: found {text!r}, expected {expected}.")
    return number

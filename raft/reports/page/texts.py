"""Which samples come onto the page, and how they are laid out there.

A run of the paper's size has 164,000 samples, 100 MB of text. The page takes whole prompts, with all of their
responses: first those of an iteration's extremes (highest and lowest reward, longest, shortest, discarded), then
others in an order that depends on the prompt alone, so that a prompt that is drawn again is kept again.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from raft.reports.page.records import Row

Prompt = tuple[tuple[str, str], ...]  # messages: role, content

MAX_CHARACTERS = 4000  # of one text; a longer one keeps its beginning and its end
EXTREMES = 3  # of each kind, in each iteration


@dataclass(frozen=True)
class Group:
    """All responses to one prompt at one time (an iteration, or an evaluation)."""

    prompt: Prompt
    prompt_id: str
    rows: list[Row]

    @property
    def size(self) -> int:
        """Characters it takes; 40 for a row's numbers."""
        return sum(len(text) for _, text in self.prompt) + sum(len(text_of(row)) + 40 for row in self.rows)


@dataclass
class Choice:
    """Groups of one time, the most telling first, and what all of its samples were, also those left out."""

    groups: list[Group] = field(default_factory=list)
    num_prompts: int = 0
    num_samples: int = 0
    num_selected: int = 0
    discarded: Counter[str] = field(default_factory=Counter)

    @property
    def size(self) -> int:
        """Characters of all groups."""
        return sum(group.size for group in self.groups)

    def within(self, budget: float) -> list[Group]:
        """The first groups, up to ``budget`` characters and at least one."""
        kept, used = self.groups[:1], sum(group.size for group in self.groups[:1])
        for group in self.groups[1:]:
            used += group.size
            if used > budget:
                break
            kept.append(group)
        return kept


def choose(rows: Iterable[Row], *, budget: float, extremes: bool = True) -> Choice:
    """Order the prompts of one time by how much they tell, and keep those that can come onto the page at all.

    Args:
        rows: of samples.jsonl or a held-out file; taken over, without prompts and tokens.
        budget: characters.
        extremes: put the prompts of the extremes first; without, the order depends on the prompts alone.
    """
    choice, by_prompt = Choice(), dict[Prompt, Group]()
    for row in rows:
        prompt, tokens = messages(row.pop("prompt", None)), row.pop("response_tokens", None)
        if prompt not in by_prompt:
            by_prompt[prompt] = Group(prompt, str(row.get("prompt_id", "")), [])
        by_prompt[prompt].rows.append(row)
        row["num_tokens"] = len(tokens) if isinstance(tokens, list) else None
        choice.num_samples += 1
        choice.num_selected += bool(row.get("selected"))
        if row.get("discarded"):
            choice.discarded[str(row["discarded"])] += 1
    choice.num_prompts = len(by_prompt)
    first = extreme_prompts(by_prompt) if extremes else set()
    choice.groups = sorted(by_prompt.values(), key=lambda group: (group.prompt not in first, _shuffled(group.prompt)))
    choice.groups = choice.within(budget)
    return choice


def extreme_prompts(by_prompt: dict[Prompt, Group]) -> set[Prompt]:
    """Prompts whose responses are an iteration's best, worst, longest, shortest, or discarded (for each reason)."""
    places = [(prompt, row) for prompt, group in by_prompt.items() for row in group.rows]
    rewarded = sorted((p for p in places if number(p[1].get("reward")) is not None), key=lambda p: p[1]["reward"])
    by_length = sorted(places, key=lambda place: len(text_of(place[1])))
    found = [*rewarded[:EXTREMES], *rewarded[-EXTREMES:], *by_length[:EXTREMES], *by_length[-EXTREMES:]]
    seen: Counter[str] = Counter()
    for prompt, row in places:
        reason = str(row.get("discarded") or "")
        if reason and seen[reason] < EXTREMES:
            seen[reason] += 1
            found.append((prompt, row))
    return {prompt for prompt, _ in found}


@dataclass
class Prompts:
    """Every prompt on the page once, numbered, whichever run and iteration it belongs to."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    numbers: dict[Prompt, int] = field(default_factory=dict)

    def number(self, group: Group) -> int:
        """The number of a group's prompt."""
        if group.prompt not in self.numbers:
            self.numbers[group.prompt] = len(self.entries)
            content = [[role, *clipped(text)] for role, text in group.prompt]
            self.entries.append({"id": group.prompt_id, "messages": content})
        return self.numbers[group.prompt]


def columns(groups: Iterable[tuple[int, Group]], prompts: Prompts) -> dict[str, list[Any]]:
    """Samples as columns of equal length, which compress better than rows.

    Args:
        groups: (iteration, group).
        prompts: gets the groups' prompts.

    Returns:
        ``iteration, prompt, id, response, omitted, reward, scores, tokens, finish, discarded, selected``.
        ``omitted`` is the number of characters that a clipped response has lost.
    """
    table: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    for iteration, group in groups:
        prompt = prompts.number(group)
        for row in group.rows:
            response, omitted = clipped(text_of(row))
            scores = row.get("scores") if isinstance(row.get("scores"), dict) else {}
            values = (
                iteration,
                prompt,
                number(row.get("sample_id")),
                response,
                omitted,
                number(row.get("reward")),
                {str(name): number(value) for name, value in scores.items()},  # type: ignore[union-attr]
                row.get("num_tokens"),
                _text(row.get("finish_reason")),
                _text(row.get("discarded")),
                _flag(row.get("selected")),
            )
            for name, value in zip(_COLUMNS, values, strict=True):
                table[name].append(value)
    return table


_COLUMNS = (
    "iteration", "prompt", "id", "response", "omitted", "reward", "scores", "tokens", "finish", "discarded", "selected",
)  # fmt: skip


def messages(prompt: Any) -> Prompt:
    """A prompt as roles and texts: it is a list of messages, or one text without a role."""
    if not isinstance(prompt, list):
        return (("", str(prompt or "")),)
    pairs = ((one.get("role", ""), one.get("content", "")) if isinstance(one, dict) else ("", one) for one in prompt)
    return tuple((str(role), text if isinstance(text, str) else json.dumps(text)) for role, text in pairs)


def text_of(row: Row) -> str:
    """The response; "" where a row has none."""
    return str(row.get("response") or "")


def clipped(text: str) -> tuple[str, int]:
    """A text of at most ``MAX_CHARACTERS``, and how many were taken out of its middle."""
    if len(text) <= MAX_CHARACTERS:
        return text, 0
    half = MAX_CHARACTERS // 2
    return text[:half] + "\n\N{HORIZONTAL ELLIPSIS}\n" + text[-half:], len(text) - 2 * half


def number(value: Any) -> float | None:
    """A finite number with four decimals, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        return None
    return round(value, 4)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _shuffled(prompt: Prompt) -> bytes:
    """A sort key that looks random, and is the same whenever the prompt comes."""
    return hashlib.blake2b(json.dumps(prompt).encode(), digest_size=8).digest()

"""What would counter an alarm of the drift watch: a discard rule, tried on the records; and excerpts to look at."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from raft.functional.text_features import feature_patterns
from raft.reports.drift_records import Finding, Records
from raft.rewards.rules import DiscardConfig, discard_reason
from raft.rewards.source import Candidate

MAX_TRIED = 1000  # responses that a rule is tried on
NUM_EXAMPLES = 3
EXCERPT = 60  # characters on each side of what was found


def countering_rule(alarm: Finding, now: Records, start: Records) -> dict[str, Any] | None:
    """The flag that would discard the responses of an alarm, with what it would have discarded.

    Of the rules that there are for it, the one whose share of discarded responses has grown most since the start: it
    catches what has spread and spares what was there before, a heading's '#' for instance.

    Returns:
        ``flag``, ``value`` (None for a switch), ``command`` as it is typed, ``caught`` (share of the alarm's
        responses), ``discards_now`` and ``discards_start`` (shares of all); None where no rule tells it apart.
    """
    rules = [_tried(flag, value, alarm, now, start) for flag, value in _rules(alarm)]
    if not rules:
        return None
    best = max(rules, key=lambda rule: float(rule["discards_now"] - rule["discards_start"]))  # the first of equals
    return best if best["discards_now"] > best["discards_start"] else None


def _rules(alarm: Finding) -> Iterator[tuple[str, Any]]:
    """Flags and values that may counter an alarm, the narrowest first."""
    if alarm.kind == "shape":
        if alarm.feature == "empty":
            yield "discard_shorter_than", 1
        if alarm.feature == "no end":
            yield "discard_unfinished", None
        if found := re.fullmatch(r"under (\d+) characters", alarm.feature):
            yield "discard_shorter_than", int(found[1])
        if found := re.fullmatch(r"over (\d+) characters", alarm.feature):
            yield "discard_regex", rf"^[\s\S]{{{int(found[1]) + 1},}}"
    for kind, name in alarm.members:
        for pattern in feature_patterns(kind, name):
            yield "discard_regex", pattern


def _tried(flag: str, value: Any, alarm: Finding, now: Records, start: Records) -> dict[str, Any]:
    setting: Any = [value] if flag == "discard_regex" else True if value is None else value
    config = replace(DiscardConfig(), **{flag: setting})
    having = set(now.having(alarm.kind, alarm.feature))
    discarded = {i: _discards(config, now, i) for i in _some(now)}
    caught = [is_discarded for i, is_discarded in discarded.items() if i in having]
    discarded_start = [_discards(config, start, i) for i in _some(start)]
    return {
        "flag": flag,
        "value": value,
        "command": f"--{flag}" if value is None else f"--{flag} {shlex.quote(str(value))}",
        "caught": sum(caught) / max(len(caught), 1),
        "discards_now": sum(discarded.values()) / len(discarded),
        "discards_start": sum(discarded_start) / len(discarded_start),
    }


def _some(records: Records) -> range:
    """Numbers of at most a thousand responses, evenly spread: a share needs no more, and there are many rules."""
    return range(0, len(records.texts), -(-len(records.texts) // MAX_TRIED))


def _discards(config: DiscardConfig, records: Records, i: int) -> bool:
    return discard_reason(config, Candidate((), records.texts[i], records.finish_reasons[i])) is not None


def examples(alarm: Finding, records: Records) -> list[dict[str, Any]]:
    """Excerpts around what was found, of responses to different prompts, selected ones first."""
    having = records.having(alarm.kind, alarm.feature)
    having.sort(key=lambda i: (not records.selected[i], i))
    by_prompt: dict[str, int] = {}
    for i in having:
        by_prompt.setdefault(records.prompts[i], i)
    return [
        {
            "prompt_id": records.prompts[i],
            "sample": i,
            "selected": records.selected[i],
            "excerpt": excerpt(records.texts[i], feature_patterns(alarm.kind, alarm.feature)),
        }
        for i in list(by_prompt.values())[:NUM_EXAMPLES]
    ]


def excerpt(text: str, patterns: list[str]) -> str:
    """The text around the first match of a pattern; its beginning where none matches."""
    found = next((match for match in (re.search(pattern, text) for pattern in patterns) if match), None)
    begin, end = (found.start(), min(found.end(), found.start() + EXCERPT)) if found else (0, EXCERPT)
    low, high = max(0, begin - EXCERPT), min(len(text), end + EXCERPT)
    return ("..." if low else "") + text[low:high] + ("..." if high < len(text) else "")

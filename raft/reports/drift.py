"""The drift watch: what became more frequent in the responses than at the start, and is favoured by selection.

A reward model does not see everything, and what it does not see spreads. After every iteration the features of the
responses (:mod:`raft.functional.text_features`) are compared with those of the first iteration and of the held-out
responses before training. An alarm is a feature that has risen by ``drift_ratio``, is in ``drift_share`` of the
responses and in those to ``drift_prompts`` prompts, is more frequent among the selected responses than among all,
and has risen by more than chance and longer responses explain, corrected for everything tested in the run
(docs/drift.md).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from raft.arguments import argument
from raft.config import require
from raft.functional.drift import holm, num_looks, rise, tally, upper_tail
from raft.functional.text_features import KINDS, Lengths
from raft.reports.drift_records import Finding, Records, mean_length
from raft.reports.drift_rules import countering_rule, examples

MIN_RATIO_LOW = 1.2  # lower end of an alarm's ratio: in a large run every small change is significant
SAME_SHARE = 0.5  # of the responses that have one of two features: both have it, so they are one alarm
NUM_RISEN = 20  # rows of the table besides the alarms
WORDING = ("opening", "ending", "phrase")
ANYWHERE = ("character", "mark", "phrase")  # kinds that longer responses have more of


@dataclass
class DriftConfig:
    """Drift watch (an alarm for what spreads in the responses and is favoured by selection)"""

    drift_ratio: float = argument(1.5, "Alarm for what has become so many times as frequent as at the start.")
    drift_share: float = argument(0.03, "Alarm only for what so large a share of the responses has.")
    drift_prompts: int = argument(4, "Alarm only for what is in the responses to so many prompts.")
    drift_false_alarms: float = argument(
        0.05, "Probability of a false alarm in a whole run that does not drift; 0 switches the watch off."
    )

    def __post_init__(self) -> None:
        require(self.drift_ratio >= 1, f"--drift_ratio: found {self.drift_ratio}, allowed is 1 or more.")
        require(0 < self.drift_share < 1, f"--drift_share: found {self.drift_share}, allowed is between 0 and 1.")
        require(self.drift_prompts >= 1, f"--drift_prompts: found {self.drift_prompts}, allowed are integers from 1.")
        level = self.drift_false_alarms
        require(0 <= level < 1, f"--drift_false_alarms: found {level}, allowed is 0 to below 1.")


class Watch:
    """Compares the responses of one iteration after the other with those of the first.

    Args:
        held_out: held-out responses before training; they count to the start.
    """

    def __init__(self, config: DriftConfig, held_out: Records | None = None) -> None:
        self.config = config
        self.iteration = 0
        self.starts: list[Records] = [held_out] if held_out is not None else []
        self.lengths = Lengths(0, 0)
        self.num_all, self.num_selected = 0, 0  # responses of all iterations so far
        self.all: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}  # those that have a feature
        self.selected: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        self.first_alarms: dict[tuple[str, str], int] = {}

    def look(self, records: Records) -> dict[str, Any]:
        """Take the responses of the next iteration; gives the content of ``drift.json``."""
        self.iteration += 1
        if self.iteration == 1:
            self.lengths = Lengths.of(records.texts)
            self.starts.insert(0, records)
        for one in (records, *self.starts):
            one.analyse(self.lengths)
        self._count_selection(records)
        kinds = KINDS if self.iteration > 1 else ()
        findings = sorted(
            (finding for kind in kinds for finding in self._test(kind, records)), key=lambda one: (-one.z, one.feature)
        )
        alarms = self._merge([finding for finding in findings if self._is_alarm(finding)], records)
        risen = [finding for finding in findings if finding.ratio_low > 1 and not self._is_alarm(finding)]
        return {
            "iteration": self.iteration,
            "num_responses": len(records.texts),
            "num_responses_start": sum(len(start.texts) for start in self.starts),
            "num_tested": sum(finding.p is not None for finding in findings),
            "settings": asdict(self.config),
            "alarms": [asdict(alarm) for alarm in alarms],
            "risen": [asdict(finding) for finding in risen[:NUM_RISEN]],
        }

    def _count_selection(self, records: Records) -> None:
        """Add to the counts over all iterations; what is rare now is left out, it would fill the memory."""
        self.num_all += len(records.texts)
        self.num_selected += sum(records.selected)
        for kind in KINDS:
            frequent = records.frequent(kind, self.config.drift_share / 2 * len(records.texts))
            self.all[kind].update({name: records.counts[kind][name] for name in frequent})
            for features, selected in zip(records.features[kind], records.selected, strict=True):
                if selected:
                    self.selected[kind].update(features & frequent)

    def _vocabulary(self, kind: str, records: Records) -> list[str]:
        """Features that could be an alarm, by how many responses have them now and at the start together.

        By the counts of all sides together: so it does not depend on the difference which of them are tested.
        """
        sides = (records, *self.starts)
        share_now = len(records.texts) / sum(len(side.texts) for side in sides)
        # Even if all that have it are of now, and nothing else of its kind is tested, p is share_now^number.
        highest = self.config.drift_false_alarms / len(KINDS) / num_looks(self.iteration)
        conclusive = math.log(highest) / math.log(share_now) if highest else 1.0
        least = max(conclusive, self.config.drift_share * len(records.texts))
        candidates = set().union(*(side.frequent(kind, least / len(sides)) for side in sides))
        return sorted(name for name in candidates if sum(side.counts[kind][name] for side in sides) >= least)

    def _test(self, kind: str, records: Records) -> list[Finding]:
        """What there is to say of every feature of a kind; those that selection favours are tested.

        What it does not favour can not be an alarm. Which of the responses were selected says nothing of how many
        have a feature, so leaving the others out makes the correction milder and not wrong.
        """
        vocabulary = self._vocabulary(kind, records)
        if not vocabulary:
            return []
        now, *starts = (tally(one.features[kind], one.prompts, vocabulary) for one in (records, *self.starts))
        lengthening = mean_length([records]) / max(1.0, mean_length(self.starts)) if kind in ANYWHERE else 1.0
        found = rise(now, starts, lengthening=lengthening)
        favours = [self._favour(kind, name) for name in vocabulary]
        tested = np.array([(favour or 0.0) > 1 for favour in favours])
        p = np.full(len(vocabulary), None, dtype=object)
        p[tested] = np.minimum(1.0, holm(upper_tail(found.z[tested])) * len(KINDS) * num_looks(self.iteration))
        columns = {
            "share_start": np.sum([start.total for start in starts], axis=0) / sum(start.size for start in starts),
            "share_now": now.total / now.size,
            "num_prompts": (now.counts > 0).sum(0),
            "p": p,
            **{name: getattr(found, name) for name in ("ratio", "ratio_low", "log_odds", "z")},
        }
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [
            Finding(kind, name, selection_ratio=favour, **dict(zip(columns, row, strict=True)))
            for name, favour, row in zip(vocabulary, favours, rows, strict=True)
        ]

    def _favour(self, kind: str, name: str) -> float | None:
        count = self.all[kind][name]
        if not count or not self.num_selected:
            return None
        return (self.selected[kind][name] / self.num_selected) / (count / self.num_all)

    def _is_alarm(self, finding: Finding) -> bool:
        config = self.config
        return (
            finding.p is not None
            and finding.p <= config.drift_false_alarms
            and finding.ratio >= config.drift_ratio
            and finding.ratio_low >= min(MIN_RATIO_LOW, config.drift_ratio)
            and finding.share_now >= config.drift_share
            and finding.num_prompts >= config.drift_prompts
        )

    def _merge(self, alarms: Sequence[Finding], records: Records) -> list[Finding]:
        """One alarm for what is in the same responses, led by the strongest: a stock phrase has many parts."""
        groups: list[tuple[Finding, set[int]]] = []
        for alarm in alarms:
            having = set(records.having(alarm.kind, alarm.feature))
            leader = self._leader(alarm, having, groups, len(records.texts))
            if leader is None:
                groups.append((alarm, having))
            else:
                leader.also.append((alarm.kind, alarm.feature))
        for leader, _ in groups:
            self._complete(leader, records)
        return [leader for leader, _ in groups]

    def _leader(
        self, alarm: Finding, having: set[int], groups: Sequence[tuple[Finding, set[int]]], num_responses: int
    ) -> Finding | None:
        """The alarm that this one is part of: in the same responses, or wording that only comes with other wording."""
        for leader, others in groups:
            if len(having & others) >= SAME_SHARE * len(having | others):
                return leader
        wording = [group for group in groups if group[0].kind in WORDING]
        if alarm.kind not in WORDING or not wording:
            return None
        explained = set().union(*(others for _, others in wording))
        alone, without = len(having - explained), num_responses - len(explained)
        if alone >= max(self.config.drift_prompts, self.config.drift_ratio * alarm.share_start * without):
            return None
        return max(wording, key=lambda group: len(having & group[1]))[0]

    def _complete(self, alarm: Finding, records: Records) -> None:
        """Since when, examples, and the rule that would counter it."""
        alarm.first_iteration = min(self.first_alarms.get(member, self.iteration) for member in alarm.members)
        self.first_alarms.update(dict.fromkeys(alarm.members, alarm.first_iteration))
        alarm.examples = examples(alarm, records)
        alarm.rule = countering_rule(alarm, records, self.starts[0])

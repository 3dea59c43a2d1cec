"""All sources of a run together: each scores by its name, and a weighted sum ranks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from raft import journal
from raft.errors import UserError
from raft.rewards.source import Candidate, Excluded, RewardSource, with_all_columns
from raft.terminal import visible

Normalization = Literal["none", "batch", "contract"]
Scale = tuple[float, float]  # mean and standard deviation


@dataclass(frozen=True)
class NamedSource:
    """A source in the sum.

    Attributes:
        name: under which its scores are written down.
        weight: its factor in the sum.
        normalization: ``none``; ``batch``, by mean and deviation of the scores at hand; or by a fixed ``scale``.
        scale: mean and standard deviation to normalise by, from the model's contract.
        flag: how to name it in an error.
        identity: digest of what it scores with; None where that is not known.
    """

    name: str
    source: RewardSource
    weight: float = 1.0
    normalization: Normalization = "none"
    scale: Scale | None = None
    flag: str = "--reward"
    identity: str | None = None


@dataclass(frozen=True)
class Scored:
    """What the sources said of some candidates, in their order.

    Attributes:
        scores: every source's own scores, by its name; NaN where it gave none.
        rewards: what ranks, the weighted sum of (normalised) scores; NaN where a source gave none, or it overflows.
        excluded: why there is no reward, or None.
        scales: by name, the mean and deviation that scores were normalised by.
        details: for a reason in ``excluded``, what the first of its kind said.
    """

    scores: Mapping[str, Sequence[float]]
    rewards: Sequence[float]
    excluded: Sequence[str | None]
    scales: Mapping[str, Scale] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)

    def of(self, candidate: int) -> dict[str, float]:
        """The scores of one candidate by the name of their source."""
        return {name: scores[candidate] for name, scores in self.scores.items()}

    def exclusions(self) -> str | None:
        """A line for the screen on the candidates without reward, counted by reason; None if there are none."""
        counts = Counter(reason for reason in self.excluded if reason)
        if not counts:
            return None
        parts = [
            f"{count} x {reason}" + (f": {self.details[reason]}" if self.details.get(reason) else "")
            for reason, count in counts.most_common()
        ]
        return visible(f"{counts.total()} of {len(self.excluded)} responses have no reward: {'; '.join(parts)}")


@dataclass(frozen=True)
class Rewards:
    """What ranks responses."""

    sources: Sequence[NamedSource]

    def identities(self) -> dict[str, str]:
        """What the sources score with, by the flags that name them; without those that nothing is known of."""
        return {one.flag: one.identity for one in self.sources if one.identity is not None}

    def score(
        self,
        candidates: Sequence[Candidate],
        *,
        name: str,
        progress: str | None = "scoring",
        scales: Mapping[str, Scale] | None = None,
        strict: bool = True,
    ) -> Scored:
        """Score candidates on all ranks together.

        Args:
            candidates: the same on every rank.
            name: unique in the run.
            progress: label of the progress bar, None for none.
            scales: mean and deviation to use for a source that is normalised by batch, so that rewards of different
                calls compare; without one, those of these candidates.
            strict: whether a source that gives no score at all is an error.

        Raises:
            UserError: if a source does not work.
        """
        candidates = with_all_columns(candidates)
        answers = {
            one.name: one.source.score(candidates, name=f"{name}/{one.name}", progress=progress) for one in self.sources
        }
        scores = {name: [_number(answer) for answer in found] for name, found in answers.items()}
        for one in self.sources if strict else ():
            if scores[one.name] and all(map(math.isnan, scores[one.name])):
                journal.forget(f"{name}/{one.name}")  # a resumed run asks it again
                raise _silence(one, answers[one.name])
        used = {
            one.name: scale
            for one in self.sources
            if (scale := _scale(one, scores[one.name], scales or {})) is not None
        }
        rewards = [0.0] * len(candidates)
        for one in self.sources:
            mean, deviation = used.get(one.name, (0.0, 1.0))
            for i, score in enumerate(scores[one.name]):
                rewards[i] += one.weight * (score - mean) / deviation
        reasons, details = _exclusions(answers, scores)
        for i, reward in enumerate(rewards):
            if not math.isfinite(reward):
                rewards[i], reasons[i] = math.nan, reasons[i] or "weighted sum is not finite"
        found = Scored(scores, rewards, reasons, used, details)
        if strict and reasons and all(reasons):  # each source scores some, and no response has a score of all
            raise UserError(f"--reward: {found.exclusions()}.")
        return found


def _number(answer: float | Excluded) -> float:
    return math.nan if isinstance(answer, Excluded) or not math.isfinite(answer) else float(answer)


def _silence(one: NamedSource, answers: Sequence[float | Excluded]) -> UserError:
    """What to tell of a source that gave no score at all."""
    reasons = Counter(_reason(answer) for answer in answers)
    first = next((a.detail for a in answers if isinstance(a, Excluded) and a.detail), "")
    said = "; ".join(reasons) + (f" ({first})" if first else "")
    return UserError(f"{one.flag}: no score for any of {len(answers)} responses: {one.name} {said}.")


def _reason(answer: float | Excluded) -> str:
    return answer.reason if isinstance(answer, Excluded) else "gave no finite score"


def _exclusions(
    answers: Mapping[str, Sequence[float | Excluded]], scores: Mapping[str, Sequence[float]]
) -> tuple[list[str | None], dict[str, str]]:
    """Per candidate the first source without a score, with its reason; and by reason, the first detail."""
    reasons: list[str | None] = [None] * len(next(iter(answers.values()), ()))
    details: dict[str, str] = {}
    for name, found in answers.items():
        for i, answer in enumerate(found):
            if reasons[i] is None and math.isnan(scores[name][i]):
                reasons[i] = reason = f"{name} {_reason(answer)}"
                details.setdefault(reason, answer.detail if isinstance(answer, Excluded) else "")
    return reasons, details


def _scale(one: NamedSource, scores: Sequence[float], given: Mapping[str, Scale]) -> Scale | None:
    """What to normalise by; a deviation of 0, or of what rounding makes of it, leaves differences as they are."""
    if one.normalization != "batch":
        return one.scale
    if one.name in given:
        mean, deviation = given[one.name]
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            mean, deviation = float(np.nanmean(scores)), float(np.nanstd(scores))
    return mean, deviation if deviation > 1e-9 * abs(mean) else 1.0

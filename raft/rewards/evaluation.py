"""Scores of preference pairs -> how far they can be trusted: accuracy, calibration, length, robustness.

Only numbers are made here; ``raft.reports.reward_evaluation`` puts them into words and a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raft.functional.agreement import (
    CalibrationBin,
    buckets,
    calibration_curve,
    calibration_error_by_chance,
    expected_calibration_error,
    preference_loss,
)
from raft.functional.correlation import pearson, spearman
from raft.functional.probes import Probe
from raft.functional.statistics import paired_bootstrap_interval, wilson_interval

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ScoredPairs:
    """Preference pairs with their scores; NaN is a score that could not be had, or a margin the data does not give.

    Shapes: all (num_pairs,). Lengths are in characters, which every source of reward has in common.
    """

    chosen: Floats
    rejected: Floats
    chosen_length: Floats
    rejected_length: Floats
    margin: Floats

    @property
    def scored(self) -> ScoredPairs:
        """The pairs with two scores."""
        return self.pick(np.isfinite(self.chosen) & np.isfinite(self.rejected))

    @property
    def difference(self) -> Floats:
        """Chosen minus rejected score, (num_pairs,)."""
        return self.chosen - self.rejected

    @property
    def length_difference(self) -> Floats:
        """Characters by which the chosen response is longer, (num_pairs,)."""
        return self.chosen_length - self.rejected_length

    def pick(self, index: NDArray[Any]) -> ScoredPairs:
        """Some of the pairs, by their numbers or by a truth value each."""
        fields = (self.chosen, self.rejected, self.chosen_length, self.rejected_length, self.margin)
        return ScoredPairs(*(values[index] for values in fields))


@dataclass(frozen=True)
class Share:
    """``share`` of ``num`` cases, with its 95% Wilson interval; NaN of none."""

    share: float
    ci95: tuple[float, float]
    num: int


@dataclass(frozen=True)
class Bucket:
    """Accuracy on the pairs whose margin lies from ``low`` to ``high``."""

    low: float
    high: float
    accuracy: Share


@dataclass(frozen=True)
class CalibrationPoint:
    """Accuracy where the scores' mean confidence was ``confidence``."""

    low: float
    high: float
    confidence: float
    accuracy: Share


@dataclass(frozen=True)
class Calibration:
    """Is sigmoid(score difference) a probability?

    Attributes:
        expected_calibration_error: mean distance of accuracy from confidence.
        by_chance: mean and 95% quantile of that error for perfect calibration on as few pairs.
        mean_confidence: above the accuracy: overconfident.
        accuracy: ties half right, unlike elsewhere.
        loss: Bradley-Terry loss in nats.
        curve: by confidence.
    """

    expected_calibration_error: float
    by_chance: tuple[float, float]
    mean_confidence: float
    accuracy: float
    loss: float
    curve: list[CalibrationPoint]


@dataclass(frozen=True)
class Correlation:
    """By value and by rank; NaN where one side is constant."""

    pearson: float
    spearman: float


@dataclass(frozen=True)
class Length:
    """What the scores make of length.

    Attributes:
        unit: characters.
        responses: score against length, over all responses.
        pairs: score difference against length difference, within pairs: the prompt's share is taken out.
        longer_scores_higher, longer_is_chosen: among pairs of different length.
        tolerance: lengths within this share of the longer one count as matched.
        matched, chosen_longer, chosen_shorter: accuracy on those pairs.
    """

    unit: str
    responses: Correlation
    pairs: Correlation
    longer_scores_higher: Share
    longer_is_chosen: Share
    tolerance: float
    matched: Share
    chosen_longer: Share
    chosen_shorter: Share


@dataclass(frozen=True)
class ProbeResult:
    """Scores of the changed chosen responses against the scores of the responses as they were.

    Attributes:
        raised: share of cases in which the score went up.
        mean_change: in units of the score, with a bootstrap interval.
        num_left_out: pairs not probed, left as they were by the change, or without one of the two scores.
    """

    name: str
    what: str
    is_padding: bool
    raised: Share
    mean_change: float
    mean_change_ci95: tuple[float, float]
    num_left_out: int


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured on the pairs.

    ``num_unscored`` pairs lack a score: they count as wrong in ``accuracy`` and are left out of all the rest.
    """

    num_pairs: int
    num_ties: int
    num_unscored: int
    score_mean: float
    score_std: float
    accuracy: Share
    by_score_difference: list[Bucket]
    by_data_margin: list[Bucket]
    calibration: Calibration
    length: Length
    probes: list[ProbeResult]


def evaluate(
    pairs: ScoredPairs, probes: Sequence[ProbeResult] = (), *, num_buckets: int = 4, length_tolerance: float = 0.25
) -> Evaluation:
    """Measure everything on pairs of which at least one has both scores."""
    scored = pairs.scored
    scores = np.concatenate([scored.chosen, scored.rejected])
    with_margin = scored.pick(np.isfinite(scored.margin))
    right = int((scored.difference > 0).sum())
    return Evaluation(
        num_pairs=len(pairs.chosen),
        num_ties=int((scored.difference == 0).sum()),
        num_unscored=len(pairs.chosen) - len(scored.chosen),
        score_mean=float(scores.mean()),
        score_std=float(scores.std()),
        accuracy=share(right, len(pairs.chosen)),
        by_score_difference=accuracy_by(np.abs(scored.difference), scored, num_buckets),
        by_data_margin=accuracy_by(with_margin.margin, with_margin, num_buckets),
        calibration=measure_calibration(scored.difference),
        length=measure_length(scored, length_tolerance),
        probes=list(probes),
    )


def share(num_right: float, num: int) -> Share:
    """A share with its interval."""
    return Share(num_right / num if num else float("nan"), wilson_interval(num_right, num), num)


def accuracy(pairs: ScoredPairs) -> Share:
    """Share of pairs whose chosen response scores strictly higher: a tie is wrong."""
    return share(int((pairs.difference > 0).sum()), len(pairs.chosen))


def accuracy_by(values: Floats, pairs: ScoredPairs, num_buckets: int) -> list[Bucket]:
    """Accuracy where ``values``, (num_pairs,), are small, larger, largest; none without pairs."""
    found = buckets(values, num_buckets) if values.size else []
    return [Bucket(one.low, one.high, accuracy(pairs.pick(one.indices))) for one in found]


def measure_calibration(differences: Floats) -> Calibration:
    """Calibration of sigmoid(difference), (num_pairs,)."""

    def point(one: CalibrationBin) -> CalibrationPoint:
        return CalibrationPoint(one.low, one.high, one.confidence, share(one.num_right, one.num))

    curve = calibration_curve(differences)
    return Calibration(
        expected_calibration_error=expected_calibration_error(differences),
        by_chance=calibration_error_by_chance(differences),
        mean_confidence=sum(one.confidence * one.num for one in curve) / differences.size,
        accuracy=sum(one.num_right for one in curve) / differences.size,
        loss=preference_loss(differences),
        curve=[point(one) for one in curve],
    )


def measure_length(pairs: ScoredPairs, tolerance: float) -> Length:
    """Correlations with length, and accuracy where it tells nothing or misleads."""
    longer = pairs.length_difference
    apart = pairs.pick(longer != 0)
    follows = apart.difference * apart.length_difference > 0
    close = np.abs(longer) <= tolerance * np.maximum(pairs.chosen_length, pairs.rejected_length)
    scores = np.concatenate([pairs.chosen, pairs.rejected])
    lengths = np.concatenate([pairs.chosen_length, pairs.rejected_length])
    return Length(
        unit="characters",
        responses=Correlation(pearson(scores, lengths), spearman(scores, lengths)),
        pairs=Correlation(pearson(pairs.difference, longer), spearman(pairs.difference, longer)),
        longer_scores_higher=share(int(follows.sum()), len(follows)),
        longer_is_chosen=share(int((apart.length_difference > 0).sum()), len(follows)),
        tolerance=tolerance,
        matched=accuracy(pairs.pick(close)),
        chosen_longer=accuracy(pairs.pick(longer > 0)),
        chosen_shorter=accuracy(pairs.pick(longer < 0)),
    )


def measure_probe(probe: Probe, before: Floats, after: Floats) -> ProbeResult:
    """Compare the scores of the chosen responses with those of the changed ones, (num_pairs,) each.

    NaN in ``after``: the change left the response as it was, or it could not be scored.
    """
    changes = after - before
    changes = changes[np.isfinite(changes)]
    nothing = float("nan")
    return ProbeResult(
        name=probe.name,
        what=probe.what,
        is_padding=probe.is_padding,
        raised=share(int((changes > 0).sum()), changes.size),
        mean_change=float(changes.mean()) if changes.size else nothing,
        mean_change_ci95=paired_bootstrap_interval(changes) if changes.size else (nothing, nothing),
        num_left_out=before.size - changes.size,
    )

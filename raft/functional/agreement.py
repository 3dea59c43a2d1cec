"""How well scores agree with preferences: accuracy in buckets, and calibration of the implied probabilities.

Shape legend: n pairs. A *difference* is the score of the chosen response minus that of the rejected one. Under the
Bradley-Terry model (arXiv 2304.06767, section 2) its sigmoid is the probability that the chosen one is preferred.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
NUM_BINS = 5


@dataclass(frozen=True)
class Bucket:
    """Which values lie together: ``low`` and ``high`` are the smallest and largest, ``indices`` where they are."""

    low: float
    high: float
    indices: NDArray[np.intp]


def buckets(values: ArrayLike, num_buckets: int) -> list[Bucket]:
    """Divide values, (n,), into buckets of about equally many, in rising order; equal values are never parted.

    Few different values (a margin of 1, 2 or 3) get a bucket each. There may be fewer buckets than asked for.
    """
    array = _finite(values)
    distinct = np.unique(array)
    if distinct.size <= num_buckets:
        edges = distinct[1:]
    else:
        edges = np.unique(np.quantile(array, np.arange(1, num_buckets) / num_buckets))
    numbers = np.searchsorted(edges, array, side="right")
    members = [np.flatnonzero(numbers == number) for number in range(edges.size + 1)]
    return [Bucket(float(array[i].min()), float(array[i].max()), i) for i in members if i.size]


@dataclass(frozen=True)
class CalibrationBin:
    """Pairs of similar confidence: how sure the scores were, and how often they were right.

    Attributes:
        low, high: bounds of the confidence.
        confidence: its mean.
        num_right: pairs in which the more confident side was the chosen one; a tie is half a pair.
        num: pairs.
    """

    low: float
    high: float
    confidence: float
    num_right: float
    num: int


def calibration_curve(differences: ArrayLike, num_bins: int = NUM_BINS) -> list[CalibrationBin]:
    """Confidence against accuracy (Guo et al. 2017, arXiv 1706.04599, section 2), empty bins left out.

    differences: (n,). The confidence in the higher of two scores is sigmoid(|difference|), from 0.5 to 1; the bins
    divide that range evenly. Which of two equal scores is higher is a coin's toss, hence half right at 0.5.
    """
    array = _finite(differences)
    confidences, numbers = _binned(array, num_bins)
    right = np.where(array == 0, 0.5, array > 0)
    return [
        CalibrationBin(
            low=0.5 + 0.5 * number / num_bins,
            high=0.5 + 0.5 * (number + 1) / num_bins,
            confidence=float(confidences[numbers == number].mean()),
            num_right=float(right[numbers == number].sum()),
            num=int((numbers == number).sum()),
        )
        for number in np.unique(numbers)
    ]


def expected_calibration_error(differences: ArrayLike, num_bins: int = NUM_BINS) -> float:
    """Mean distance of accuracy from confidence over the bins, each weighted by its pairs (equation 3 there)."""
    bins = calibration_curve(differences, num_bins)
    return sum(abs(one.num_right - one.num * one.confidence) for one in bins) / sum(one.num for one in bins)


def calibration_error_by_chance(
    differences: ArrayLike, num_bins: int = NUM_BINS, *, num_resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """(mean, 95% quantile) of the error that perfect calibration would show on these pairs, by simulation.

    Few pairs give an error above 0 by chance alone: a measured one says something where it exceeds these. The same
    confidences are kept, and every pair is right with exactly that probability.
    """
    confidences, numbers = _binned(_finite(differences), num_bins)
    expected = np.bincount(numbers, confidences, num_bins)
    generator = np.random.default_rng(seed)
    errors = np.empty(num_resamples)
    for i in range(num_resamples):
        right = np.bincount(numbers, generator.random(confidences.size) < confidences, num_bins)
        errors[i] = np.abs(right - expected).sum() / confidences.size
    return float(errors.mean()), float(np.quantile(errors, 0.95))


def preference_loss(differences: ArrayLike) -> float:
    """Mean of -log sigmoid(difference), in nats: what Bradley-Terry training minimises; log 2 is a coin's toss."""
    return float(np.logaddexp(0.0, -_finite(differences)).mean())


def _binned(differences: Floats, num_bins: int) -> tuple[Floats, NDArray[np.intp]]:
    """Confidence of every pair and the number of its bin, each (n,)."""
    confidences = 1 / (1 + np.exp(-np.abs(differences)))
    numbers = np.minimum((confidences - 0.5) * 2 * num_bins, num_bins - 1).astype(np.intp)
    return confidences, numbers


def _finite(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"values must be (n,), at least one and all finite, got shape {array.shape}")
    return array

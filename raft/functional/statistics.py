"""Uncertainty of a measured share or difference."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BLOCK_ELEMENTS = 1 << 20  # resampled values held at once, 16 MB with their indices


def wilson_interval(num_right: float, num: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a share, ``num_right`` of ``num`` (Wilson 1927, JASA 22:209-212); (nan, nan) for none of none.

    Unlike the textbook's p +- z sqrt(p(1-p)/n) it stays within 0 and 1 and has a width at shares of 0 and 1.
    Half a success (a tie) may be counted.
    """
    if not 0 <= num_right <= num:
        raise ValueError(f"num_right must lie between 0 and num = {num}, got {num_right}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if num == 0:
        return float("nan"), float("nan")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, scale = num_right / num, 1 + z * z / num
    middle = (share + z * z / (2 * num)) / scale
    half_width = z / scale * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num))
    low, high = middle - half_width, middle + half_width
    return max(0.0, min(share, low)), min(1.0, max(share, high))  # against rounding at shares of 0 and 1


def paired_bootstrap_interval(
    differences: ArrayLike, *, confidence: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979) of the mean of paired differences.

    differences: after minus before for the same prompt, (num_pairs,), in the unit of the reward; all finite,
    since a silently dropped pair would bias the result. The same seed gives the same interval.
    A single pair says nothing of its spread: the interval is (nan, nan).
    Raises ValueError for no pairs, values that are not finite, or a confidence outside (0, 1).
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"differences must be (num_pairs,) with at least one pair, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} of {values.size} differences are not finite")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples}")
    if values.size == 1:
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    means = _resampled_means(values, num_resamples, np.random.default_rng(seed))
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _resampled_means(
    values: NDArray[np.float64], num_resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Means of resamples drawn with replacement, (num_resamples,)."""
    means = np.empty(num_resamples)
    block = max(1, _BLOCK_ELEMENTS // values.size)
    for start in range(0, num_resamples, block):
        rows = min(block, num_resamples - start)
        indices = generator.integers(values.size, size=(rows, values.size))
        means[start : start + rows] = values[indices].mean(axis=1)
    return means

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from raft.functional.statistics import paired_bootstrap_interval, wilson_interval


def test_large_samples_follow_the_normal_approximation() -> None:
    differences = np.random.default_rng(3).normal(0.3, 1.2, size=2000)
    low, high = paired_bootstrap_interval(differences)
    half = 1.959963984540054 * differences.std() / math.sqrt(differences.size)
    # A 2.5% quantile of 10,000 normal draws has a standard error of 0.027 standard deviations: allow four.
    tolerance = 4 * 0.027 * half / 1.96
    assert low == pytest.approx(differences.mean() - half, abs=tolerance)
    assert high == pytest.approx(differences.mean() + half, abs=tolerance)


@pytest.mark.parametrize("differences", [[0.0, 1.0], [-1.0, 0.5, 4.0]])
def test_small_samples_follow_the_enumeration_of_all_resamples(differences: list[float]) -> None:
    means = [float(np.mean(draw)) for draw in itertools.product(differences, repeat=len(differences))]
    # The quantiles at 40% confidence (30% and 70%) lie well inside an atom of these distributions.
    expected = tuple(np.quantile(means, [0.3, 0.7], method="inverted_cdf"))
    assert paired_bootstrap_interval(differences, confidence=0.4) == pytest.approx(expected, abs=1e-12)


def test_pairs_that_all_agree_have_no_width() -> None:
    assert paired_bootstrap_interval(np.full(50, 0.25)) == (0.25, 0.25)


def test_seed_decides_and_block_size_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(0).normal(size=31)
    interval = paired_bootstrap_interval(differences, seed=5)
    assert interval == paired_bootstrap_interval(differences, seed=5)
    assert interval != paired_bootstrap_interval(differences, seed=6)
    monkeypatch.setattr("raft.functional.statistics._BLOCK_ELEMENTS", 31 * 64)
    assert interval == paired_bootstrap_interval(differences, seed=5)


def test_a_wider_confidence_gives_a_wider_interval() -> None:
    differences = np.random.default_rng(0).normal(size=40)
    narrow = paired_bootstrap_interval(differences, confidence=0.5)
    wide = paired_bootstrap_interval(differences, confidence=0.99)
    assert wide[0] < narrow[0] < differences.mean() < narrow[1] < wide[1]


def test_one_pair_has_no_interval() -> None:
    assert all(math.isnan(bound) for bound in paired_bootstrap_interval([0.5]))


@pytest.mark.parametrize(
    ("differences", "options", "message"),
    [
        ([], {}, "at least one pair"),
        ([[1.0, 2.0]], {}, "num_pairs"),
        ([1.0, math.nan], {}, "1 of 2 differences are not finite"),
        ([1.0, math.inf], {}, "not finite"),
        ([1.0, 2.0], {"confidence": 95}, "between 0 and 1"),
        ([1.0, 2.0], {"num_resamples": 0}, "num_resamples"),
    ],
)
def test_wrong_arguments_are_refused(differences: list[float], options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_bootstrap_interval(differences, **options)


@pytest.mark.parametrize(("num_right", "num"), [(0, 10), (3, 10), (144, 201), (0.5, 3), (7, 7)])
def test_wilson_bounds_are_where_the_share_is_just_z_errors_away(num_right: float, num: int) -> None:
    """Its definition: |p - b| = z * sqrt(b (1 - b) / n) at both bounds b."""
    share = num_right / num
    low, high = wilson_interval(num_right, num)
    assert 0 <= low <= share <= high <= 1
    for bound in (low, high):
        distance = 1.959963985 * math.sqrt(bound * (1 - bound) / num)
        assert abs(share - bound) == pytest.approx(distance, abs=1e-9)


def test_wilson_by_hand() -> None:
    z_squared = 1.959963985**2
    assert wilson_interval(0, 10) == (0, pytest.approx(z_squared / (10 + z_squared)))
    assert wilson_interval(10, 10) == (pytest.approx(10 / (10 + z_squared)), 1)
    assert wilson_interval(5, 10) == pytest.approx((0.236593, 0.763407), abs=1e-6)
    assert wilson_interval(1, 2, confidence=0.99)[0] < wilson_interval(1, 2)[0]
    assert all(math.isnan(bound) for bound in wilson_interval(0, 0))


@pytest.mark.parametrize(("num_right", "num", "confidence"), [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 95)])
def test_wilson_refuses(num_right: float, num: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="must lie between"):
        wilson_interval(num_right, num, confidence=confidence)

from __future__ import annotations

import math

import numpy as np
import pytest

from raft.functional.agreement import (
    CalibrationBin,
    buckets,
    calibration_curve,
    calibration_error_by_chance,
    expected_calibration_error,
    preference_loss,
)

# sigmoid(log 3) = 3/4, sigmoid(log 19) = 19/20; one pair is a tie, one is wrong.
DIFFERENCES = [0.0, math.log(3), -math.log(3), math.log(19), math.log(19)]


def members(values: list[float], num_buckets: int) -> list[tuple[float, float, list[int]]]:
    return [(one.low, one.high, one.indices.tolist()) for one in buckets(values, num_buckets)]


def test_buckets_hold_about_equally_many() -> None:
    assert members([5, 1, 3, 2, 4, 6], 3) == [(1, 2, [1, 3]), (3, 4, [2, 4]), (5, 6, [0, 5])]


def test_equal_values_are_never_parted() -> None:
    assert members([1, 1, 1, 1, 2, 3, 4, 5], 4) == [(1, 1, [0, 1, 2, 3]), (2, 3, [4, 5]), (4, 5, [6, 7])]


def test_few_different_values_get_a_bucket_each() -> None:
    assert members([1, 3, 2, 3, 1], 4) == [(1, 1, [0, 4]), (2, 2, [2]), (3, 3, [1, 3])]
    assert members([7, 7], 4) == [(7, 7, [0, 1])]


def test_calibration_curve_by_hand() -> None:
    curve = calibration_curve(DIFFERENCES)
    expected = [(0.5, 0.6, 0.5, 0.5, 1), (0.7, 0.8, 0.75, 1, 2), (0.9, 1.0, 0.95, 2, 2)]
    for found, (low, high, confidence, num_right, num) in zip(curve, expected, strict=True):
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
        assert (found.confidence, found.num_right, found.num) == (pytest.approx(confidence), num_right, num)


def test_expected_calibration_error_by_hand() -> None:
    # |0.5 - 0.5| + |1 - 2 * 0.75| + |2 - 2 * 0.95| = 0.6 of five pairs
    assert expected_calibration_error(DIFFERENCES) == pytest.approx(0.12)


def test_certainty_falls_into_the_last_bin() -> None:
    assert calibration_curve([1000.0, -1000.0]) == [CalibrationBin(0.9, 1.0, 1.0, 1.0, 2)]


def test_error_by_chance_of_a_single_pair() -> None:
    # Right with 3/4, an error of 1/4; else wrong, an error of 3/4: on average 3/8.
    mean, limit = calibration_error_by_chance([math.log(3)])
    assert mean == pytest.approx(0.375, abs=0.025)
    assert limit == pytest.approx(0.75)


def test_perfect_calibration_exceeds_the_limit_in_a_twentieth_of_cases() -> None:
    generator = np.random.default_rng(0)
    exceeded = 0
    for _ in range(100):
        sizes = generator.exponential(1.0, size=150)
        differences = np.where(generator.random(150) < 1 / (1 + np.exp(-sizes)), sizes, -sizes)
        limit = calibration_error_by_chance(differences, num_resamples=100)[1]
        exceeded += expected_calibration_error(differences) > limit
    assert 1 <= exceeded <= 12


def test_preference_loss_by_hand() -> None:
    assert preference_loss([0.0]) == pytest.approx(math.log(2))
    assert preference_loss([math.log(3), 0.0]) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    assert preference_loss([-1000.0]) == pytest.approx(1000)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [[1.0]]])
def test_what_can_not_be_measured_is_refused(values: list[float]) -> None:
    for measure in (calibration_curve, preference_loss, lambda array: buckets(array, 4)):
        with pytest.raises(ValueError, match="all finite"):
            measure(values)

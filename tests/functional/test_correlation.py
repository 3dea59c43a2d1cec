from __future__ import annotations

import math

import numpy as np
import pytest

from raft.functional.correlation import pearson, ranks, spearman


def test_pearson_by_hand() -> None:
    # deviations (-1, 0, 1) and (-1, 1, 0): 1 / sqrt(2 * 2)
    assert pearson([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)
    assert pearson([1, 2, 3], [-2, -4, -6]) == pytest.approx(-1)


def test_pearson_is_numpys() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 50))
    assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)


def test_equal_values_share_their_mean_rank() -> None:
    assert ranks([30, 10, 20, 20]).tolist() == [4, 1, 2.5, 2.5]
    assert ranks([7, 7, 7]).tolist() == [2, 2, 2]


def test_spearman_sees_any_rising_relation() -> None:
    assert spearman([1, 2, 3, 4], [1, 4, 9, 1000]) == pytest.approx(1)
    # ranks (1, 2.5, 2.5, 4) and (1, 2, 3, 4): 4.5 / sqrt(4.5 * 5)
    assert spearman([1, 2, 2, 3], [10, 20, 30, 40]) == pytest.approx(math.sqrt(0.9))


@pytest.mark.parametrize("constant", [[0.1, 0.1, 0.1], [1e9, 1e9, 1e9]])
def test_a_constant_series_has_no_correlation(constant: list[float]) -> None:
    assert math.isnan(pearson(constant, [1, 2, 3]))
    assert math.isnan(spearman([1, 2, 3], constant))


def test_too_few_or_unlike_series() -> None:
    assert math.isnan(pearson([], []))
    assert math.isnan(pearson([1], [2]))
    with pytest.raises(ValueError, match="same length"):
        pearson([1, 2], [1, 2, 3])

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import pytest

from raft.functional.drift import Tally, holm, likeness, log_likelihood_ratio, num_looks, rise, tally, upper_tail


def single(counts: Sequence[float], size: int) -> Tally:
    """Counts of independent responses: every response answers a prompt of its own."""
    rows = np.zeros((size, len(counts)))
    for column, count in enumerate(counts):
        rows[: int(count), column] = 1
    return Tally(rows, np.ones(size))


def test_tally_by_hand() -> None:
    found = tally([{"a", "b"}, {"a"}, set(), {"b", "c"}], ["p", "q", "p", "q"], ["a", "b"])
    assert found.counts.tolist() == [[1, 1], [1, 1]]
    assert found.sizes.tolist() == [2, 2]
    assert found.total.tolist() == [2, 2]
    assert found.size == 4
    assert tally([set()], ["p"], ["a"]).counts.tolist() == [[0]]


def test_likeness_by_hand() -> None:
    counts = np.array([[4.0, 2.0, 2.0, 3.0], [4.0, 2.0, 2.0, 3.0], [0.0, 2.0, 2.0, 1.0], [0.0, 2.0, 0.0, 1.0]])
    # Shares 1/2, 1/2, 3/8, 1/2 of 16, four a prompt, so 4, 4, 15/4 and 4 are expected. Residuals 2 2 2 2, none,
    # 1/2 1/2 1/2 3/2, 1 1 1 1: inflations 16 * 4/3 / 4, 0, 3 * 4/3 / (15/4) and 4 * 4/3 / 4.
    assert likeness(Tally(counts, np.full(4, 4.0))) == pytest.approx([1.0, 0.0, (16 / 15 - 1) / 3, 1 / 9])
    assert likeness(single([3, 0], 10)).tolist() == [0, 0]
    assert likeness(Tally(np.array([[5.0]]), np.array([8.0]))).tolist() == [0]


def test_log_likelihood_ratio_is_half_of_g() -> None:
    """G of a 2 x 2 table, cell by cell: 2 * sum(observed * log(observed / expected))."""
    table = np.array([[25.0, 103.0], [5.0, 123.0]])
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    g = 2 * (table * np.log(table / expected)).sum()
    size = np.array([128.0])
    found = log_likelihood_ratio(np.array([25 / 128]), size, np.array([5 / 128]), size)
    assert 2 * found == pytest.approx([g])


def test_rise_by_hand() -> None:
    found = rise(single([25], 128), [single([5], 128)], prior_responses=20)
    prior = 20 * 30 / 256
    now, start = (25 + prior) / 148, (5 + prior) / 148
    assert found.ratio == pytest.approx([now / start])
    odds = [(y + prior) / (128 + 20 - y - prior) for y in (25, 5)]  # Monroe et al. 2008, equation 15
    assert found.log_odds == pytest.approx([math.log(odds[0] / odds[1])])
    table = np.array([[25 + prior, 123 - prior], [5 + prior, 143 - prior]])
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    assert found.z == pytest.approx([math.sqrt(2 * (table * np.log(table / expected)).sum())])
    error = math.sqrt(1 / table[0, 0] - 1 / 148 + 1 / table[1, 0] - 1 / 148)
    assert found.ratio_low == pytest.approx(found.ratio * math.exp(-1.645 * error))


def test_the_z_score_is_that_of_fishers_exact_test() -> None:
    p = sum(math.comb(30, i) * math.comb(226, 128 - i) for i in range(25, 31)) / math.comb(256, 128)
    exact = -NormalDist().inv_cdf(p)
    z = float(rise(single([25], 128), [single([5], 128)]).z[0])
    assert exact == pytest.approx(3.8, abs=0.05)
    assert exact - 0.25 < z <= exact + 0.05


def test_a_fall_has_a_negative_z_and_nothing_has_none() -> None:
    found = rise(single([5, 0, 128, 25], 128), [single([25, 0, 128, 25], 128)])
    assert found.z[0] < -3
    assert found.z[1:] == pytest.approx([0, 0, 0], abs=1e-6)
    assert np.isfinite(found.log_odds).all()
    assert np.isfinite(found.ratio_low).all()


def test_two_parts_of_the_start_count_together() -> None:
    together = rise(single([20], 100), [single([6], 150)])
    apart = rise(single([20], 100), [single([4], 100), single([2], 50)])
    assert apart.z == pytest.approx(together.z)


def test_responses_to_one_prompt_count_less() -> None:
    def prompts(counts: list[int]) -> Tally:
        return Tally(np.array(counts, float)[:, None], np.full(len(counts), 8.0))

    spread = rise(prompts([2] * 16), [prompts([0] * 15 + [1])])
    clustered = rise(prompts([8] * 4 + [0] * 12), [prompts([0] * 15 + [1])])
    assert spread.z[0] > 5
    # 32 of 128 in four prompts are about four of sixteen, at the start too.
    assert clustered.z[0] < 2


def test_what_longer_responses_explain_is_taken_off() -> None:
    start = single([400], 1600)  # a quarter; twice as long, 1 - (3/4)^2 = 7/16 have it: 700 of 1600
    plain = rise(single([700], 1600), [start], prior_responses=1)
    longer = rise(single([700], 1600), [start], prior_responses=1, lengthening=2)
    assert plain.z[0] > 11
    assert longer.z == pytest.approx([0], abs=0.05)
    assert longer.log_odds == pytest.approx(plain.log_odds)  # shares and ratios stay what they are
    assert longer.ratio_low == pytest.approx(plain.ratio_low)
    beyond = rise(single([900], 1600), [start], prior_responses=1, lengthening=2)
    # logit(9/16) - logit(7/16) of logit(9/16) - logit(1/4): the share of the rise that length does not explain
    part = (math.log(9 / 7) - math.log(7 / 9)) / (math.log(9 / 7) - math.log(1 / 3))
    whole = rise(single([900], 1600), [start], prior_responses=1)
    assert beyond.z == pytest.approx(part * whole.z, rel=2e-3)
    assert rise(single([900], 1600), [start], lengthening=0.2).z == pytest.approx(
        rise(single([900], 1600), [start]).z
    )  # shorter responses explain no rise
    assert np.isfinite(rise(single([1600], 1600), [single([1590], 1600)], lengthening=5000).z).all()


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]).tolist() == []


def test_upper_tail_and_looks() -> None:
    assert upper_tail([0.0, 1.6448536269514722, 5.0]) == pytest.approx([0.5, 0.05, 2.8665157e-7])
    assert sum(1 / num_looks(t) for t in range(2, 10_000)) == pytest.approx(1.0, abs=1e-3)
    assert num_looks(2) == 2
    with pytest.raises(ValueError, match="first iteration is the start"):
        num_looks(1)

"""What is measured on scored pairs, by hand on six of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raft.functional.probes import PROBES
from raft.functional.statistics import wilson_interval
from raft.rewards.evaluation import ScoredPairs, Share, evaluate, measure_probe, share

NAN = math.nan


def pairs_of(*rows: tuple[float, float, float, float, float]) -> ScoredPairs:
    """Rows of chosen and rejected score, chosen and rejected length, margin of the data."""
    return ScoredPairs(*np.array(rows, dtype=np.float64).T)


PAIRS = pairs_of(
    (2.0, 1.0, 100, 50, 1),  # right, chosen longer
    (0.0, 0.0, 100, 90, 2),  # a tie, and of like length
    (-1.0, 1.0, 40, 80, 3),  # wrong, chosen shorter
    (4.0, 1.0, 80, 80, NAN),  # right, of the same length
    (3.0, -1.0, 10, 30, 3),  # right, chosen shorter
    (NAN, 1.0, 5, 500, 1),  # could not be scored
)


def test_accuracy_counts_ties_and_what_has_no_score_as_wrong() -> None:
    found = evaluate(PAIRS)
    assert found.accuracy == Share(0.5, wilson_interval(3, 6), 6)
    assert (found.num_pairs, found.num_ties, found.num_unscored) == (6, 1, 1)


def test_accuracy_by_score_difference() -> None:
    # Differences 0, 1, 2, 3, 4 in two buckets: parted at their median, 2.
    found = evaluate(PAIRS, num_buckets=2).by_score_difference
    assert [(one.low, one.high, one.accuracy.share, one.accuracy.num) for one in found] == [
        (0, 1, 0.5, 2),
        (2, 4, pytest.approx(2 / 3), 3),
    ]


def test_accuracy_by_the_margin_of_the_data() -> None:
    found = evaluate(PAIRS).by_data_margin
    assert [(one.low, one.high, one.accuracy.share, one.accuracy.num) for one in found] == [
        (1, 1, 1.0, 1),
        (2, 2, 0.0, 1),
        (3, 3, 0.5, 2),
    ]
    assert evaluate(pairs_of((1, 0, 5, 5, NAN))).by_data_margin == []


def test_spread_of_the_scores_is_that_of_both_sides() -> None:
    scores = [2, 0, -1, 4, 3, 1, 0, 1, 1, -1]
    found = evaluate(PAIRS)
    assert (found.score_mean, found.score_std) == (pytest.approx(1.0), pytest.approx(np.std(scores)))


def test_calibration_is_that_of_the_scored_pairs() -> None:
    found = evaluate(PAIRS).calibration
    sigmoid = [1 / (1 + math.exp(-size)) for size in (0, 1, 2, 3, 4)]
    assert found.mean_confidence == pytest.approx(np.mean(sigmoid))
    assert found.accuracy == pytest.approx(3.5 / 5)
    # 0.5 | 0.731 | 0.881 wrong | 0.953 and 0.982: a bin each, but the last two together
    error = 0 + (1 - sigmoid[1]) + sigmoid[2] + (2 - sigmoid[3] - sigmoid[4])
    assert found.expected_calibration_error == pytest.approx(error / 5)
    assert [one.accuracy.num for one in found.curve] == [1, 1, 1, 2]
    losses = [math.log(1 + math.exp(-difference)) for difference in (1, 0, -2, 3, 4)]
    assert found.loss == pytest.approx(np.mean(losses))


def test_length() -> None:
    found = evaluate(PAIRS, length_tolerance=0.1).length
    assert found.unit == "characters"
    # Longer by 50, 10, -40, -20, and none: the longer one scores higher in the first and the third.
    assert (found.longer_scores_higher.share, found.longer_scores_higher.num) == (0.5, 4)
    assert (found.longer_is_chosen.share, found.longer_is_chosen.num) == (0.5, 4)
    assert (found.matched.share, found.matched.num) == (0.5, 2)
    assert (found.chosen_longer.share, found.chosen_longer.num) == (0.5, 2)
    assert (found.chosen_shorter.share, found.chosen_shorter.num) == (0.5, 2)
    differences, longer = [1, 0, -2, 3, 4], [50, 10, -40, 0, -20]
    assert found.pairs.pearson == pytest.approx(np.corrcoef(differences, longer)[0, 1])
    # ranks (3, 2, 1, 4, 5) and (5, 4, 1, 3, 2): 1 - 6 * (4 + 4 + 0 + 1 + 9) / (5 * 24)
    assert found.pairs.spearman == pytest.approx(0.1)
    scores, lengths = [2, 0, -1, 4, 3, 1, 0, 1, 1, -1], [100, 100, 40, 80, 10, 50, 90, 80, 80, 30]
    assert found.responses.pearson == pytest.approx(np.corrcoef(scores, lengths)[0, 1])


def test_one_tied_pair_is_enough() -> None:
    found = evaluate(pairs_of((1, 1, 5, 5, 1)))
    assert (found.accuracy.share, found.accuracy.num) == (0, 1)
    assert math.isnan(found.length.longer_scores_higher.share)
    assert math.isnan(found.length.pairs.pearson)


def test_probe() -> None:
    before = np.array([1.0, 2.0, 0.0, NAN, 5.0, 1.0])
    after = np.array([2.0, 1.5, 0.0, 3.0, NAN, 1.5])  # up, down, as before, not to be had twice, up
    found = measure_probe(PROBES[0], before, after)
    assert found.raised == share(2, 4)
    assert found.mean_change == pytest.approx((1 - 0.5 + 0 + 0.5) / 4)
    assert -0.5 <= found.mean_change_ci95[0] < 0.25 < found.mean_change_ci95[1] <= 1
    assert found.num_left_out == 2
    assert (found.name, found.is_padding) == ("hash", True)


def test_probe_that_changes_nothing() -> None:
    found = measure_probe(PROBES[0], np.array([1.0]), np.array([NAN]))
    assert found.raised.num == 0
    assert math.isnan(found.mean_change)

from __future__ import annotations

import math

import numpy as np
import pytest

from raft.functional.ranking import best_of_n_mean, correlation, differ_share, random_choice_mean, spreads

NAN = math.nan
# Two responses to "a", three to "b" of which one was discarded, one to "c", and "d" without a valid one.
REWARDS = [1.0, 3.0, 5.0, NAN, 9.0, 4.0, NAN]
PROMPTS = ["a", "a", "b", "b", "b", "c", "d"]


def test_random_choice_and_best_of_n_by_hand() -> None:
    assert random_choice_mean(REWARDS, PROMPTS) == pytest.approx((2 + 7 + 4) / 3)
    assert best_of_n_mean(REWARDS, PROMPTS) == pytest.approx((3 + 9 + 4) / 3)


def test_random_choice_is_the_expectation_of_the_control_run() -> None:
    from raft.functional.selection import select_random

    generator = np.random.default_rng(0)
    means = []
    for _ in range(4000):
        chosen = select_random(REWARDS, PROMPTS, generator).indices
        means.append(np.mean([REWARDS[i] for i in chosen]))
    error = np.std(means) / math.sqrt(len(means))
    assert np.mean(means) == pytest.approx(random_choice_mean(REWARDS, PROMPTS), abs=4 * error)


def test_best_of_n_is_what_local_selects() -> None:
    from raft.functional.selection import select_local

    chosen = select_local(REWARDS, PROMPTS).indices
    assert best_of_n_mean(REWARDS, PROMPTS) == pytest.approx(np.mean([REWARDS[i] for i in chosen]))


def test_spreads_by_hand() -> None:
    # Means 2, 7, 4; within: (1 + 1 + 4 + 4) / (5 - 3) = 5. Over all 4.4: between, of means:
    # (2 * 2.4^2 + 2 * 2.6^2 + 0.4^2) / 2 = 12.6; n0 = (5 - 9 / 5) / 2 = 1.6; (12.6 - 5) / 1.6 = 4.75.
    assert spreads(REWARDS, PROMPTS) == pytest.approx((math.sqrt(5), math.sqrt(4.75)))


def test_spreads_find_what_made_the_rewards() -> None:
    generator = np.random.default_rng(1)
    prompts = np.repeat(np.arange(2000), 4)
    rewards = 1.5 * generator.normal(size=2000)[prompts] + 0.5 * generator.normal(size=8000)
    assert spreads(rewards, prompts.tolist()) == pytest.approx((0.5, 1.5), rel=0.05)


@pytest.mark.parametrize(
    ("rewards", "prompts", "expected"),
    [
        ([], [], (NAN, NAN)),
        ([1.0, 2.0], ["a", "b"], (NAN, NAN)),  # top: one response each
        ([1.0, 3.0], ["a", "a"], (math.sqrt(2), NAN)),
        ([1.0, 3.0, 3.0, 1.0], ["a", "a", "b", "b"], (math.sqrt(2), 0.0)),  # the estimate would be negative
    ],
)
def test_spreads_that_have_no_value(
    rewards: list[float], prompts: list[str], expected: tuple[float, float]
) -> None:
    assert spreads(rewards, prompts) == pytest.approx(expected, nan_ok=True)


def test_nothing_to_choose_from() -> None:
    for statistic in (random_choice_mean, best_of_n_mean):
        assert math.isnan(statistic([], []))
        assert math.isnan(statistic([NAN], ["a"]))
    with pytest.raises(ValueError, match="one reward per sample"):
        spreads([1.0], [])


def test_share_of_prompts_whose_values_differ() -> None:
    assert differ_share(["x", "x", "x", "y", "z"], ["a", "a", "b", "b", "c"]) == 0.5  # "c" has one alone
    assert math.isnan(differ_share(["x"], ["a"]))


def test_correlations_by_hand() -> None:
    rewards, lengths = [1.0, 2.0, NAN, 4.0], [10, 20, 99, 30]
    assert correlation(rewards, lengths) == pytest.approx(np.corrcoef([1, 2, 4], [10, 20, 30])[0, 1])
    # Between prompts length goes with reward, within a prompt against it.
    rewards, lengths, prompts = [1.0, 2.0, 11.0, 13.0], [20, 10, 40, 20], ["a", "a", "b", "b"]
    assert correlation(rewards, lengths) > 0
    # Differences from the prompts' means: -0.5 0.5 -1 1 and 5 -5 10 -10.
    assert correlation(rewards, lengths, prompts) == pytest.approx(-1.0)
    assert math.isnan(correlation([0.1, 0.1, 0.1], [1, 2, 3]))
    assert math.isnan(correlation([1.0, 2.0], [1, 2], ["a", "b"]))
    assert math.isnan(correlation([], []))

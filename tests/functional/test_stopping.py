"""Choosing and stopping: histories written by hand, verdicts derived by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from raft.functional.stopping import Evaluation, Limits, best, falling, levelled_off, over_limits

FREE = Limits()
START = Evaluation(0, 1.0, None, distinct_2=0.5, length=40.0, kl=0.0)


def history(*rewards: float, training: Sequence[float] = (), distinct: Sequence[float] = ()) -> list[Evaluation]:
    """Evaluations after iterations 0, 2, 4, ..."""
    return [
        Evaluation(
            2 * i,
            reward,
            training_reward=training[i - 1] if i and training else None,
            distinct_2=distinct[i] if distinct else 0.5,
            length=40.0,
        )
        for i, reward in enumerate(rewards)
    ]


# ------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("changes", "limits", "reason"),
    [
        ({"distinct_2": 0.4}, Limits(min_distinct_2=0.8), None),  # 0.8 * 0.5, exactly there
        ({"distinct_2": 0.39}, Limits(min_distinct_2=0.8), "distinct-2 is 0.390, below 0.8 of the start's 0.500"),
        ({"distinct_2": math.nan}, Limits(min_distinct_2=0.8), "distinct-2 is nan, below 0.8 of the start's 0.500"),
        ({"distinct_2": math.nan}, Limits(max_kl=1.0), None),
        ({"kl": 0.25}, Limits(max_kl=0.25), None),
        ({"kl": 0.251}, Limits(max_kl=0.25), "the KL to the initial policy is 0.251 nats a token, above 0.25"),
        ({"kl": math.nan}, Limits(max_kl=0.25), "the KL to the initial policy is nan nats a token, above 0.25"),
        ({"length": 60.0}, Limits(max_length_ratio=1.5), None),
        (
            {"length": 60.1},
            Limits(max_length_ratio=1.5),
            "the mean length is 60.1 tokens, above 1.5 times the start's 40.0",
        ),
        ({"distinct_2": 0.01, "kl": 9.0, "length": 999.0}, FREE, None),
    ],
)
def test_limits_count_from_the_start(changes: dict[str, float], limits: Limits, reason: str | None) -> None:
    assert over_limits(START._replace(**changes), START, limits) == reason  # type: ignore[arg-type]


def test_the_mean_of_much_fewer_rewards_does_not_compare() -> None:
    """18 of the start's 20 are nine in ten; where nothing is known of their number, nothing is refused."""
    start = START._replace(num_scored=20)
    enough, few = (start._replace(iteration=i, reward=9.0, num_scored=n) for i, n in ((2, 18), (4, 17)))
    assert over_limits(enough, start, FREE) is None
    assert over_limits(few, start, FREE) == "17 held-out responses have a reward, below 0.9 of the start's 20"
    assert over_limits(few, START, FREE) is over_limits(START, start, FREE) is None
    assert best([start, few, start._replace(iteration=6, reward=2.0)], FREE).iteration == 6
    assert levelled_off([start, few, few], FREE, patience=2) is not None


def test_a_start_without_a_value_sets_no_limit() -> None:
    start = START._replace(distinct_2=math.nan, length=math.nan)
    assert over_limits(START._replace(distinct_2=0.0), start, Limits(min_distinct_2=1.0, max_length_ratio=1.0)) is None


def test_the_best_has_the_highest_reward_within_the_limits_and_is_the_earlier_of_equals() -> None:
    found = history(0.0, 1.0, 3.0, 2.0, 2.0, distinct=[0.5, 0.5, 0.1, 0.4, 0.4])
    assert best(found, FREE).iteration == 4
    assert best(found, Limits(min_distinct_2=0.8)).iteration == 6
    assert best(found, Limits(min_distinct_2=0.9)).iteration == 2
    assert best(history(1.0, 0.5, 0.9), FREE).iteration == 0


def test_a_reward_that_is_none_is_never_the_best() -> None:
    assert best(history(math.nan, -5.0, math.nan), FREE).iteration == 2
    assert best(history(math.nan, math.nan), FREE).iteration == 0


# ------------------------------------------------------------------------------------------- levelled off


@pytest.mark.parametrize(
    ("rewards", "patience", "since"),
    [
        ([0.0, 1.0, 0.9, 0.8], 3, None),  # two without a gain
        ([0.0, 1.0, 0.9, 0.8, 1.0], 3, 3),  # an equal one is no gain
        ([0.0, 1.0, 0.9, 0.8, 1.1], 3, None),
        ([0.0, -1.0, -2.0, -0.1], 3, 3),  # the start counts
        ([0.0, 1.0, 0.5], 1, 1),
        ([0.0], 1, None),
        ([math.nan, 1.0, math.nan, math.nan, math.nan], 3, 3),
    ],
)
def test_so_many_evaluations_without_a_gain(rewards: list[float], patience: int, since: int | None) -> None:
    reason = levelled_off(history(*rewards), FREE, patience=patience)
    assert (reason is None) == (since is None)
    assert since is None or f"no gain in {since} evaluations" in str(reason)


def test_the_reason_names_the_last_gain() -> None:
    reason = levelled_off(history(0.0, 1.25, 0.9, 0.8, 1.0), FREE, patience=3)
    assert reason == "the held-out reward has levelled off: no gain in 3 evaluations since iteration 2 (1.250)"


def test_small_rises_are_a_gain_once_they_add_up() -> None:
    slow = history(0.0, 0.04, 0.08, 0.12, 0.16, 0.20)  # above 0 + 0.1 at the third, above 0.12 + 0.1 not yet
    assert levelled_off(slow, FREE, patience=3, min_gain=0.1) is None
    assert "since iteration 6 (0.120)" in str(levelled_off(slow, FREE, patience=2, min_gain=0.1))
    assert levelled_off(slow, FREE, patience=1) is None


def test_a_gain_outside_of_the_limits_is_none() -> None:
    found = history(0.0, 1.0, 2.0, 3.0, 4.0, distinct=[0.5, 0.5, 0.1, 0.1, 0.1])
    assert levelled_off(found, FREE, patience=3) is None
    assert "since iteration 2 (1.000)" in str(levelled_off(found, Limits(min_distinct_2=0.5), patience=3))


# ------------------------------------------------------------------------------------------- falling


def with_change(low: float, high: float, *, training: Sequence[float]) -> list[Evaluation]:
    found = history(0.0, 1.0, 0.7, training=training)
    return [*found[:-1], found[-1]._replace(change=(low, high))]


def test_a_fall_beyond_chance_while_the_training_reward_rises() -> None:
    reason = falling(with_change(-0.5, -0.1, training=[1.2, 1.5]), FREE)
    assert reason == (
        "the held-out reward falls while the training reward rises: 1.000 -> 0.700 since iteration 2 "
        "(95% interval of the change -0.500 to -0.100), training 1.200 -> 1.500"
    )


def test_it_takes_both() -> None:
    assert falling(with_change(-0.5, 0.0, training=[1.2, 1.5]), FREE) is None  # may be chance
    assert falling(with_change(-0.5, -0.1, training=[1.5, 1.5]), FREE) is None
    assert falling(with_change(-0.5, -0.1, training=[1.5, 1.2]), FREE) is None
    assert falling(with_change(-0.5, -0.1, training=[]), FREE) is None
    assert falling(history(0.0, 1.0, 0.7, training=[1.2, 1.5]), FREE) is None  # no interval
    assert falling([START], FREE) is None


def test_below_the_start_training_counts_from_the_first_iteration() -> None:
    found = history(1.0, 0.8, 0.6, training=[0.5, 0.9])
    found[1] = found[1]._replace(change=(-0.3, -0.1))
    found[2] = found[2]._replace(change=(-0.6, -0.2))
    assert falling(found[:2], FREE) is None  # the first training reward, nothing to compare it with
    assert "1.000 -> 0.600 since iteration 0" in str(falling(found, FREE))
    assert "training 0.500 -> 0.900" in str(falling(found, FREE))


def test_the_fall_is_from_the_best_within_the_limits() -> None:
    found = history(0.0, 1.0, 2.0, 0.7, training=[1.2, 1.6, 1.4], distinct=[0.5, 0.5, 0.1, 0.5])
    found[-1] = found[-1]._replace(change=(-0.5, -0.1))
    assert falling(found, FREE) is None  # 1.6 at the best, 1.4 now
    assert "since iteration 2" in str(falling(found, Limits(min_distinct_2=0.5)))

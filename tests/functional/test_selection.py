from __future__ import annotations

import math
from collections.abc import Hashable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.functional.selection import Selection, select, select_local, select_random, select_top

NAN = math.nan
# Few different values, so that ties, signed zeros, infinities and discarded samples all come up often.
REWARDS = st.sampled_from([None, NAN, -math.inf, -1.5, -0.0, 0.0, 1 / 64, 2.0, math.inf])
BATCHES = st.lists(st.tuples(REWARDS, st.integers(0, 4)), max_size=24)


def is_valid(reward: float | None) -> bool:
    return reward is not None and not math.isnan(reward)


def beats(rewards: list[float | None], left: int, right: int) -> bool:
    """Whether sample ``left`` ranks before ``right``: the definition, pair by pair, without any sort."""
    if not is_valid(rewards[left]):
        return False
    if not is_valid(rewards[right]):
        return True
    return rewards[left] > rewards[right] or (rewards[left] == rewards[right] and left < right)


def best_by_counting(rewards: list[float | None], group: list[int], num: int) -> list[int]:
    """Members of ``group`` that fewer than ``num`` other members beat."""
    return [
        one
        for one in group
        if is_valid(rewards[one]) and sum(beats(rewards, other, one) for other in group if other != one) < num
    ]


def unserved(rewards: list[float | None], prompts: list[Hashable]) -> list[Hashable]:
    seen: list[Hashable] = []
    for prompt in prompts:
        group = [reward for reward, other in zip(rewards, prompts, strict=True) if other == prompt]
        if prompt not in seen and not any(is_valid(reward) for reward in group):
            seen.append(prompt)
    return seen


@given(BATCHES, st.integers(0, 30))
def test_top_is_the_set_that_few_others_beat(batch: list[tuple[float | None, int]], num_selected: int) -> None:
    rewards, prompts = [row[0] for row in batch], [row[1] for row in batch]
    expected = best_by_counting(rewards, list(range(len(batch))), num_selected)
    assert select_top(rewards, prompts, num_selected) == Selection(expected, unserved(rewards, prompts))


@given(BATCHES, st.integers(1, 4))
def test_local_is_top_within_every_prompt(batch: list[tuple[float | None, int]], num_per_prompt: int) -> None:
    rewards, prompts = [row[0] for row in batch], [row[1] for row in batch]
    expected = []
    for prompt in set(prompts):
        group = [index for index, other in enumerate(prompts) if other == prompt]
        expected += best_by_counting(rewards, group, num_per_prompt)
    assert select_local(rewards, prompts, num_per_prompt) == Selection(sorted(expected), unserved(rewards, prompts))


@given(BATCHES, st.integers(0, 30), st.integers(1, 3), st.integers(0, 5))
def test_random_takes_valid_samples_within_both_limits(
    batch: list[tuple[float | None, int]], num_selected: int, num_per_prompt: int, seed: int
) -> None:
    rewards, prompts = [row[0] for row in batch], [row[1] for row in batch]
    first, again = (
        select_random(rewards, prompts, np.random.default_rng(seed), num_selected, num_per_prompt) for _ in range(2)
    )
    assert first == again
    assert first.indices == sorted(set(first.indices))
    assert all(is_valid(rewards[index]) for index in first.indices)
    valid_of = [sum(p == q and is_valid(r) for r, q in zip(rewards, prompts, strict=True)) for p in set(prompts)]
    assert len(first.indices) == min(num_selected, sum(min(num_per_prompt, count) for count in valid_of))
    assert all([prompts[i] for i in first.indices].count(prompt) <= num_per_prompt for prompt in prompts)


def test_examples_by_hand() -> None:
    rewards = [0.5, 2.0, NAN, 2.0, None, NAN, -1.0]
    prompts = ["a", "a", "a", "b", "c", "c", "b"]
    assert select_top(rewards, prompts, 2) == Selection([1, 3], ["c"])
    assert select_top(rewards, prompts, 1).indices == [1]
    assert select_local(rewards, prompts) == Selection([1, 3], ["c"])
    assert select_local(rewards, prompts, 2).indices == [0, 1, 3, 6]


def test_ties_go_to_the_lower_index_and_zeros_tie() -> None:
    assert select_top([-0.0, 0.0, 0.0], [0, 1, 2], 2).indices == [0, 1]
    assert select_top([0.0, -0.0, 0.0], [0, 1, 2], 2).indices == [0, 1]
    assert select_local([1.0, 1.0, 1.0, 1.0], [0, 1, 0, 1]).indices == [0, 1]


def test_infinities_are_numbers() -> None:
    assert select_top([-math.inf, math.inf, 3.0, NAN], [0, 1, 2, 3], 2).indices == [1, 2]
    assert select_top([-math.inf, NAN], [0, 1], 2).indices == [0]


def test_keeping_all_returns_every_sample_in_order() -> None:
    rewards = np.random.default_rng(0).normal(size=12)
    prompts = list(range(12))
    assert select("top", rewards, prompts, num_selected=12).indices == prompts
    assert select("local", rewards, prompts).indices == prompts
    assert select("random", rewards, prompts, generator=np.random.default_rng(1)).indices == prompts


def test_nothing_valid_or_nothing_at_all() -> None:
    assert select_local([NAN, None], ["a", "b"]) == Selection([], ["a", "b"])
    assert select_top([], [], 3) == Selection([], [])


def test_random_is_uniform_over_the_samples_of_a_prompt() -> None:
    generator = np.random.default_rng(0)
    draws = [select_random([9.0, NAN, 0.0, 0.0], [0, 0, 0, 0], generator).indices[0] for _ in range(3000)]
    for index in (0, 2, 3):  # standard deviation of a count: sqrt(3000 * 1/3 * 2/3) = 26
        assert abs(draws.count(index) - 1000) < 5 * 26


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="one reward per sample"):
        select_top([1.0, 2.0], ["a"], 1)
    with pytest.raises(ValueError, match="num_selected"):
        select_top([1.0], ["a"], -1)
    with pytest.raises(ValueError, match="num_per_prompt"):
        select_local([1.0], ["a"], 0)
    with pytest.raises(ValueError, match="needs num_selected"):
        select("top", [1.0], ["a"])
    with pytest.raises(ValueError, match="needs a generator"):
        select("random", [1.0], ["a"])
    with pytest.raises(ValueError, match="'top', 'local', 'random'"):
        select("best", [1.0], ["a"])  # type: ignore[arg-type]

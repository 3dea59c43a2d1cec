"""What ranking had to choose from in one iteration, and whether it could make a difference.

A reward is that of one response, NaN where it was discarded; ``prompt_ids`` say which prompt it answers. Both are
(num_samples,). Statistics are of the valid rewards; NaN where they have no value.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raft.functional.correlation import pearson

Floats = NDArray[np.float64]
Integers = NDArray[np.intp]


def random_choice_mean(rewards: ArrayLike, prompt_ids: Sequence[Hashable]) -> float:
    """Expected reward of one response a prompt, drawn at random: what selection without ranking would give."""
    values, groups, counts = _by_prompt(rewards, prompt_ids)
    return float((_sums(values, groups) / counts).mean()) if len(values) else float("nan")


def best_of_n_mean(rewards: ArrayLike, prompt_ids: Sequence[Hashable]) -> float:
    """Mean over prompts of the highest reward among their responses: the best that ``local`` can select."""
    values, groups, counts = _by_prompt(rewards, prompt_ids)
    best = np.full(len(counts), -np.inf)
    np.maximum.at(best, groups, values)
    return float(best.mean()) if len(values) else float("nan")


def spreads(rewards: ArrayLike, prompt_ids: Sequence[Hashable]) -> tuple[float, float]:
    """Standard deviations of the reward (within prompts, between prompts), from one-way analysis of variance.

    Within: of responses to one prompt, pooled. Between: of the prompts' true means; the plain deviation of their
    sample means would hold a share 1/n of the spread within. An estimate of the variance below 0 counts as 0.
    NaN where no prompt has two responses, the second also for a single prompt.
    """
    values, groups, counts = _by_prompt(rewards, prompt_ids)
    num_samples, num_prompts = len(values), len(counts)
    if num_samples == num_prompts:
        return float("nan"), float("nan")
    means = _sums(values, groups) / counts
    within = float(((values - means[groups]) ** 2).sum() / (num_samples - num_prompts))
    if num_prompts == 1:
        return within**0.5, float("nan")
    of_means = float((counts * (means - values.mean()) ** 2).sum() / (num_prompts - 1))
    responses_a_prompt = (num_samples - (counts**2).sum() / num_samples) / (num_prompts - 1)
    between = max(0.0, (of_means - within) / float(responses_a_prompt))
    return within**0.5, between**0.5


def differ_share(values: Sequence[Hashable], prompt_ids: Sequence[Hashable]) -> float:
    """Share of the prompts with two or more values (responses, say) for which these are not all the same."""
    seen: dict[Hashable, list[Hashable]] = {}
    for value, prompt in zip(values, prompt_ids, strict=True):
        seen.setdefault(prompt, []).append(value)
    differ = [len(set(of_one)) > 1 for of_one in seen.values() if len(of_one) > 1]
    return sum(differ) / len(differ) if differ else float("nan")


def correlation(rewards: ArrayLike, others: ArrayLike, prompt_ids: Sequence[Hashable] | None = None) -> float:
    """Pearson correlation of the rewards with ``others``, such as lengths, (num_samples,).

    With ``prompt_ids``, that of the differences from each prompt's means: what ``local`` selection sees.
    NaN where one of the two does not vary.
    """
    x, y = np.asarray(rewards, np.float64), np.asarray(others, np.float64)
    valid = ~np.isnan(x)
    x, y = x[valid], y[valid]
    if prompt_ids is not None:
        _, groups, counts = _by_prompt(rewards, prompt_ids)
        x, y = (values - (_sums(values, groups) / counts)[groups] for values in (x, y))
        # What equal values differ from their mean by is rounding, not always zero.
        x, y = (np.where(np.abs(values) > 1e-12, values, 0.0) for values in (x, y))
    return pearson(x, y)


def _by_prompt(rewards: ArrayLike, prompt_ids: Sequence[Hashable]) -> tuple[Floats, Integers, Integers]:
    """Valid rewards (N,), the number of each one's prompt (N,), and how many every prompt has (P,)."""
    values = np.asarray(rewards, dtype=np.float64)
    if values.shape != (len(prompt_ids),):
        raise ValueError(f"one reward per sample: got rewards {values.shape}, {len(prompt_ids)} prompt ids")
    valid = np.flatnonzero(~np.isnan(values))
    numbers: dict[Hashable, int] = {}
    groups = np.array([numbers.setdefault(prompt_ids[i], len(numbers)) for i in valid.tolist()], dtype=np.intp)
    return values[valid], groups, np.bincount(groups, minlength=len(numbers))


def _sums(values: Floats, groups: Integers) -> Floats:
    return np.bincount(groups, weights=values).astype(np.float64)

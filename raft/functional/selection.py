"""Which samples of an iteration are trained on: the ranking step of RAFT (arXiv 2304.06767, Algorithm 1).

``top`` keeps the best 1/k of all samples over all prompts, ``local`` the best of every prompt's k, ``random``
ignores the rewards and is the control run that tells ranking apart from mere self-training.

Rewards: a NaN (or None) marks a discarded sample, which is never selected. Infinities are ordinary numbers,
``-inf`` ranks last but is selectable. Ties (``-0.0`` ties with ``0.0``) go to the lower sample index, so a
selection is a function of the rewards alone and can be replayed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Strategy = Literal["top", "local", "random"]
Rewards = Sequence[float | None] | NDArray[np.floating]


@dataclass(frozen=True)
class Selection:
    """Selected samples and the prompts that offered none.

    indices: positions in ``rewards``, ascending.
    skipped_prompts: ids of the prompts whose samples were all discarded, in order of first appearance.
    """

    indices: list[int]
    skipped_prompts: list[Hashable]


def select_top(rewards: Rewards, prompt_ids: Sequence[Hashable], num_selected: int) -> Selection:
    """Keep the ``num_selected`` best samples over all prompts, fewer where fewer are valid.

    rewards, prompt_ids: one entry per sample, (num_samples,). ``num_selected`` is the caller's
    ``num_samples // k``, counted before anything was discarded.
    """
    values = _as_array(rewards, prompt_ids)
    if num_selected < 0:
        raise ValueError(f"num_selected must be at least 0, got {num_selected}")
    return Selection(sorted(_best_first(values)[:num_selected]), _prompts_without_sample(values, prompt_ids))


def select_local(rewards: Rewards, prompt_ids: Sequence[Hashable], num_per_prompt: int = 1) -> Selection:
    """Keep the ``num_per_prompt`` best samples of every prompt, fewer where fewer are valid.

    rewards, prompt_ids: one entry per sample, (num_samples,); the samples of a prompt share its id and need
    not stand together. For ``num_per_prompt=1`` this is the argmax of Algorithm 1.
    """
    values = _as_array(rewards, prompt_ids)
    indices = _first_per_prompt(_best_first(values), prompt_ids, num_per_prompt)
    return Selection(sorted(indices), _prompts_without_sample(values, prompt_ids))


def select_random(
    rewards: Rewards,
    prompt_ids: Sequence[Hashable],
    generator: np.random.Generator,
    num_selected: int | None = None,
    num_per_prompt: int = 1,
) -> Selection:
    """Keep ``num_per_prompt`` random valid samples of every prompt, at most ``num_selected`` of them in all.

    The limit makes it the control of ``top`` (many prompts, one sample each) as well as of ``local``.
    """
    values = _as_array(rewards, prompt_ids)
    if num_selected is not None and num_selected < 0:
        raise ValueError(f"num_selected must be at least 0, got {num_selected}")
    shuffled = generator.permutation(_valid(values)).tolist()
    indices = _first_per_prompt(shuffled, prompt_ids, num_per_prompt)[:num_selected]
    return Selection(sorted(indices), _prompts_without_sample(values, prompt_ids))


def select(
    strategy: Strategy,
    rewards: Rewards,
    prompt_ids: Sequence[Hashable],
    *,
    num_selected: int | None = None,
    num_per_prompt: int = 1,
    generator: np.random.Generator | None = None,
) -> Selection:
    """Select by the named strategy. ``top`` needs ``num_selected``, ``random`` needs a ``generator``.

    ``local`` ignores ``num_selected``, ``top`` ignores ``num_per_prompt``, both ignore ``generator``.
    """
    if strategy == "top":
        if num_selected is None:
            raise ValueError("strategy 'top' needs num_selected")
        return select_top(rewards, prompt_ids, num_selected)
    if strategy == "local":
        return select_local(rewards, prompt_ids, num_per_prompt)
    if strategy == "random":
        if generator is None:
            raise ValueError("strategy 'random' needs a generator")
        return select_random(rewards, prompt_ids, generator, num_selected, num_per_prompt)
    raise ValueError(f"unknown strategy {strategy!r}: choose one of 'top', 'local', 'random'")


def _as_array(rewards: Rewards, prompt_ids: Sequence[Hashable]) -> NDArray[np.float64]:
    values = np.asarray(rewards, dtype=np.float64)  # None becomes NaN
    if values.shape != (len(prompt_ids),):
        raise ValueError(f"one reward per sample: got rewards {values.shape}, {len(prompt_ids)} prompt ids")
    return values


def _valid(values: NDArray[np.float64]) -> NDArray[np.intp]:
    return np.flatnonzero(~np.isnan(values))


def _best_first(values: NDArray[np.float64]) -> list[int]:
    """Indices of the valid samples by falling reward, equal rewards by rising index."""
    valid = _valid(values)
    order: list[int] = valid[np.argsort(-values[valid], kind="stable")].tolist()
    return order


def _first_per_prompt(order: list[int], prompt_ids: Sequence[Hashable], num_per_prompt: int) -> list[int]:
    if num_per_prompt < 1:
        raise ValueError(f"num_per_prompt must be at least 1, got {num_per_prompt}")
    taken: Counter[Hashable] = Counter()
    indices = []
    for index in order:
        if taken[prompt_ids[index]] < num_per_prompt:
            taken[prompt_ids[index]] += 1
            indices.append(index)
    return indices


def _prompts_without_sample(values: NDArray[np.float64], prompt_ids: Sequence[Hashable]) -> list[Hashable]:
    served = {prompt_ids[index] for index in _valid(values).tolist()}
    return [prompt for prompt in dict.fromkeys(prompt_ids) if prompt not in served]

"""Which features became more frequent than at the start: log-odds with a prior, corrected for all that was tested.

Log-odds and prior are those of Monroe, Colaresi and Quinn, "Fightin' Words" (2008), on counts of responses instead of
words: every side gets pseudo-responses in which a feature is as frequent as in all responses together. Their test
divides the log-odds by its standard error, which says too little where the start has few responses with a feature, as
it does when something begins to spread (3.53 for 25 of 128 against 5 of 128; Fisher's exact test says 3.81). So the
z-score here is the signed root of the likelihood ratio of the same counts (3.72). Two things are added. Responses to
one prompt resemble each other, so counts are divided by the design effect: eight that say the same count as one. And
responses that became longer have more of everything: only what has risen beyond that counts.

Legend: F features, D prompts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

PRIOR_RESPONSES = 20.0  # weight of the prior, Monroe's alpha_0
Z_90 = 1.645  # a two-sided 90% interval of a normal number


@dataclass(frozen=True)
class Tally:
    """Responses that have a feature, by the prompt they answer.

    counts: responses with the feature, (D, F). sizes: responses in all, (D,).
    """

    counts: Floats
    sizes: Floats

    @property
    def total(self) -> Floats:
        """Responses with the feature, (F,)."""
        return np.asarray(self.counts.sum(0))

    @property
    def size(self) -> float:
        """Responses."""
        return float(self.sizes.sum())


@dataclass(frozen=True)
class Rise:
    """How much more frequent each feature is now, (F,) each.

    log_odds: of now against the start, both with the prior.
    ratio: share now / share at the start, both with the prior. ratio_low: lower end of its 90% interval.
    z: of the rise beyond what longer responses explain.
    """

    log_odds: Floats
    ratio: Floats
    ratio_low: Floats
    z: Floats


def tally(responses: Sequence[Collection[str]], prompts: Sequence[Hashable], vocabulary: Sequence[str]) -> Tally:
    """Count the features of ``vocabulary``.

    Args:
        responses: the features of every response.
        prompts: which prompt each response answers.
    """
    column = {feature: i for i, feature in enumerate(vocabulary)}
    row = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    rows = [row[prompt] for prompt in prompts]
    found = [
        (d, column[feature]) for d, had in zip(rows, responses, strict=True) for feature in column.keys() & had
    ]
    counts = np.zeros((len(row), len(column)))
    if found:
        np.add.at(counts, tuple(np.array(found).T), 1.0)
    return Tally(counts, np.bincount(rows, minlength=len(row)).astype(float))


def likeness(one: Tally) -> Floats:
    """Intraclass correlation: how alike responses to one prompt are in having a feature, 0 to 1, (F,).

    From the spread of the counts by prompt around the share in all, over what independent responses would have.
    0 where every prompt has one response, or there is one prompt: nothing is known.
    """
    num_prompts, per_prompt = len(one.sizes), one.size / max(len(one.sizes), 1)
    if num_prompts < 2 or per_prompt <= 1:
        return np.zeros(one.counts.shape[1])
    share = one.total / one.size
    spread = ((one.counts - one.sizes[:, None] * share) ** 2).sum(0) * num_prompts / (num_prompts - 1)
    expected = one.size * share * (1 - share)
    inflation = np.divide(spread, expected, out=np.ones_like(share), where=expected > 0)
    return np.asarray(np.clip((inflation - 1) / (per_prompt - 1), 0.0, 1.0))


def rise(
    now: Tally, starts: Sequence[Tally], *, lengthening: float = 1.0, prior_responses: float = PRIOR_RESPONSES
) -> Rise:
    """Compare now with the start.

    Args:
        starts: what there is of the start, counted together.
        lengthening: how many times as long as at the start the responses are, where features are found anywhere in
            them; what that explains is taken off the z-score. Shorter ones (below 1) explain no rise.
        prior_responses: pseudo-responses that each side gets.
    """
    pooled = sum(one.total for one in (now, *starts)) / sum(one.size for one in (now, *starts))
    # At least half a pseudo-response with and without: odds of what every response has, or none, are finite.
    prior = np.clip(prior_responses * pooled, 0.5, prior_responses - 0.5)
    alike = np.max([likeness(one) for one in (now, *starts)], axis=0)
    (with_now, n_now), (with_start, n_start) = _effective([now], alike), _effective(starts, alike)
    n_now, n_start = n_now + prior_responses, n_start + prior_responses
    p_now, p_start = (with_now + prior) / n_now, (with_start + prior) / n_start
    log_odds = _logit(p_now) - _logit(p_start)
    explained = _logit_of_longer(p_start, max(1.0, lengthening)) - _logit(p_start)
    beyond = np.divide(log_odds - explained, np.abs(log_odds), out=np.zeros_like(log_odds), where=log_odds != 0)
    ratio = p_now / p_start
    spread = np.sqrt((1 - p_now) / (n_now * p_now) + (1 - p_start) / (n_start * p_start))
    return Rise(
        log_odds=log_odds,
        ratio=ratio,
        ratio_low=ratio * np.exp(-Z_90 * spread),
        z=beyond * np.sqrt(2 * log_likelihood_ratio(p_now, n_now, p_start, n_start)),
    )


def _effective(tallies: Sequence[Tally], alike: Floats) -> tuple[Floats, Floats]:
    """How many independent responses with the feature, and in all, say as much as these do (Kish 1965), (F,) each."""
    effects = [1 + alike * (one.size / len(one.sizes) - 1) for one in tallies]
    having = np.sum([one.total / effect for one, effect in zip(tallies, effects, strict=True)], axis=0)
    return having, np.sum([one.size / effect for one, effect in zip(tallies, effects, strict=True)], axis=0)


def log_likelihood_ratio(share_a: Floats, n_a: Floats, share_b: Floats, n_b: Floats) -> Floats:
    """log of how much likelier two shares of their own make the counts than one share for both, >= 0, (F,).

    Shares lie strictly between 0 and 1, of ``n_a`` and ``n_b`` responses.
    """
    both = (n_a * share_a + n_b * share_b) / (n_a + n_b)
    return np.maximum(0.0, n_a * _divergence(share_a, both) + n_b * _divergence(share_b, both))


def _divergence(p: Floats, q: Floats) -> Floats:
    """Kullback-Leibler divergence of two shares in nats."""
    return np.asarray(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))


def _logit(p: Floats) -> Floats:
    return np.asarray(np.log(p / (1 - p)))


def _logit_of_longer(p: Floats, times: float) -> Floats:
    """logit of 1 - (1 - p)^times: of having what a response of one length has with probability p, at times as long."""
    log_lacking = times * np.log1p(-p)
    return np.asarray(np.log(-np.expm1(log_lacking)) - log_lacking)


def upper_tail(z: ArrayLike) -> Floats:
    """Probability that a standard normal number exceeds z."""
    return np.array([0.5 * math.erfc(value / math.sqrt(2)) for value in np.atleast_1d(z)])


def holm(p_values: ArrayLike) -> Floats:
    """p-values corrected for the number of tests (Holm 1979), in the order given."""
    p = np.atleast_1d(np.asarray(p_values, dtype=np.float64))
    order = np.argsort(p, kind="stable")
    corrected = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    result = np.empty(len(p))
    result[order] = np.minimum(corrected, 1.0)
    return result


def num_looks(iteration: int) -> int:
    """By what the p-values of an iteration are multiplied because a run is looked at after every iteration.

    t (t - 1) for t = 2, 3, ...: the shares of the error, 1/2, 1/6, 1/12, ..., sum to 1 however long the run gets.
    """
    if iteration < 2:
        raise ValueError(f"the first iteration is the start, there is nothing to compare at {iteration}")
    return iteration * (iteration - 1)

"""Which evaluation of a run is the best, and whether the run should go on: a history of numbers -> a verdict.

Three questions, each answered with its reason in words:

* :func:`over_limits`: has the policy paid for its reward with what the user did not allow it to?
* :func:`levelled_off`: has the held-out reward stopped rising (arXiv 2304.06767 repeats until it has)?
* :func:`falling`: does it fall while the reward of the training samples rises, as when the policy over-fits to them?
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Evaluation(NamedTuple):
    """What one held-out evaluation found; a tuple, so that it can be kept as JSON.

    iteration: after which it was made, 0 for the start.
    reward: mean over the held-out prompts.
    training_reward: mean over the samples of that iteration; None at the start.
    distinct_2, length: of the held-out responses; length in tokens.
    kl: to the initial policy, in nats a token, on held-out responses; None where it is not measured.
    change: 95% interval (low, high) of the mean change in reward, prompt by prompt, from the best evaluation before
        this one; None where it is not known.
    num_scored: held-out responses that have a reward, which is what ``reward`` is the mean of; None where it is not
        known.
    """

    iteration: int
    reward: float
    training_reward: float | None = None
    distinct_2: float = math.nan
    length: float = math.nan
    kl: float | None = None
    change: tuple[float, float] | None = None
    num_scored: int | None = None


SCORED_SHARE = 0.9
"""Of the start's held-out responses with a reward, those that have one when an evaluation is compared with others."""


@dataclass(frozen=True)
class Limits:
    """What the best policy may cost; None is no limit.

    min_distinct_2, max_length_ratio: as shares of their values at the start.
    max_kl: in nats a token.
    """

    min_distinct_2: float | None = None
    max_kl: float | None = None
    max_length_ratio: float | None = None


def over_limits(found: Evaluation, start: Evaluation, limits: Limits) -> str | None:
    """The first limit that an evaluation is outside of, in words, or None.

    A limit that counts from the start's value is none where the start has no such value. Responses without a single
    pair of words (distinct-2 is NaN) after a start that had some are outside of every limit on distinct-2. Whatever the
    limits, the mean of much fewer rewards than at the start does not compare with the others.
    """
    if found.num_scored is not None and found.num_scored < SCORED_SHARE * (start.num_scored or 0):
        count = f"{found.num_scored} held-out responses have a reward"
        return f"{count}, below {SCORED_SHARE:g} of the start's {start.num_scored}"
    share, ratio, kl = limits.min_distinct_2, limits.max_length_ratio, limits.max_kl
    if share is not None and not math.isnan(start.distinct_2) and not found.distinct_2 >= share * start.distinct_2:
        return f"distinct-2 is {found.distinct_2:.3f}, below {share:g} of the start's {start.distinct_2:.3f}"
    if kl is not None and found.kl is not None and not found.kl <= kl:
        return f"the KL to the initial policy is {found.kl:.3f} nats a token, above {kl:g}"
    if ratio is not None and found.length > ratio * start.length:
        return f"the mean length is {found.length:.1f} tokens, above {ratio:g} times the start's {start.length:.1f}"
    return None


def best(history: Sequence[Evaluation], limits: Limits) -> Evaluation:
    """The evaluation with the highest reward within the limits, the earlier of equals. The start is always within.

    history: from the start on, in order; at least one.
    """
    within = [one for one in history if over_limits(one, history[0], limits) is None]
    return max([history[0], *within], key=lambda one: -math.inf if math.isnan(one.reward) else one.reward)


def levelled_off(history: Sequence[Evaluation], limits: Limits, *, patience: int, min_gain: float = 0.0) -> str | None:
    """Why the run has levelled off, or None: the last ``patience`` evaluations brought no gain.

    A gain is a reward, within the limits, of more than ``min_gain`` above that of the last gain (at first the start's).
    """
    anchor, since = history[0], 0
    for one in history[1:]:
        gained = one.reward > anchor.reward + min_gain or (math.isnan(anchor.reward) and not math.isnan(one.reward))
        if gained and over_limits(one, history[0], limits) is None:
            anchor, since = one, 0
        else:
            since += 1
    if since < patience:
        return None
    gain = f" of more than {min_gain:g}" if min_gain else ""
    return (
        f"the held-out reward has levelled off: no gain{gain} in {since} evaluations since iteration "
        f"{anchor.iteration} ({anchor.reward:.3f})"
    )


def falling(history: Sequence[Evaluation], limits: Limits) -> str | None:
    """Why the held-out reward falls while the training reward rises, or None.

    It falls where the last evaluation's is below the best one's by more than chance: the whole 95% interval of the
    change is below 0. The training reward has risen where it is higher than at the best one (than in the first
    iteration, if that is the start).
    """
    last, earlier = history[-1], history[:-1]
    if not earlier or last.change is None or last.training_reward is None or not last.change[1] < 0:
        return None
    top = best(earlier, limits)
    known = [one for one in earlier if one.iteration >= top.iteration and one.training_reward is not None]
    if not known or not last.training_reward > (known[0].training_reward or 0.0):
        return None
    return (
        f"the held-out reward falls while the training reward rises: {top.reward:.3f} -> {last.reward:.3f} since "
        f"iteration {top.iteration} (95% interval of the change {last.change[0]:+.3f} to {last.change[1]:+.3f}), "
        f"training {known[0].training_reward:.3f} -> {last.training_reward:.3f}"
    )

"""All sources of a run together: each scores by its name, and a weighted sum ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raft.rewards.source import Candidate, RewardSource


@dataclass(frozen=True)
class Scored:
    """What the sources said of some candidates, in their order.

    Attributes:
        scores: every source's own scores, by its name; NaN where it gave none.
        rewards: what ranks, the weighted sum of scores; NaN where a source gave none.
        excluded: why there is no reward, or None.
    """

    scores: Mapping[str, Sequence[float]]
    rewards: Sequence[float]
    excluded: Sequence[str | None]

    def of(self, candidate: int) -> dict[str, float]:
        """The scores of one candidate by the name of their source."""
        return {name: scores[candidate] for name, scores in self.scores.items()}


@dataclass(frozen=True)
class NamedSource:
    """A source with the name under which its scores are written down, and its weight in the sum."""

    name: str
    source: RewardSource
    weight: float = 1.0


@dataclass(frozen=True)
class Rewards:
    """What ranks responses."""

    sources: Sequence[NamedSource]

    def score(self, candidates: Sequence[Candidate], *, name: str, progress: str | None = "scoring") -> Scored:
        """Score candidates on all ranks together.

        Args:
            candidates: the same on every rank.
            name: unique in the run.
            progress: label of the progress bar, None for none.
        """
        scores = {
            one.name: one.source.score(candidates, name=f"{name}/{one.name}", progress=progress)
            for one in self.sources
        }
        rewards = [
            sum(one.weight * scores[one.name][i] for one in self.sources) for i in range(len(candidates))
        ]
        excluded = [None if math.isfinite(reward) else "reward is not finite" for reward in rewards]
        return Scored(scores, rewards, excluded)

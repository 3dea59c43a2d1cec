"""What each source of reward said of some samples, and why samples were left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from raft.rollout.samples import Sample


def source_metrics(samples: Sequence[Sample], group: str) -> dict[str, float]:
    """Mean and deviation of every source's own scores, and the number of samples left out for each reason.

    Args:
        samples: of one iteration or one held-out evaluation, scored.
        group: first part of the keys, such as ``reward``.

    Returns:
        ``GROUP/NAME_mean`` and ``GROUP/NAME_std`` over the samples that the source scored, discarded ones included;
        ``GROUP_discarded/REASON`` for each reason that occurred.
    """
    found: dict[str, float] = {}
    for name in dict.fromkeys(name for sample in samples for name in sample.scores if name != "log_ratio"):
        scores = [score for sample in samples if math.isfinite(score := sample.scores.get(name, math.nan))]
        found[f"{group}/{name}_mean"] = float(np.mean(scores)) if scores else math.nan
        found[f"{group}/{name}_std"] = float(np.std(scores)) if scores else math.nan
    reasons = Counter(sample.discarded for sample in samples if sample.discarded)
    return found | {f"{group}_discarded/{reason}": count for reason, count in reasons.items()}

"""Choosing ``best/`` and ending a run early: the flags, and what each held-out evaluation means for the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from raft.arguments import argument
from raft.config import require
from raft.functional.statistics import paired_bootstrap_interval
from raft.functional.stopping import Evaluation, Limits, best, falling, levelled_off, over_limits

PAIRS_NEEDED = 10  # a bootstrap interval of fewer is too narrow to end a run on


@dataclass
class StoppingConfig:
    """Choosing and stopping"""

    best_min_distinct_2: float | None = argument(
        None, "best/ keeps at least this share of the start's held-out distinct-2, such as 0.8; none is no limit."
    )
    best_max_kl: float | None = argument(
        None, "best/ has at most this held-out KL to the initial policy, in nats a token; none is no limit."
    )
    best_max_length_ratio: float | None = argument(
        None, "Held-out responses of best/ are at most so many times as long as the start's; none is no limit."
    )
    early_stopping: Literal["none", "level", "falling", "both"] = argument(
        "none",
        "What ends the run early. level: early_stopping_patience held-out evaluations without a gain. falling: the "
        "held-out reward falls, beyond chance, while the training reward rises. none says so and goes on.",
    )
    early_stopping_patience: int = argument(3, "Evaluations without a gain after which the reward has levelled off.")
    early_stopping_min_gain: float = argument(0.0, "A rise of the held-out reward counts as a gain from above this.")

    def __post_init__(self) -> None:
        share, kl, ratio = self.best_min_distinct_2, self.best_max_kl, self.best_max_length_ratio
        require(share is None or 0 <= share <= 1, f"--best_min_distinct_2: found {share}, allowed is 0 to 1.")
        require(kl is None or kl >= 0, f"--best_max_kl: found {kl}, allowed is 0 or more.")
        require(ratio is None or ratio >= 1, f"--best_max_length_ratio: found {ratio}, allowed is 1 or more.")
        patience, gain = self.early_stopping_patience, self.early_stopping_min_gain
        require(patience >= 1, f"--early_stopping_patience: found {patience}, allowed are integers from 1.")
        require(gain >= 0, f"--early_stopping_min_gain: found {gain}, allowed is 0 or more.")

    @property
    def limits(self) -> Limits:
        """What the best policy may cost."""
        return Limits(self.best_min_distinct_2, self.best_max_kl, self.best_max_length_ratio)


@dataclass
class Judgement:
    """What an evaluation means.

    Attributes:
        best_iteration: of the best policy so far.
        refused: why a policy with a higher reward is not kept as the best, or None.
        alarms: rule of early stopping -> why it would end the run; those that apply, enabled or not.
        stops: the rule that does end it, or None.
    """

    best_iteration: int
    refused: str | None = None
    alarms: dict[str, str] = field(default_factory=dict)
    stops: str | None = None

    @property
    def metrics(self) -> dict[str, Any]:
        """The numbers for metrics.jsonl, and the reasons where there are any."""
        found: dict[str, Any] = {"stopping/best_iteration": self.best_iteration}
        found |= {"stopping/refused": self.refused} if self.refused else {}
        return found | {f"stopping/{rule}": reason for rule, reason in self.alarms.items()}

    def lines(self, iteration: int) -> list[str]:
        """The same for the screen."""
        found = [f"iteration {iteration}: not kept in best/: {self.refused}"] if self.refused else []
        for rule, reason in self.alarms.items():
            hint = "the run ends here" if rule == self.stops else f"--early_stopping {rule} would end the run here"
            found.append(f"iteration {iteration}: {reason}; {hint}")
        return found

    @property
    def stopped(self) -> dict[str, str] | None:
        """Rule and reason of an early end, for summary.json; None where the run goes on."""
        return {"rule": self.stops, "reason": self.alarms[self.stops]} if self.stops else None


def judge(config: StoppingConfig, history: Sequence[Evaluation]) -> Judgement:
    """Judge the last evaluation of a run by all of them, from the start on."""
    last, limits = history[-1], config.limits
    chosen = best(history, limits)
    refused = over_limits(last, history[0], limits) if last.reward > chosen.reward else None
    found = {
        "level": levelled_off(
            history, limits, patience=config.early_stopping_patience, min_gain=config.early_stopping_min_gain
        ),
        "falling": falling(history, limits),
    }
    alarms = {rule: reason for rule, reason in found.items() if reason}
    enabled = (rule for rule in alarms if config.early_stopping in (rule, "both"))
    return Judgement(chosen.iteration, refused, alarms, next(enabled, None))


def evaluation(
    iteration: int,
    metrics: Mapping[str, Any],
    training_reward: float | None,
    rewards: Sequence[float | None],
    best_rewards: Sequence[float | None],
) -> Evaluation:
    """An evaluation as the rules of choosing and stopping see it.

    Args:
        metrics: of the held-out responses.
        training_reward: mean reward of the samples of the iteration; None or NaN where it has none.
        rewards, best_rewards: prompt by prompt, now and of the best policy so far; None where there is none.
    """
    pairs = zip(rewards, best_rewards, strict=False)
    differences = [now - then for now, then in pairs if now is not None and then is not None]
    return Evaluation(
        iteration=iteration,
        reward=metrics["held_out/reward_mean"],
        training_reward=None if training_reward is None or math.isnan(training_reward) else training_reward,
        distinct_2=metrics.get("held_out/distinct-2", math.nan),
        length=metrics.get("held_out/length_mean", math.nan),
        kl=metrics.get("held_out/kl"),
        change=paired_bootstrap_interval(differences) if len(differences) >= PAIRS_NEEDED else None,
        num_scored=sum(reward is not None for reward in rewards),
    )


def read_history(rows: Sequence[Sequence[Any]]) -> list[Evaluation]:
    """Evaluations as a checkpoint has them: lists, with null for what JSON has no number for.

    Checkpoints of earlier versions have shorter ones.
    """
    found = []
    for row in rows:
        values = dict(zip(Evaluation._fields, row, strict=False))
        values |= {name: math.nan for name in ("reward", "distinct_2", "length") if values[name] is None}
        found.append(Evaluation(**values))
    return found

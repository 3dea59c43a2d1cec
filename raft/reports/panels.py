"""Which metrics stand together in which picture: tables for ``raft.reports.curves``."""

from __future__ import annotations

from dataclasses import dataclass

from raft.reports.canvas import ALL, GREEN, HELD_OUT, INK, PURPLE, SELECTED, TRAIN, VERMILION


@dataclass(frozen=True)
class Panel:
    """Curves over one y axis: (label, colour, key in metrics.jsonl) of each."""

    title: str
    curves: tuple[tuple[str, str, str], ...]
    height: float = 2.0  # inches
    smooth: bool = False


def _three(all_key: str, selected_key: str, held_out_key: str) -> tuple[tuple[str, str, str], ...]:
    return (("all samples", ALL, all_key), ("selected", SELECTED, selected_key), ("held-out", HELD_OUT, held_out_key))


def _diversity(name: str) -> tuple[tuple[str, str, str], ...]:
    return _three(f"diversity/{name}", f"diversity/selected_{name}", f"held_out/{name}")


REWARD = _three("reward/all_mean", "reward/selected_mean", "held_out/reward_mean")
RANKING_PANELS = (
    Panel(
        "Mean reward: selected, chosen at random, best of n",
        (
            ("random choice", ALL, "ranking/random_mean"),
            ("best of n", VERMILION, "ranking/best_of_n_mean"),
            ("selected", SELECTED, "reward/selected_mean"),  # on top: with local it is the best of n
        ),
        height=3.0,
    ),
    Panel(
        "Spread of the reward: standard deviation",
        (
            ("within a prompt", GREEN, "ranking/within_prompt_std"),
            ("between prompts", PURPLE, "ranking/between_prompt_std"),
        ),
    ),
    Panel(
        "Correlation of reward and length",
        (
            ("all samples", ALL, "ranking/length_correlation"),
            ("within a prompt", GREEN, "ranking/length_correlation_within_prompt"),
        ),
    ),
)
DIVERSITY_PANELS = (
    Panel("Diversity: distinct-2, the share of different bigrams", _diversity("distinct-2"), height=3.0),
    Panel("Self-BLEU: how much responses resemble each other", _diversity("self_bleu-4")),
    Panel("Repetition: 4-grams that came before in their response", _diversity("repetition-4")),
)
LENGTH_PANELS = (
    Panel(
        "Mean length in tokens",
        _three("response/length_mean", "response/selected_length_mean", "held_out/length_mean"),
        height=3.0,
    ),
    Panel(
        "Share that ended by EOS",
        _three("response/eos_share", "response/selected_eos_share", "held_out/eos_share"),
    ),
)
ENTROPY_PANELS = (
    Panel(
        "Mean entropy of the next token, in nats",
        (("all samples", ALL, "entropy/policy"), ("held-out", HELD_OUT, "held_out/entropy")),
        height=3.0,
    ),
    Panel("Perplexity of held-out reference texts", (("reference texts", VERMILION, "held_out/perplexity"),)),
)
LOSS_PANELS = (
    Panel("Loss", (("train", TRAIN, "train/loss"), ("held-out", HELD_OUT, "eval/loss")), height=3.0, smooth=True),
    Panel("Accuracy", (("held-out", HELD_OUT, "eval/accuracy"),), height=1.6),
    Panel("Learning rate", (("learning rate", INK, "train/learning_rate"),), height=1.0),
)

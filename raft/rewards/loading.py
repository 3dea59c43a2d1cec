"""Flags -> the sources of reward that they name."""

from __future__ import annotations

from raft.rewards.config import RewardConfig
from raft.rewards.reward_model import load_reward_model
from raft.rewards.rewards import NamedSource, Rewards


def load_rewards(config: RewardConfig, *, trust_remote_code: bool = False) -> Rewards:
    """Load every source that the flags name.

    Raises:
        UserError: if one can not be loaded.
    """
    model = load_reward_model(
        config.reward_model_or_path,
        base=config.reward_base_model,
        dtype=config.reward_dtype,
        batch_size=config.reward_batch_size,
        trust_remote_code=trust_remote_code,
        contract_file=config.reward_contract,
        test=config.reward_self_test,
    )
    return Rewards([NamedSource("reward_model", model)])

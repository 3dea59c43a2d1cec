"""From settings to an engine with a language model in it."""

from __future__ import annotations

from typing import Any

import torch

from raft.config import LoraConfig, ModelConfig, TrainingConfig
from raft.engine.engine import Engine
from raft.models.loading import load_causal_lm
from raft.models.lora import attach


def build_policy(
    model: ModelConfig, lora: LoraConfig, training: TrainingConfig, *, seed: int, total_steps: int
) -> Engine:
    """Load a language model, attach adapters if asked for, and put it into its engine.

    Args:
        seed: decides the initial adapters.
        total_steps: optimizer steps of the whole run, which the schedule spans.
    """
    torch.manual_seed(seed)
    module: Any = load_causal_lm(model)
    if lora.use_lora:
        module = attach(module, lora, task="CAUSAL_LM")
    return Engine(
        module,
        training,
        total_steps=total_steps,
        bf16=model.dtype == "bf16",
        gradient_checkpointing=model.gradient_checkpointing,
    )

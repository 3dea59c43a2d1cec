"""Adapters with weights that matter, without training any."""

from __future__ import annotations

from pathlib import Path

import torch

from raft.config import LoraConfig, ModelConfig
from raft.data.templates import ConversationTemplate
from raft.engine.export import save_pretrained
from raft.models.loading import load_causal_lm, load_classifier, load_tokenizer
from raft.models.lora import attach
from raft.rewards.contract import RewardContract


def build_adapter(base: str, directory: Path, *, reward: bool = False, seed: int = 0) -> str:
    """Save a LoRA adapter (for a reward model: with head and contract) that changes what ``base`` says; its path."""
    config = ModelConfig(model_name_or_path=base)
    tokenizer = load_tokenizer(config)
    torch.manual_seed(seed)
    model = load_classifier(config, num_labels=1) if reward else load_causal_lm(config)
    task, heads = ("SEQ_CLS", ["score"]) if reward else ("CAUSAL_LM", None)
    adapted = attach(model, LoraConfig(use_lora=True, lora_r=4, lora_alpha=16), task=task, modules_to_save=heads)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter.data, std=0.2)  # peft starts from zero: an adapter that adds nothing
    save_pretrained(adapted, tokenizer, directory, card="", base_model=base)
    if reward:
        template = ConversationTemplate(tokenizer).template
        contract = RewardContract(
            template=template,
            max_length=200,
            base_model=base,
            base_model_fingerprint=adapted.raft_base_fingerprint,
            accuracy=0.75,
            num_pairs=24,
            score_mean=0.5,
            score_std=1.5,
        )
        contract.save(directory)
    return str(directory)

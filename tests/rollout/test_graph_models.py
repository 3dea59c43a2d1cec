"""Which models a graph of one decoding step may be recorded of: those whose cache is what their configuration says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from raft.rollout.decoding import has_usual_heads

SHAPE: dict[str, Any] = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE, intermediate_size=64, num_key_value_heads=2), True),
    "falcon, a query for all": (FalconForCausalLM, FalconConfig(**SHAPE, multi_query=True), False),
    "falcon, alibi": (FalconForCausalLM, FalconConfig(**SHAPE, multi_query=False, alibi=True), False),
    "latent attention": (
        DeepseekV3ForCausalLM,
        DeepseekV3Config(**SHAPE, **LATENT, intermediate_size=64, num_key_value_heads=4, first_k_dense_replace=2),
        False,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_only_models_with_the_usual_cache(name: str) -> None:
    kind, config, usual = MODELS[name]
    with torch.no_grad():
        cache = kind(config).eval()(input_ids=torch.tensor([[3, 4, 5]]), use_cache=True).past_key_values
    assert has_usual_heads(config, cache) is usual

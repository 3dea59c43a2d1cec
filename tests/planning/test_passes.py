"""Passes on the meta device: what is counted is what there is."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from raft.config import LoraConfig, ModelConfig
from raft.errors import UserError
from raft.models.forward import next_token_loss
from raft.models.lora import attach
from raft.planning import passes
from raft.planning.live import RETURNED, LiveBytes
from raft.planning.models import language_model, score_model, shape_of
from raft.planning.shapes import count, num_bytes
from raft.rollout.cache import cache_bytes

PLAIN = LoraConfig()
SHAPE = ["hidden_size=8", "intermediate_size=12", "num_hidden_layers=1", "num_attention_heads=2", "vocab_size=10"]


def by_hand(**options: Any) -> Any:
    config = ModelConfig()
    return language_model(shape_of(config, SHAPE), config, LoraConfig(**options), "fp32")


def test_parameters_of_a_shape_by_hand() -> None:
    attention, mlp, norms = 4 * 8 * 8, 3 * 8 * 12, 2 * 8
    assert count(by_hand()) == 2 * 10 * 8 + attention + mlp + norms + 8
    adapters = 4 * 3 * (8 + 8) + 3 * 3 * (8 + 12)
    assert count(by_hand(use_lora=True, lora_r=3), trained=True) == adapters


@pytest.mark.parametrize("use_lora", [False, True])
def test_the_count_is_that_of_the_model_itself(tiny_model: str, use_lora: bool) -> None:
    config, lora = ModelConfig(model_name_or_path=tiny_model), LoraConfig(use_lora=use_lora)
    planned = language_model(shape_of(config, []), config, lora, "bf16")
    real: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    real = attach(real, lora, task="CAUSAL_LM") if use_lora else real
    assert [(n, p.shape) for n, p in planned.named_parameters()] == [(n, p.shape) for n, p in real.named_parameters()]
    assert num_bytes(planned) == 2 * count(real)
    assert count(planned, trained=True) == count(real, trained=True)


def test_a_reward_model_has_one_score(tiny_model: str, tiny_reward_model: str) -> None:
    config = ModelConfig(model_name_or_path=tiny_model)
    real = AutoModelForSequenceClassification.from_pretrained(tiny_reward_model)
    assert count(score_model(shape_of(config, []), config, PLAIN, "fp32")) == count(real)


def test_live_bytes_by_hand() -> None:
    with LiveBytes() as live:
        a = torch.zeros(10)  # 40
        b = a + 1  # 80
        del a  # 40
        c = b.view(2, 5)  # a view is no memory
        d = c.double()  # 120
        del b, c, d
        gc.collect()
    assert (live.peak, live.now, live.kept) == (120, 0, 120)


def test_large_blocks_go_back_to_the_system_and_small_ones_stay() -> None:
    with LiveBytes() as live:
        large = torch.empty(RETURNED, dtype=torch.int8, device="meta")
        del large
        small = torch.empty(1000, dtype=torch.int8, device="meta")
        del small
        torch.empty(RETURNED, dtype=torch.int8, device="meta")
    assert live.peak == RETURNED
    assert live.resident == RETURNED + 1000
    assert live.kept == 1000


def test_gradients_are_counted_apart() -> None:
    model = by_hand()
    usage = passes.training(model, passes.text_batch(2, 4, 3), next_token_loss)
    assert usage.gradients == 4 * count(model)
    assert usage.live >= usage.live_alone
    logits = 2 * 3 * 10 * 4
    assert usage.live_alone > 3 * logits, "logits, divided ones, and their log-softmax"


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny mixture of experts."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"vocab_size": 60, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    path = tmp_path_factory.mktemp("experts")
    AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **sizes)).save_pretrained(path)
    return str(path)


@pytest.mark.parametrize(("kind", "use_lora"), [("tiny_model", False), ("experts", False), ("experts", True)])
def test_meta_and_real_passes_need_the_same(kind: str, use_lora: bool, request: pytest.FixtureRequest) -> None:
    name, lora = request.getfixturevalue(kind), LoraConfig(use_lora=use_lora)
    config = ModelConfig(model_name_or_path=name, attn_implementation="eager")
    planned = language_model(shape_of(config, []), config, lora, "fp32")
    real: Any = AutoModelForCausalLM.from_pretrained(name, attn_implementation="eager")
    real = attach(real, lora, task="CAUSAL_LM") if use_lora else real
    usage = passes.training(planned, passes.text_batch(3, 20, 9), next_token_loss)
    batch = passes.text_batch(3, 20, 9)
    ids = torch.zeros(3, 20, dtype=torch.long)
    ids[:, 0] = 1
    batch = type(batch)(ids, ids.clone(), ids, ids, torch.arange(9), batch.weight)
    with LiveBytes() as live:
        for parameter in real.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda one: live.is_gradient(one.grad))
        next_token_loss(real.train(), batch)[0].backward()
    assert usage.gradients == live.gradients
    assert usage.live == pytest.approx(live.peak, rel=0.02)


def test_checkpointing_needs_less() -> None:
    shape = [*SHAPE[:2], "num_hidden_layers=6", *SHAPE[3:]]
    found = []
    for checkpointing in (False, True):
        config = ModelConfig(gradient_checkpointing=checkpointing)
        model = language_model(shape_of(config, shape), config, PLAIN, "fp32")
        found.append(passes.training(model, passes.text_batch(4, 32, 8), next_token_loss).live_alone)
    assert found[1] < 0.5 * found[0]


def test_sampling_needs_its_cache_and_its_logits() -> None:
    model = by_hand()
    draw = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    usage = passes.sampling(model, prompts=2, rows=6, length=5, room=7, draw=draw, graphs=False)
    cache = 6 * cache_bytes(model.config, 12, torch.float32)
    assert cache == 6 * 12 * (2 * 8 * 4), "keys and values of one layer, 8 wide"
    assert usage.live > cache
    wider = passes.sampling(model, prompts=2, rows=6, length=5, room=107, draw=draw, graphs=False)
    assert wider.live - usage.live >= 6 * cache_bytes(model.config, 100, torch.float32)


def test_a_number_that_can_not_be_read_is_named() -> None:
    with pytest.raises(UserError, match=r"--model_shape hidden_size: expected name=number"):
        shape_of(ModelConfig(), ["hidden_size"])

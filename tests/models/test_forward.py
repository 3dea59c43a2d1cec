"""Documents packed into rows: which models read them as if each was alone, and what is done about the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from raft.data.batching import collate
from raft.data.encoding import pack, unpack
from raft.models.forward import next_token_loss, reads_packed

SIZES: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {"intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
LARGE: dict[str, Any] = {"initializer_range": 0.2}  # so that what is attended to matters
MAKE: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS, **LARGE)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, **HEADS, **LARGE, sliding_window=4)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    ),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(**SIZES, ffn_dim=24, num_attention_heads=4, word_embed_proj_dim=16, init_std=0.2, dropout=0.0)
    ),
    "falcon": lambda: FalconForCausalLM(FalconConfig(**SIZES, **LARGE, num_attention_heads=4)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=2, **LARGE)),
    "mamba": lambda: MambaForCausalLM(MambaConfig(**SIZES)),
}
READ = {"llama", "mistral", "gpt2"}


@pytest.mark.parametrize("num_rows", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MAKE)
def test_which_models_read_packed_rows(name: str, dtype: torch.dtype, num_rows: int) -> None:
    torch.manual_seed(0)
    model = MAKE[name]().eval()
    assert reads_packed(model.to(dtype), num_rows=num_rows) is (name in READ)


@pytest.mark.parametrize("name", ["llama", "opt", "falcon"])
def test_the_loss_of_packed_rows_is_that_of_unpacked_ones_where_they_are_read(name: str) -> None:
    torch.manual_seed(0)
    model = MAKE[name]()
    packed = pack([[5, 6, 7, 8, 9], [10, 11, 12, 13], [14, 15, 16], [17, 18]], 9)
    assert len(packed) == 2
    together, alone = (
        next_token_loss(model, collate(rows, pad_token_id=0))[0].item() for rows in (packed, unpack(packed))
    )
    assert (abs(together - alone) < 1e-5 * alone) is (name in READ)


def test_a_model_that_takes_no_positions_does_not_read_packed_rows() -> None:
    model: Any = MAKE["llama"]().eval()

    class Plain(torch.nn.Module):
        config = model.config

        def get_input_embeddings(self) -> Any:
            return model.get_input_embeddings()

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            return model(input_ids=input_ids, use_cache=use_cache)

    assert not reads_packed(Plain(), num_rows=2)

    class Full(Plain):
        def forward(self, *arguments: Any, **options: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):  # which says nothing of positions
        reads_packed(Full(), num_rows=2)


def test_a_model_whose_logits_are_not_finite_does_not_read_packed_rows() -> None:
    model = MAKE["llama"]().eval()
    model.get_output_embeddings().weight.data.fill_(float("nan"))
    assert not reads_packed(model, num_rows=2)

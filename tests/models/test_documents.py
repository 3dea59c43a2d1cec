"""Rows joined to one: the loss and the gradients that each row has alone, and models that can not do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from raft.data.batching import IGNORED, collate_joined
from raft.data.encoding import TokenRow, pack
from raft.models.documents import documents_apart, reads_documents
from raft.models.forward import next_token_loss

SIZES: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}


def rows() -> list[TokenRow]:
    """Two dialogues and a packed row of two texts."""
    dialogues = [
        TokenRow([5, 6, 7, 8, 9], [False, False, True, True, True]),
        TokenRow([10, 11, 12], [False, True, True]),
    ]
    return [*dialogues, *pack([[13, 14, 15, 16], [17, 18]], 6)]


def alone(model: Any, documents: list[tuple[list[int], list[bool]]]) -> torch.Tensor:
    """Summed loss by transformers' own forward pass, document by document."""
    losses = []
    for ids, trained in documents:
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        keep = torch.tensor(trained[1:])
        losses.append(
            torch.nn.functional.cross_entropy(logits[keep], torch.tensor(ids)[1:][keep], reduction="sum")
        )
    return torch.stack(losses).sum()


def test_joined_by_hand() -> None:
    batch = collate_joined(rows())
    x = IGNORED
    assert batch.documents == (5, 3, 4, 2)
    assert batch.attention_mask is None
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3, 0, 1]]
    assert batch.labels.tolist() == [[x, x, 7, 8, 9, x, 11, 12, x, 14, 15, 16, x, 18]]
    assert batch.columns.tolist() == [1, 2, 3, 5, 6, 8, 9, 10, 12]
    assert batch.weight == 9


@pytest.mark.parametrize("kind", ["tiny", "grouped", "gpt2"])
def test_loss_and_gradients_are_those_of_each_row_alone(kind: str, tiny_model: str) -> None:
    torch.manual_seed(0)
    model: Any = {
        "tiny": lambda: AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32),
        "grouped": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS)),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        ),
    }[kind]()
    assert reads_documents(model.eval())
    model.train()
    before = model.config._attn_implementation
    loss, _ = next_token_loss(model, collate_joined(rows()))
    assert model.config._attn_implementation == before
    loss.backward()
    joined = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    no, yes = [False], [True]
    documents = [([5, 6, 7, 8, 9], 2 * no + 3 * yes), ([10, 11, 12], no + 2 * yes)]
    documents += [([13, 14, 15, 16], no + 3 * yes), ([17, 18], no + yes)]
    expected = alone(model, documents)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(joined[name], p.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("make", "reads"),
    [
        (lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, **HEADS)), True),
        (lambda: MistralForCausalLM(MistralConfig(**SIZES, **HEADS, sliding_window=4)), False),
        (lambda: LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS, attn_implementation="eager")), False),
        (lambda: BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=2)), False),
        (lambda: MambaForCausalLM(MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2)), False),
    ],
    ids=["grouped heads", "sliding window", "eager", "no positions", "recurrent"],
)
def test_which_models_read_documents(make: Callable[[], Any], reads: bool) -> None:
    torch.manual_seed(0)
    assert reads_documents(make().eval()) is reads


def test_a_model_that_carries_something_from_one_document_to_the_next_is_found_by_trying() -> None:
    model: Any = LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS)).eval()
    assert reads_documents(model)
    model.get_input_embeddings().register_forward_hook(lambda module, ids, embedded: embedded.cumsum(1))
    assert not reads_documents(model)


def test_the_implementation_is_put_back_after_an_error() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS))
    with pytest.raises(RuntimeError), documents_apart(model, [3]):
        model(input_ids=torch.tensor([[1, 2]]))  # the documents are longer than the row
    assert model.config._attn_implementation == "sdpa"

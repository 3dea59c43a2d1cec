"""How many tokens a classifier has positions for, whichever kind it is: as many as it can read, and not one more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from raft.errors import UserError
from raft.rewards.contract import RewardContract
from raft.rewards.fitting import context_length
from raft.rewards.reward_model import RewardModel, load_reward_model
from raft.rewards.source import Candidate
from tests.conftest import SENTENCES

SHAPE = {
    "vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "max_position_embeddings": 66, "pad_token_id": 1, "num_labels": 1, "initializer_range": 0.2,
}  # fmt: skip
BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "eos_token_id": 2}


def build(kind: str, **others: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **SHAPE | others)).eval()


@pytest.mark.parametrize(
    ("kind", "others", "expected"),
    [
        ("roberta", {}, 64),  # its positions begin behind the padding token's id
        ("roberta", {"pad_token_id": 0}, 65),
        ("xlm-roberta", {}, 64),
        ("camembert", {}, 64),
        ("mpnet", {}, 64),
        ("longformer", {"attention_window": 8}, 64),
        ("bert", {}, 66),
        ("distilbert", {"dim": 32, "n_heads": 4, "n_layers": 1}, 66),
        ("electra", {"embedding_size": 32}, 66),
        ("bart", BART, 66),  # two more rows than positions
        ("gpt2", {"n_embd": 32, "n_head": 4, "n_layer": 1, "n_positions": 66}, 66),
        ("llama", {}, 66),
    ],
)
def test_as_many_tokens_as_there_are_positions(kind: str, others: dict[str, Any], expected: int) -> None:
    model = build(kind, **others)
    assert context_length(model) == expected
    tokens = torch.full((1, expected + 1), 7)
    tokens[:, -1] = 2
    with torch.no_grad():
        assert model(input_ids=tokens[:, 1:]).logits.shape == (1, 1)
        if kind not in ("llama", "longformer"):  # these go on, into positions that they were not trained on
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=tokens)


@pytest.fixture
def roberta(tmp_path: Path) -> Path:
    """A tiny RoBERTa whose tokenizer does not say how long texts may be."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(vocab_size=384, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>", cls_token="<s>", sep_token="</s>"
    ).save_pretrained(tmp_path)
    build("roberta").save_pretrained(tmp_path)
    return tmp_path


def load(path: Path) -> RewardModel:
    return load_reward_model(str(path), base=None, dtype="fp32", batch_size=4)


def test_a_long_text_is_cut_to_the_positions_of_the_model(roberta: Path) -> None:
    model = load(roberta)
    assert model.contract.max_length == 64
    candidates = [Candidate([{"role": "user", "content": " ".join(SENTENCES)}], one) for one in SENTENCES]
    assert len(set(model.score(candidates, name="test", progress=None))) == 4


def test_a_contract_that_counts_positions_which_no_token_has(roberta: Path) -> None:
    contract = {"template": "raw", "score_token": "pooled"}
    RewardContract(max_length=65, **contract).save(roberta)
    with pytest.raises(UserError, match=r"65 tokens are read \(max_length\), but the model has 64 positions"):
        load(roberta)
    RewardContract(max_length=64, **contract).save(roberta)
    load(roberta)

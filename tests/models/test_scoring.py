"""Scores are read at the last real token, in fp32, wherever the padding is and whatever its id."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    Gemma3Config,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from raft.config import LoraConfig
from raft.data.batching import collate_pairs, pad_left, pad_right
from raft.data.encoding import PairRow
from raft.errors import UserError
from raft.functional.losses import bradley_terry_loss
from raft.models.loading import cast
from raft.models.lora import attach
from raft.models.scoring import Float32Head, ScoringModel, can_branch, can_continue, initialize_head, use_float32_head
from raft.rewards.reward_model import load_reward_model

EOS, PAD = 2, 0
ROWS = [[5, 60, 61, EOS], [7, EOS], [9, 80, 81, 82, 83, 84, EOS], [5, EOS, 60, EOS]]


@pytest.fixture
def classifier(tiny_reward_model: str) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(tiny_reward_model).eval()


@torch.no_grad()
def alone(classifier: Any, row: list[int]) -> float:
    """The score of a row without padding, by body and head: nothing to get wrong."""
    hidden = classifier.model(input_ids=torch.tensor([row])).last_hidden_state
    return (hidden[0, -1] @ classifier.score.weight[0]).item()


@pytest.mark.parametrize("pad", [pad_right, pad_left])
@pytest.mark.parametrize("pad_token_id", [PAD, EOS])
@torch.no_grad()
def test_last_real_token(classifier: Any, pad: Any, pad_token_id: int) -> None:
    """Also where EOS pads: there transformers itself would read the token before the EOS."""
    classifier.config.pad_token_id = pad_token_id
    input_ids, mask = pad(ROWS, pad_token_id)
    scores = ScoringModel(classifier)(input_ids=input_ids, attention_mask=mask)
    assert scores.shape == (4,)
    expected = torch.tensor([alone(classifier, row) for row in ROWS])
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
    assert scores.std() > 0.1  # they differ, so a wrong token would show


@torch.no_grad()
def test_score_of_the_token_before_is_another_one(classifier: Any) -> None:
    """What the test above would miss if the last two tokens scored alike."""
    for row in ROWS:
        assert abs(alone(classifier, row) - alone(classifier, row[:-1])) > 1e-3


@torch.no_grad()
def test_label(classifier: Any) -> None:
    classifier.score = torch.nn.Linear(32, 3, bias=True)
    classifier.config.num_labels = 3
    input_ids, mask = pad_right(ROWS, PAD)
    hidden = classifier.model(input_ids=input_ids[:1, :4]).last_hidden_state[0, -1]
    expected = classifier.score(hidden)
    found = [ScoringModel(classifier, label)(input_ids=input_ids, attention_mask=mask)[0] for label in range(3)]
    torch.testing.assert_close(torch.stack(found), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_below_an_adapter(classifier: Any) -> None:
    adapted = attach(classifier, LoraConfig(use_lora=True), task="SEQ_CLS", modules_to_save=["score"])
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            parameter.normal_(std=0.1)
    input_ids, mask = pad_right(ROWS, EOS)
    scores = ScoringModel(adapted.eval())(input_ids=input_ids, attention_mask=mask)
    merged = adapted.merge_and_unload()
    expected = torch.tensor([alone(merged, row) for row in ROWS])
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_classifier_without_a_score_layer_answers_itself() -> None:
    config = BertConfig(
        vocab_size=100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config.num_labels = 2
    model = BertForSequenceClassification(config).eval()
    input_ids, mask = pad_right(ROWS, PAD)
    scores = ScoringModel(model, label=1)(input_ids=input_ids, attention_mask=mask)
    torch.testing.assert_close(scores, model(input_ids=input_ids, attention_mask=mask).logits[:, 1])


# ---------------------------------------------------------------- fp32 at the head


def test_head_computes_in_fp32() -> None:
    """Weights 1 and 1/512: their sum is a bf16 step of 1/128 away from 1, so bf16 would say 1."""
    head = Float32Head(2, 1, bias=False).to(torch.bfloat16)
    head.weight.data = torch.tensor([[1.0, 1 / 512]], dtype=torch.bfloat16)
    hidden = torch.ones(1, 2, dtype=torch.bfloat16)
    assert torch.nn.functional.linear(hidden, head.weight).item() == 1
    found = head(hidden)
    assert found.dtype == torch.float32
    assert found.item() == 1 + 1 / 512


@pytest.mark.parametrize("bias", [False, True])
def test_head_is_replaced_with_its_weights(classifier: Any, bias: bool) -> None:
    old = torch.nn.Linear(32, 1, bias=bias)
    classifier.score = old
    use_float32_head(classifier)
    assert isinstance(classifier.score, Float32Head)
    assert classifier.score.weight is old.weight
    assert classifier.score.bias is old.bias
    same = classifier.score
    use_float32_head(classifier)
    assert classifier.score is same


def test_reward_model_in_bf16_keeps_head_and_positions_in_fp32(tiny_reward_model: str) -> None:
    classifier = load_reward_model(tiny_reward_model, base=None, dtype="bf16", batch_size=2).model.classifier
    assert classifier.score.weight.dtype == torch.float32
    assert classifier.model.rotary_emb.inv_freq.dtype == torch.float32
    assert classifier.model.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16


@torch.no_grad()
def test_bf16_scores_are_not_on_a_grid(classifier: Any) -> None:
    """Scores of 64 texts around 3 are 64 numbers; a bf16 head has steps of 1/64 there and lets them tie."""
    classifier.score.weight.mul_(4)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(3, 300, (64, 6), generator=generator)
    mask = torch.ones_like(input_ids)
    cast(classifier, torch.bfloat16)
    plain = ScoringModel(classifier)(input_ids=input_ids, attention_mask=mask)
    use_float32_head(classifier)
    exact = ScoringModel(classifier)(input_ids=input_ids, attention_mask=mask)
    assert len(set(exact.tolist())) == 64
    assert len(set(plain.tolist())) < 64
    torch.testing.assert_close(plain, exact, rtol=2**-8, atol=1e-3)


# ---------------------------------------------------------------- two responses in one row


PAIRS = [
    PairRow([5, 60, 61, 62, EOS], [5, 60, 71, EOS]),
    PairRow([5, EOS], [5, 70, 71, 72, EOS]),
    PairRow([7, EOS, 8, 80, EOS], [7, EOS, 8, EOS]),
    PairRow([9, 90, EOS], [8, 90, EOS]),  # nothing in common
]
SMALL = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 1}
SMALL |= {"initializer_range": 0.3, "pad_token_id": PAD}
LLAMA_LIKE = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
GPT_NEO = {**SMALL, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 512}


def build(config: Any, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    config._attn_implementation = attention
    return AutoModelForSequenceClassification.from_config(config).eval()


def scores_and_gradients(model: Any, sharing: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    batch = collate_pairs(PAIRS, PAD, sharing=sharing)
    assert (batch.segments is not None) == sharing
    scores = ScoringModel(model)(batch.input_ids, batch.attention_mask, batch.segments)
    bradley_terry_loss(*scores.chunk(2), centering=0.1).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return scores.detach(), gradients


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("config", "lora"),
    [(LlamaConfig(**LLAMA_LIKE), True), (Qwen2Config(**LLAMA_LIKE), False), (GPT2Config(**SMALL), False)],
)
def test_sharing_changes_neither_scores_nor_gradients(config: Any, lora: bool, attention: str) -> None:
    model = build(config, attention)
    assert can_branch(model)
    if lora:
        model = attach(model, LoraConfig(use_lora=True), task="SEQ_CLS", modules_to_save=["score"]).eval()
    plain, expected = scores_and_gradients(model, sharing=False)
    shared, gradients = scores_and_gradients(model, sharing=True)
    torch.testing.assert_close(shared, plain, rtol=1e-5, atol=1e-5)
    assert plain.std() > 0.1
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-4, atol=1e-5, msg=name)


def gpt_neo(kinds: list[str], window: int = 8) -> GPTNeoConfig:
    return GPTNeoConfig(**GPT_NEO, attention_types=[[kinds, 1]], window_size=window)


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**LLAMA_LIKE, sliding_window=4),  # a long text would lose the prompt
        gpt_neo(["global", "local"]),  # likewise, by other names
        Gemma3Config(  # likewise, in a part of its configuration
            text_config={**LLAMA_LIKE, "head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention"] * 2},
            vision_config={**SMALL, "intermediate_size": 48, "image_size": 28, "patch_size": 14},
            num_labels=1,
        ),
        BertConfig(**SMALL, intermediate_size=48),  # no causal decoder, no score layer
        BloomConfig(**SMALL, n_head=4, n_layer=2),  # counts positions itself, along the row
    ],
    ids=lambda config: config.model_type,
)
def test_models_that_can_not_share(config: Any) -> None:
    assert not can_branch(build(config, "eager"))
    # Bloom counts along the mask, which is right behind a beginning: the try shows that.
    assert can_continue(build(config, "eager")) == (config.model_type == "bloom")


@pytest.mark.parametrize("window", [8, 256])
def test_a_window_that_no_setting_names_shows_in_a_try(window: int) -> None:
    classifier = build(gpt_neo(["global", "local"], window), "eager")
    classifier.config.attention_layers = ["global", "global"]
    assert not can_branch(classifier)


@pytest.mark.parametrize(
    "config",
    [gpt_neo(["global", "global"]), Qwen2Config(**LLAMA_LIKE, use_sliding_window=False, sliding_window=4)],
    ids=lambda config: config.model_type,
)
def test_a_window_that_is_off_is_none(config: Any) -> None:
    classifier = build(config, "eager")
    assert can_branch(classifier)
    assert can_continue(classifier)


def test_attention_without_a_mask_of_its_own_can_not_share(classifier: Any) -> None:
    assert can_branch(classifier)
    assert can_continue(classifier)
    classifier.config._attn_implementation = "flash_attention_2"
    assert not can_branch(classifier)
    assert not can_continue(classifier)


@pytest.mark.parametrize("tried", [can_branch, can_continue])
def test_memory_that_runs_out_is_no_answer(
    tried: Callable[[Any], bool], classifier: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(classifier.model), "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        tried(classifier)


# ---------------------------------------------------------------- several texts behind one beginning

PREFIXES = [[5, 60, 61, 9, 11], [7]]
TAILS = [(0, [12, EOS]), (1, [13, 14, 15, EOS]), (0, [EOS]), (0, [60, 61, 62])]


@torch.no_grad()
def continued(classifier: Any) -> torch.Tensor:
    owners, tails = zip(*TAILS, strict=True)
    return ScoringModel(classifier).continuations(
        *pad_left(PREFIXES, PAD), torch.tensor(owners), *pad_right(list(tails), PAD)
    )


def test_texts_behind_one_beginning_score_as_by_themselves(classifier: Any) -> None:
    expected = [alone(classifier, PREFIXES[owner] + tail) for owner, tail in TAILS]
    assert continued(classifier).tolist() == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 2) for score in expected}) == 4  # otherwise this would show nothing


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("config", [GPT2Config(**SMALL), Qwen2Config(**LLAMA_LIKE)], ids=lambda c: c.model_type)
@torch.no_grad()
def test_texts_behind_one_beginning_in_other_architectures(config: Any, attention: str) -> None:
    classifier = build(config, attention)
    assert can_continue(classifier)
    expected = []
    for owner, tail in TAILS:
        ids = torch.tensor([PREFIXES[owner] + tail])
        expected += ScoringModel(classifier)(input_ids=ids, attention_mask=torch.ones_like(ids)).tolist()
    assert continued(classifier).tolist() == pytest.approx(expected, abs=1e-5)


# ---------------------------------------------------------------- where a new head starts


def test_head_starts_where_asked(classifier: Any) -> None:
    before = classifier.score.weight.clone()
    initialize_head(classifier, "transformers")
    assert torch.equal(classifier.score.weight, before)
    initialize_head(classifier, "zero")
    assert classifier.score.weight.count_nonzero() == 0
    classifier.score = torch.nn.Linear(4095, 1, bias=False)
    initialize_head(classifier, "small")
    # 4,095 draws of deviation 1/4096: their own is within 4 * 1.1 % of it.
    assert classifier.score.weight.std().item() * 4096 == pytest.approx(1, abs=0.045)


def test_head_that_is_not_there_can_not_be_started() -> None:
    model = build(BertConfig(**SMALL, intermediate_size=48))
    initialize_head(model, "transformers")
    with pytest.raises(UserError, match="--score_head_init: found zero"):
        initialize_head(model, "zero")

"""Policy and reward model with different tokenizers, templates and EOS tokens: candidates are templated again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from raft import cli
from raft.run_directory import read_jsonl

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.fixture
def foreign(tmp_path: Path) -> str:
    """A reward model whose tokenizer has other tokens, BOS and EOS than the policy's, and no pad token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options: dict[str, Any] = {"special_tokens": ["<s>", "</s>"], "initial_alphabet": alphabet}
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, **options)
    raw.train_from_iterator(["thank you for all those other words"], trainer)
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    path = tmp_path / "foreign"
    tokenizer.save_pretrained(path)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.2,
        num_labels=1,
    )
    LlamaForSequenceClassification(config).save_pretrained(path)
    return str(path)


def test_scores_are_those_of_the_reward_model_alone(
    talkative_model: str,
    foreign: str,
    prompts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("raft.reports.curves.draw_align_curves", lambda directory: None)
    flags = {
        "model_name_or_path": talkative_model,
        "reward_model_or_path": foreign,
        "dataset_path": prompts,
        "eval_dataset_path": "none",
        "validation_split_percentage": 25,
        "num_raft_iteration": 1,
        "raft_batch_size": 4,
        "num_samples_per_prompt": 4,
        "output_max_length": 12,
        "dtype": "fp32",
        "reward_dtype": "fp32",
        "output_dir": tmp_path / "run",
    }
    assert cli.main(["align", *(str(text) for name, value in flags.items() for text in (f"--{name}", value))]) == 0
    assert f"{foreign} has no reward_model.json; assumed: template chat" in capfd.readouterr().err

    model = LlamaForSequenceClassification.from_pretrained(foreign).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(foreign)
    found, expected = [], []
    for row in read_jsonl(tmp_path / "run/iterations/0001/samples.jsonl"):
        turns = "".join(f"<{message['role']}> {message['content']}</s>" for message in row["prompt"])
        # No token spans prompt and response, as none does where a policy writes the response.
        texts = f"<s>{turns}<assistant> ", f"{row['response']}</s>"
        ids = [token for text in texts for token in tokenizer(text, add_special_tokens=False).input_ids]
        assert ids[-1] == tokenizer.eos_token_id
        found.append(row["reward"])
        expected.append(model(input_ids=torch.tensor([ids])).logits[0, 0].item())
    assert len(found) == 16
    assert len({round(score, 2) for score in expected}) > 8, "otherwise this would show nothing"
    assert found == pytest.approx(expected, abs=1e-4)

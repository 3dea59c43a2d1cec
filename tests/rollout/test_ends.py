"""Which tokens end a response, where they are not the tokenizer's EOS: as with Gemma, Phi-3 and base models."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raft.data.turns import end_tokens, turn_end
from raft.rollout.sampler import generate, response_text
from raft.rollout.sampling import Sampling

END_OF_TEXT, IM_START, IM_END = 0, 1, 2


@pytest.fixture
def tokenizer(tiny_model: str) -> Any:
    """ChatML in the template, but another EOS."""
    found = AutoTokenizer.from_pretrained(tiny_model)
    found.eos_token = "<|endoftext|>"
    return found


def configured(ids: Any) -> Any:
    return SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=ids))


def test_end_tokens_by_hand(tiny_model: str, tokenizer: Any) -> None:
    usual = AutoTokenizer.from_pretrained(tiny_model)
    assert end_tokens(usual) == [IM_END]
    assert end_tokens(tokenizer) == [END_OF_TEXT, IM_END]
    assert end_tokens(usual, configured([IM_END, 7])) == [IM_END, 7]
    assert end_tokens(usual, configured(7)) == [IM_END, 7]
    assert end_tokens(usual, configured(None)) == [IM_END]
    assert end_tokens(usual, stop=("Hello", "<|im_start|>", "<|im_end|>")) == [IM_END, IM_START]


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",  # a line break, no special token
        "{% for m in messages %}{{ m['content'] }}{% endfor %}",  # nothing
        "{{ raise_exception('other turns, please') }}",
    ],
)
def test_templates_that_close_a_turn_with_no_token_of_its_own(tokenizer: Any, template: str | None) -> None:
    tokenizer.chat_template = template
    assert turn_end(tokenizer) is None
    assert end_tokens(tokenizer) == [END_OF_TEXT]


def test_a_response_ends_where_transformers_ends_it(talkative_model: str, tokenizer: Any) -> None:
    """The policy was trained to close with <|im_end|>; its tokenizer calls <|endoftext|> EOS."""
    model: Any = AutoModelForCausalLM.from_pretrained(talkative_model).eval()
    prompts = [
        tokenizer(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n").input_ids
        for text in ("Hello", "Bread needs flour", "dog runs")
    ]
    numbers = torch.from_numpy(np.random.default_rng(0).random((3, 40), dtype=np.float32))
    found = generate(model, prompts, [0, 1, 2], numbers, Sampling(max_tokens=40, temperature=0.0), tokenizer)
    assert any(one.finish_reason == "eos" for one in found), "otherwise this would show nothing"
    model.generation_config.eos_token_id = [END_OF_TEXT, IM_END]
    for prompt, one in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
        assert one.tokens == expected[0, len(prompt) :].tolist()
        assert one.finish_reason == ("eos" if one.tokens[-1] in (END_OF_TEXT, IM_END) else "length")
        assert "<|" not in response_text(one, Sampling(max_tokens=40), tokenizer)


def test_no_end_before_the_least_number_of_tokens(talkative_model: str, tokenizer: Any, tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(talkative_model).eval()
    prompt = tokenizer("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n").input_ids
    numbers = torch.from_numpy(np.random.default_rng(1).random((8, 24), dtype=np.float32))
    sampling = Sampling(max_tokens=24, min_tokens=20)
    found = generate(model, [prompt], [0] * 8, numbers, sampling, tokenizer)
    assert all(not {END_OF_TEXT, IM_END} & set(one.tokens[:20]) for one in found)
    assert all(len(one.tokens) >= 20 for one in found)

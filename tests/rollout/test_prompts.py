from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from raft.data.rows import Row
from raft.data.templates import ConversationTemplate
from raft.errors import UserError
from raft.rollout.prompts import draw_prompts, encode_prompts


@given(st.integers(1, 30), st.integers(0, 5), st.integers(1, 4))
def test_every_epoch_is_a_permutation(num_prompts: int, seed: int, num_epochs: int) -> None:
    drawn = draw_prompts(num_prompts, seed=seed, cursor=0, count=num_epochs * num_prompts)
    for epoch in range(num_epochs):
        assert sorted(drawn[epoch * num_prompts : (epoch + 1) * num_prompts]) == list(range(num_prompts))


@given(st.integers(1, 20), st.lists(st.integers(0, 25), max_size=8))
def test_the_cursor_alone_says_where_the_data_stands(num_prompts: int, counts: list[int]) -> None:
    whole = draw_prompts(num_prompts, seed=3, cursor=0, count=sum(counts))
    cursor, parts = 0, list[int]()
    for count in counts:
        parts += draw_prompts(num_prompts, seed=3, cursor=cursor, count=count)
        cursor += count
    assert parts == whole


def test_nothing_is_dropped_when_batches_do_not_divide_the_epoch() -> None:
    # 10 prompts in batches of 4: after 5 batches every prompt has come exactly twice.
    batches = [draw_prompts(10, seed=0, cursor=4 * i, count=4) for i in range(5)]
    assert Counter(i for batch in batches for i in batch) == Counter({i: 2 for i in range(10)})


def test_more_prompts_than_there_are_come_again_in_another_order() -> None:
    drawn = draw_prompts(20, seed=0, cursor=0, count=40)
    assert drawn[:20] != drawn[20:]
    assert drawn != draw_prompts(20, seed=1, cursor=0, count=40)
    assert drawn[:20] != list(range(20))


@pytest.fixture(scope="module")
def template(tiny_model: str) -> ConversationTemplate:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model)
    return ConversationTemplate(tokenizer)


def row(text: str, line: int, **extra: Any) -> Row:
    return Row(source=f"file.jsonl:{line}", messages=({"role": "user", "content": text},), extra=extra)


def test_prompts_keep_their_id_and_are_encoded_up_to_the_answer(template: ConversationTemplate) -> None:
    prompts, counts = encode_prompts(
        [row("Hello", 1, prompt_id="a", topic="x"), row("Hello there", 2), row("dog", 3, prompt_id=7)],
        template,
        max_length=100,
        flag="--dataset_path",
    )
    assert [prompt.prompt_id for prompt in prompts] == ["a", "file.jsonl:2", "7"]
    assert prompts[0].extra["topic"] == "x"
    text = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert template.tokenizer.decode(prompts[0].tokens) == text
    assert prompts[0].tokens.count(template.tokenizer.bos_token_id) == 2  # one a turn, none in front of them
    assert not counts


def test_long_prompts_are_dropped_and_counted(template: ConversationTemplate) -> None:
    lengths = [len(template.encode_prompt(row(text, 0).messages)) for text in ("Hello", "Hello there dog")]
    rows = [row("Hello there dog", 1), row("Hello", 2), row("Hello there dog", 3)]
    assert lengths[0] < lengths[1]
    prompts, counts = encode_prompts(rows, template, max_length=lengths[0], flag="--dataset_path")
    assert [prompt.prompt_id for prompt in prompts] == ["file.jsonl:2"]  # the limit itself is allowed
    assert counts == {"dropped: too long": 2}
    with pytest.raises(UserError, match=rf"--eval_dataset_path.*--prompt_max_length {lengths[0] - 1}"):
        encode_prompts(rows, template, max_length=lengths[0] - 1, flag="--eval_dataset_path")


@pytest.mark.parametrize("content", ["assistant", "a", "im", "Hello", "user\nHello "])
def test_the_tail_of_a_prompt_that_stands_in_the_template_too(tiny_model: str, content: str) -> None:
    template = ConversationTemplate(AutoTokenizer.from_pretrained(tiny_model))
    row = Row("here", ({"role": "user", "content": content},))
    ((prompt,), _) = encode_prompts([row], template, max_length=99, flag="--dataset_path")
    assert prompt.tail == "<|im_end|>\n<|im_start|>assistant\n"

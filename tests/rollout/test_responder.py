"""Models that answer: the same tokens as the sampler's, history that fits, names, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raft.data.templates import ConversationTemplate
from raft.errors import UserError
from raft.models.loading import context_of
from raft.rollout.answering_config import LoadingConfig
from raft.rollout.responder import (
    Responder,
    find_sources,
    fit,
    load_responder,
    load_template,
    read_config,
    short_names,
)
from raft.rollout.sampling import Sampling
from tests.adapters import build_adapter

FP32 = LoadingConfig(dtype="fp32")
ASKED = [{"role": "user", "content": "Bread needs flour"}]


@pytest.fixture(scope="module")
def responder(talkative_model: str) -> Responder:
    (source,) = find_sources([("--models", talkative_model)])
    return load_responder(source, FP32)


def test_greedy_equals_generate_and_the_pieces_are_the_answer(responder: Responder, talkative_model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(talkative_model)
    model = AutoModelForCausalLM.from_pretrained(talkative_model)
    text = tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, return_tensors="pt")
    expected = model.generate(**prompt, do_sample=False, max_new_tokens=20)[0, prompt.input_ids.shape[1] :].tolist()
    pieces: list[str] = []
    found = responder.answer(ASKED, Sampling(temperature=0.0, max_tokens=20), (0, 1), pieces.append)
    assert found.tokens == expected
    assert found.text == "".join(pieces) == tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert found.finish_reason == "eos"
    assert len(pieces) > 1


def test_a_message_with_a_token_that_the_model_does_not_have_is_refused(responder: Responder, tiny_model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["<new>"])
    larger = Responder("m", responder.model, ConversationTemplate(tokenizer))
    assert larger.answer(ASKED, Sampling(max_tokens=2), (0, 1)).tokens
    with pytest.raises(UserError, match=f"^the message: a prompt has id {len(tokenizer) - 1}, allowed are ids below"):
        larger.answer([{"role": "user", "content": "<new>"}], Sampling(max_tokens=2), (0, 1))


def test_the_seed_decides(responder: Responder) -> None:
    sampling = Sampling(max_tokens=12)
    first, same, other = (responder.answer(ASKED, sampling, seed).tokens for seed in ((0, 1), (0, 1), (0, 2)))
    assert first == same != other


def test_an_answer_that_is_interrupted_leaves_the_next_one_as_it_is(responder: Responder) -> None:
    sampling = Sampling(max_tokens=12)
    whole = responder.answer(ASKED, sampling, (0, 1))

    def interrupt(piece: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        responder.answer(ASKED, sampling, (0, 1), interrupt)
    assert responder.answer(ASKED, sampling, (0, 1)) == whole


# ------------------------------------------------------------------------------------------- history


def messages(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ["user", "assistant"] * len(contents)
    turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return [{"role": "system", "content": system}] * bool(system) + turns


def test_the_oldest_turns_go_first_and_the_system_message_stays(responder: Responder) -> None:
    template = responder.template
    long = messages("first", "one", "second", "two", "third", system="be nice")
    assert fit(long, template, 10**6, 5) == template.encode_prompt(long)
    short = messages("second", "two", "third", system="be nice")
    limit = len(template.encode_prompt(short))
    assert fit(long, template, limit + 5, 5) == template.encode_prompt(short)
    assert fit(long, template, limit + 4, 5) == template.encode_prompt(messages("third", system="be nice"))


def test_turns_that_do_not_alternate_lose_one_question_at_a_time(responder: Responder) -> None:
    template = responder.template
    asked = [{"role": "user", "content": content} for content in ("first", "second", "third")]
    for keep in (2, 1):
        size = len(template.encode_prompt(asked[-keep:]))
        assert fit(asked, template, size + 5, 5) == template.encode_prompt(asked[-keep:])
    started = [{"role": "assistant", "content": "welcome"}, *messages("first", "one", "third")]
    whole = template.encode_prompt(started)
    assert fit(started, template, len(whole) + 4, 5) == template.encode_prompt(started[1:])
    with pytest.raises(UserError, match="the message has"):
        fit(asked[:2], template, 6, 5)


def test_a_message_that_is_too_long_is_refused(responder: Responder) -> None:
    size = len(responder.template.encode_prompt(messages("third")))
    expected = f"the message has {size} tokens with its template; the model reads {size + 4}, of which --max_new_tokens"
    with pytest.raises(UserError, match=expected):
        fit(messages("first", "one", "third"), responder.template, size + 4, 5)


def test_a_template_that_refuses_is_a_users_mistake(talkative_model: str) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(talkative_model)
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(UserError, match=r"refuses a conversation of system, user: System role not supported"):
        fit(messages("hi", system="be nice"), ConversationTemplate(tokenizer), 512, 5)


# ------------------------------------------------------------------------------------------- which model


def test_names_are_as_long_as_it_takes(tmp_path: Path) -> None:
    for name in ("a/final", "b/final", "a/best"):
        (tmp_path / name).mkdir(parents=True)
    assert short_names([str(tmp_path / "a/final")]) == ["a"]
    assert short_names([str(tmp_path / "a/final"), "owner/model"]) == ["a", "model"]
    assert short_names([str(tmp_path / "a"), str(tmp_path / "a/final")]) == ["a", "final"]
    paths = [str(tmp_path / name) for name in ("a/final", "b/final", "a/best")]
    assert short_names(paths) == ["a", "b", "a/best"]
    with pytest.raises(UserError, match="is named twice"):
        short_names([paths[0], str(tmp_path / "b/../a/final")])


def test_a_run_directory_stands_for_its_last_policy(talkative_model: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/final").symlink_to(talkative_model)
    (source,) = find_sources([("--models", str(tmp_path / "run"))])
    assert (source.path, source.base) == (str(tmp_path / "run/final"), None)
    assert context_of(read_config(source, FP32)) == 512


def test_an_adapter_answers_as_its_merged_model(tiny_model: str, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    build_adapter(tiny_model, adapter)
    alone, plain, on_top = (
        find_sources([("--models", str(adapter))])[0],
        find_sources([("--models", tiny_model)])[0],
        find_sources([("--model_name_or_path", tiny_model)], str(adapter))[0],
    )
    assert alone.base == on_top.base == tiny_model
    assert load_template(alone, FP32).tokenizer.eos_token == "<|im_end|>"
    input_ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        first, second, base = (load_responder(one, FP32).model(input_ids).logits for one in (alone, on_top, plain))
    assert torch.equal(first, second)
    assert not torch.allclose(first, base, atol=1e-2)


def test_reward_models_and_what_is_no_adapter_are_refused(
    tiny_reward_model: str, tiny_model: str, tmp_path: Path
) -> None:
    (source,) = find_sources([("--compare", tiny_reward_model)])
    with pytest.raises(UserError, match=f"--compare: {tiny_reward_model} is a reward model"):
        load_responder(source, FP32)
    with pytest.raises(UserError, match=r"--adapter: .* has no adapter_config.json"):
        find_sources([("--model_name_or_path", tiny_model)], tiny_model)
    build_adapter(tiny_model, tmp_path / "reward", reward=True)
    with pytest.raises(UserError, match="is a reward model, which answers nothing"):
        find_sources([("--models", str(tmp_path / "reward"))])

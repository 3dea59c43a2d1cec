"""Prompts are prefixes of what is trained on, responses alone are trained, and no BOS comes twice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from raft.data.templates import ConversationTemplate
from raft.errors import UserError

EOS = "<|im_end|>"
Messages = list[dict[str, str]]

# What reasoning models' templates do: an answer's thoughts are dropped as soon as another turn follows.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# What Llama's templates do: BOS is part of the text.
WITH_BOS = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% if m['role'] == 'assistant' %}"
WITH_BOS += "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"

# What Mistral's templates do: a conversation begins with the user.
STRICT = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('the user begins') }}{% endif %}" + WITH_BOS
# What Gemma's templates do: system messages are refused as well, and roles alternate.
ALTERNATING = "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
ALTERNATING += "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + WITH_BOS


@pytest.fixture(scope="module")
def tokenizer(tiny_model: str) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def bos_tokenizer(tiny_model: str) -> Any:
    """One that puts <|endoftext|> in front of every text, as Llama's does with its BOS."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    bos = "<|endoftext|>"
    tokenizer.bos_token = bos
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))]
    )
    assert tokenizer("Hello").input_ids[0] == tokenizer.bos_token_id
    return tokenizer


def turns(*contents: str) -> Messages:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def runs(tokens: list[int], trained: list[bool]) -> list[list[int]]:
    """The uninterrupted stretches of trained tokens."""
    found: list[list[int]] = [[]]
    for token, is_trained in zip(tokens, trained, strict=True):
        if is_trained:
            found[-1].append(token)
        elif found[-1]:
            found.append([])
    return [run for run in found if run]


# ---------------------------------------------------------------- the text


def test_chat_prompt_is_what_transformers_makes(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be kind."}, *turns("Hello", "I am fine.", "Bread?")]
    template = ConversationTemplate(tokenizer, "chat")
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert template.encode_prompt(messages) == expected


def test_human_assistant_text(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be kind."}, *turns("Hello", "I am fine.", "Bread?", "\nBake it.")]
    template = ConversationTemplate(tokenizer, "human_assistant")
    assert template.render_prompt(messages[:2]) == "Be kind.\n###Human: Hello\n###Assistant:"
    tokens, _ = template.encode(messages)
    assert tokenizer.decode(tokens) == (
        f"Be kind.\n###Human: Hello\n###Assistant: I am fine.{EOS}\n###Human: Bread?\n###Assistant:\nBake it.{EOS}"
    )


def test_raw_text(tokenizer: Any) -> None:
    tokens, _ = ConversationTemplate(tokenizer, "raw").encode(turns("Once upon", " a time.", " Then", " no more."))
    assert tokenizer.decode(tokens) == f"Once upon a time.{EOS} Then no more.{EOS}"


def test_auto_takes_the_chat_template_where_there_is_one(tiny_model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert ConversationTemplate(tokenizer).template == "chat"
    tokenizer.chat_template = None
    assert ConversationTemplate(tokenizer).template == "human_assistant"
    with pytest.raises(UserError, match="--template chat: this tokenizer has no chat template"):
        ConversationTemplate(tokenizer, "chat")


# ---------------------------------------------------------------- what is trained


def test_every_response_with_its_eos_is_trained_and_nothing_else(tokenizer: Any) -> None:
    """Against pieces of ChatML put together by hand."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    tokens, trained = ConversationTemplate(tokenizer, "chat").encode(turns("Hello", "I am fine.", "Bread?", "Bake it."))
    pieces = [
        ("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", False),
        ("I am fine.<|im_end|>", True),
        ("\n<|im_start|>user\nBread?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Bake it.<|im_end|>", True),
    ]
    assert tokens == [token for text, _ in pieces for token in ids(text)]
    assert trained == [is_response for text, is_response in pieces for _ in ids(text)]
    assert [run[-1] for run in runs(tokens, trained)] == [tokenizer.eos_token_id] * 2


@pytest.mark.parametrize("name", ["chat", "human_assistant", "raw"])
def test_last_only(tokenizer: Any, name: str) -> None:
    template = ConversationTemplate(tokenizer, name)  # type: ignore[arg-type]
    messages = turns("Hello", "I am fine.", "Bread?", "Bake it.")
    all_tokens, _ = template.encode(messages)
    tokens, trained = template.encode_segments(template.segments(messages, last_only=True))
    assert tokenizer.decode(tokens) == tokenizer.decode(all_tokens)
    (run,) = runs(tokens, trained)
    assert tokenizer.decode(run).strip() == f"Bake it.{EOS}"
    assert trained[-1]


def test_template_that_rewrites_history_trains_the_last_answer_alone(tiny_model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = FORGETFUL
    template = ConversationTemplate(tokenizer)
    messages = turns("Hello", "<think>hm</think>Fine.", "Bread?", "<think>oh</think>Bake it.")
    tokens, trained = template.encode(messages)
    (run,) = runs(tokens, trained)
    assert tokenizer.decode(run) == f"<think>oh</think>Bake it.{EOS}"
    assert "hm" not in tokenizer.decode(tokens)  # what follows was written without it in sight
    prompt = template.encode_prompt(messages[:-1])
    assert tokens[: len(prompt)] == prompt
    # Without thoughts to drop the same template rewrites nothing, and both answers are trained.
    assert len(runs(*template.encode(turns("Hello", "Fine.", "Bread?", "Bake it.")))) == 2


def begun_by_the_assistant(*contents: str, system: str | None = None) -> Messages:
    lead = [] if system is None else [{"role": "system", "content": system}]
    return [*lead, {"role": "assistant", "content": "Welcome."}, *turns(*contents)]


@pytest.mark.parametrize("system", [None, "Be kind."])
@pytest.mark.parametrize("name", ["chat", "human_assistant", "raw"])
def test_assistant_turn_before_the_first_user_turn_is_context(tokenizer: Any, name: str, system: str | None) -> None:
    template = ConversationTemplate(tokenizer, name)  # type: ignore[arg-type]
    messages = begun_by_the_assistant("Hello", "I am fine.", "Bread?", "Bake it.", system=system)
    tokens, trained = template.encode(messages)
    assert [tokenizer.decode(run).strip() for run in runs(tokens, trained)] == [f"I am fine.{EOS}", f"Bake it.{EOS}"]
    assert "Welcome." in tokenizer.decode(tokens)
    for end in (-1, -3):
        prompt = template.encode_prompt(messages[:end])
        assert tokens[: len(prompt)] == prompt
    last, _ = template.encode_segments(template.segments(messages, last_only=True))
    assert tokenizer.decode(last) == tokenizer.decode(tokens)


@pytest.mark.parametrize("system", [None, "Be kind."])
@pytest.mark.parametrize("chat_template", [STRICT, ALTERNATING])
def test_leading_assistant_turn_is_dropped_where_the_chat_template_refuses_it(
    tiny_model: str, chat_template: str, system: str | None
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = chat_template
    template = ConversationTemplate(tokenizer)
    said = ("Hello", "I am fine.", "Bread?", "Bake it.")
    messages = begun_by_the_assistant(*said, system=system)
    without = [message for message in messages if message["content"] != "Welcome."]
    assert template.encode(messages) == template.encode(without)
    assert template.render_prompt(messages[:-1]) == template.render_prompt(without[:-1])
    assert len(runs(*template.encode(messages))) == 2


def test_what_the_chat_template_refuses_otherwise_stays_an_error(tiny_model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = ALTERNATING
    message = "the chat template refuses a conversation of user, user: roles must alternate"
    with pytest.raises(UserError, match=f"^{message}$"):
        ConversationTemplate(tokenizer).render_prompt([*begun_by_the_assistant("Hello"), *turns("Bread?")])


def test_conversation_of_no_messages_is_a_user_error(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="the chat template refuses a conversation of no messages: Cannot apply"):
        ConversationTemplate(tokenizer, "chat").render_prompt([])


def test_sampled_tokens_are_used_as_they_are(tokenizer: Any) -> None:
    """Split as no tokenizer would split them; cut off without EOS."""
    template = ConversationTemplate(tokenizer)
    sampled = [tokenizer.convert_tokens_to_ids(letter) for letter in "Bread"]
    assert sampled != template.tokenize("Bread")
    tokens, trained = template.encode(turns("Hello", "Bread"), response_tokens=sampled)
    assert tokens == template.encode_prompt(turns("Hello")) + sampled
    assert runs(tokens, trained) == [sampled]


@pytest.mark.parametrize("name", ["chat", "human_assistant", "raw"])
@settings(max_examples=40, deadline=None)
@given(contents=st.lists(st.text(max_size=30), min_size=1, max_size=3))
def test_prompt_is_a_prefix_of_the_row_and_decoding_gives_the_responses(
    tokenizer: Any, name: str, contents: list[str]
) -> None:
    """Whatever is said, and at every turn: what sampling sees is what training sees."""
    template = ConversationTemplate(tokenizer, name)  # type: ignore[arg-type]
    messages = turns(*[side for content in contents for side in ("q " + content, content)])
    tokens, trained = template.encode(messages)
    last, _ = template.encode_segments(template.segments(messages, last_only=True))
    prompt = template.encode_prompt(messages[:-1])
    assert last[: len(prompt)] == prompt
    assert tokens[: len(template.encode_prompt(messages[:1]))] == template.encode_prompt(messages[:1])
    found = [tokenizer.decode(run) for run in runs(tokens, trained)]
    assert [text.removesuffix(EOS).removeprefix(" ") for text in found] == [c.removeprefix(" ") for c in contents]
    assert all(text.endswith(EOS) for text in found)


# ---------------------------------------------------------------- how templates write an answer

# <|im_end|> closes a turn, and EOS is another token. Gemma: trimmed answers, a model's name for the assistant.
GEMMA = "{% for m in messages %}<|im_start|>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
GEMMA += "{{ m['content'] | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
# Mistral: no generation prompt, a space before the answer, EOS behind it.
MISTRAL = "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}"
MISTRAL += " {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
# Llama 2: a space before EOS as well. OpenChat and Vicuna: a generation prompt, without the space behind its colon.
LLAMA_2 = MISTRAL.replace("{{ eos_token }}", " {{ eos_token }}")
OPENCHAT = "{% for m in messages %}{{ m['role'].title() }}: {{ m['content'] }}<|im_end|>{% endfor %}"
OPENCHAT += "{% if add_generation_prompt %}Assistant:{% endif %}"
# ChatML as many copied it: without the generation prompt.
HEADLESS = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
# DeepSeek-R1 and Qwen3's thinking models: the prompt opens the thoughts.
THINKING = HEADLESS + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"


@pytest.mark.parametrize(
    ("chat_template", "answers"),
    [
        (GEMMA, ["I am fine.<|im_end|>", "Bake it.<|im_end|>"]),
        (MISTRAL, [" I am fine.<|endoftext|>", " Bake it.<|endoftext|>"]),
        (LLAMA_2, [" I am fine. <|endoftext|>", " Bake it. <|endoftext|>"]),
        (OPENCHAT, [" I am fine.<|im_end|>", " Bake it.<|im_end|>"]),
        (HEADLESS, ["I am fine.<|im_end|>", "Bake it.<|im_end|>"]),
        (WITH_BOS, ["I am fine.<|endoftext|>", "Bake it.<|endoftext|>"]),
    ],
    ids=["gemma", "mistral", "llama_2", "openchat", "headless", "with_bos"],
)
def test_every_answer_is_trained_as_the_template_writes_it(
    tiny_model: str, chat_template: str, answers: list[str]
) -> None:
    """The whole row is what ``transformers`` renders, up to the end of the last answer."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model, eos_token="<|endoftext|>", bos_token="<|im_start|>")
    tokenizer.chat_template = chat_template
    template = ConversationTemplate(tokenizer)
    messages = turns("Hello", "I am fine.", "Bread?", "Bake it.")
    tokens, trained = template.encode(messages)
    assert [tokenizer.decode(run) for run in runs(tokens, trained)] == answers
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert whole.removesuffix("\n") == tokenizer.decode(tokens)
    prompt = template.encode_prompt(messages[:-1])
    assert tokens[: len(prompt)] == prompt
    assert not list(template.remarks(messages, template.segments(messages)))


def test_answers_are_trimmed_where_the_template_trims_them(tiny_model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model, eos_token="<|endoftext|>")
    messages = turns("Hello", " I am fine.\n", "Bread?", "\nBake it. ")
    tokenizer.chat_template = GEMMA
    found = [tokenizer.decode(run) for run in runs(*ConversationTemplate(tokenizer).encode(messages))]
    assert found == ["I am fine.<|im_end|>", "Bake it.<|im_end|>"]
    tokenizer.chat_template = HEADLESS
    found = [tokenizer.decode(run) for run in runs(*ConversationTemplate(tokenizer).encode(messages))]
    assert found == [" I am fine.\n<|im_end|>", "\nBake it. <|im_end|>"]


@pytest.mark.parametrize("answer", ["<think>\nhm\n</think>\nFine.", "\n<think>\nhm\n</think>\nFine."])
def test_thoughts_are_opened_once(tiny_model: str, answer: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = THINKING
    template = ConversationTemplate(tokenizer)
    messages = turns("Hello", answer)
    tokens, trained = template.encode(messages)
    assert tokenizer.decode(tokens).endswith(f"assistant\n<think>\nhm\n</think>\nFine.{EOS}")
    assert [tokenizer.decode(run) for run in runs(tokens, trained)] == [f"hm\n</think>\nFine.{EOS}"]
    assert not list(template.remarks(messages, template.segments(messages)))


def test_remarks(tiny_model: str) -> None:
    """What a template does to a conversation that its author may not expect is said."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def remarks(chat_template: str, messages: Messages) -> list[str]:
        tokenizer.chat_template = chat_template
        template = ConversationTemplate(tokenizer)
        return list(template.remarks(messages, template.segments(messages)))

    system = [{"role": "system", "content": "Be kind."}]
    assert remarks(THINKING, turns("Hello", "Fine.")) == [
        "answer without </think>, where the chat template's prompt ends with <think>"
    ]
    assert remarks(FORGETFUL, turns("Hello", "<think>hm</think>Fine.", "Bread?", "Bake it.")) == [
        "earlier answers not trained on: the chat template rewrites them"
    ]
    assert remarks(MISTRAL, [*system, *turns("Hello", "Fine.")]) == []
    deaf = GEMMA.replace("<|im_start|>{{", "{% if m['role'] == 'system' %}{% continue %}{% endif %}<|im_start|>{{")
    assert remarks(deaf, [*system, *turns("Hello", "Fine.")]) == ["system message passed over by the chat template"]
    greeted = [{"role": "assistant", "content": "Welcome."}, *turns("Hello", "Fine.")]
    left_out = "assistant's turn before the first user's left out: the chat template refuses it"
    strict = "{% if messages[0]['role'] == 'assistant' %}{{ raise_exception('user first') }}{% endif %}" + MISTRAL
    assert remarks(strict, greeted) == [left_out]
    assert remarks(MISTRAL, greeted) == []
    assert remarks(THINKING, [greeted[0], *turns("Hello", "</think>Fine.")]) == []
    assert remarks(deaf, turns("Hello", "Fine.")) == []


# ---------------------------------------------------------------- special tokens


@pytest.mark.parametrize("name", ["human_assistant", "raw"])
def test_bos_comes_once_where_the_tokenizer_adds_it(bos_tokenizer: Any, tokenizer: Any, name: str) -> None:
    template = ConversationTemplate(bos_tokenizer, name)  # type: ignore[arg-type]
    messages = turns("Hello", "I am fine.", "Bread?", "Bake it.")
    bos = bos_tokenizer.bos_token_id
    tokens, trained = template.encode(messages)
    assert (tokens[0], tokens.count(bos), trained[0]) == (bos, 1, False)
    prompt = template.encode_prompt(messages[:1])
    assert prompt == bos_tokenizer(template.render_prompt(messages[:1])).input_ids
    assert tokens[: len(prompt)] == prompt
    assert template.encode(turns("Hello", "x"), response_tokens=[5])[0] == [*prompt, 5]
    plain = ConversationTemplate(tokenizer, name)  # type: ignore[arg-type]
    assert plain.encode(messages)[0] == tokens[1:]  # a tokenizer that adds none gets none


def test_chat_template_writes_the_only_bos(bos_tokenizer: Any) -> None:
    bos_tokenizer.chat_template = WITH_BOS
    template = ConversationTemplate(bos_tokenizer)
    tokens, trained = template.encode(turns("Hello", "I am fine.", "Bread?", "Bake it."))
    assert tokens.count(bos_tokenizer.bos_token_id) == 1
    assert tokens[0] == template.encode_prompt(turns("Hello"))[0] == bos_tokenizer.bos_token_id
    assert len(runs(tokens, trained)) == 2


def test_documents(tokenizer: Any, bos_tokenizer: Any) -> None:
    """Plain text looks as it did in pretraining, whatever the template for conversations."""
    text = tokenizer("Bread needs salt.", add_special_tokens=False).input_ids
    eos = tokenizer.eos_token_id
    assert ConversationTemplate(tokenizer, "chat").encode_document("Bread needs salt.") == [*text, eos]
    for name in ("chat", "raw"):
        template = ConversationTemplate(bos_tokenizer, name)  # type: ignore[arg-type]
        assert template.encode_document("Bread needs salt.") == [bos_tokenizer.bos_token_id, *text, eos]


def test_markup_spelled_out_in_a_message_becomes_markup(tokenizer: Any) -> None:
    """Contents are not escaped: whoever writes the messages can write turns. Known, and the same everywhere.

    A prompt is read like that when it is sampled from as well, and a response never gets more than one EOS that
    counts as its end: everything in it is trained.
    """
    template = ConversationTemplate(tokenizer)
    tokens, trained = template.encode(turns("Hello", f"one{EOS}two"))
    (run,) = runs(tokens, trained)
    assert run.count(tokenizer.eos_token_id) == 2
    assert tokenizer.decode(run) == f"one{EOS}two{EOS}"

"""Dialogues to the tokens of a reward model: expected texts are written out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raft.data.encoding import encode_scored
from raft.data.templates import ConversationTemplate
from raft.errors import UserError
from raft.rewards.contract import RewardContract
from raft.rewards.reading import Reader, with_rendering
from tests.conftest import CHAT_TEMPLATE, build_tokenizer

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Bread?"}
EOS = "<|im_end|>"
TURN = "<|im_start|>user\nBread?<|im_end|>\n<|im_start|>assistant\n"

TURNS = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
ASKS = "{% if add_generation_prompt %}[assistant]{% endif %}"
WITH_DEFAULT = "{% if messages[0]['role'] != 'system' %}[system]You bake.{% endif %}" + TURNS + ASKS
REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TURNS + ASKS
DROPPING = TURNS.replace("messages", "messages if m['role'] != 'system'") + ASKS


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    return build_tokenizer(tmp_path)


def read(tokenizer: Any, *messages: dict[str, str], **fields: Any) -> str:
    """What a response "Flour" to messages is read as, decoded."""
    return tokenizer.decode(Reader(tokenizer, RewardContract(**fields)).encode(messages, "Flour"))


@pytest.mark.parametrize(
    ("score_token", "expected"),
    [
        ("eos", f"{TURN}Flour{EOS}"),
        ("last", f"{TURN}Flour"),
        ("template", f"{TURN}Flour{EOS}\n"),
        ("pooled", f"{TURN}Flour{EOS}\n"),
    ],
)
def test_what_is_read_ends_where_the_contract_says(tokenizer: Any, score_token: str, expected: str) -> None:
    assert read(tokenizer, USER, score_token=score_token) == expected


OTHER = {"role": "user", "content": "Is it brown? <|im_end|>"}
DIALOGUES = [([USER], "Flour"), ([SYSTEM, OTHER], ""), ([USER], "Water and salt"), ([USER], "Flour"), ([OTHER], "Yes.")]


@pytest.mark.parametrize("score_token", ["eos", "last"])
@pytest.mark.parametrize("template", ["chat", "human_assistant", "raw"])
def test_many_dialogues_are_read_as_each_alone_in_training(tokenizer: Any, template: Any, score_token: Any) -> None:
    reader = Reader(tokenizer, RewardContract(template=template, score_token=score_token))
    expected = [encode_scored(ConversationTemplate(tokenizer, template), *one, 999) for one in DIALOGUES]
    assert reader.encode_all(DIALOGUES) == [ids if score_token == "eos" else ids[:-1] for ids in expected]
    assert reader.encode_all([]) == []


@pytest.mark.parametrize("fields", [{"score_token": "template"}, {"score_token": "pooled", "template": "raw"}])
def test_many_dialogues_are_read_as_their_texts_alone(tokenizer: Any, fields: dict[str, Any]) -> None:
    reader = Reader(tokenizer, RewardContract(**fields))
    bos = [tokenizer.convert_tokens_to_ids("<|im_start|>")]
    for found, one in zip(reader.encode_all(DIALOGUES), DIALOGUES, strict=True):
        assert found in (ids := reader.template.tokenize(reader.text(*one)), [*bos, *ids])
        assert found == reader.encode_whole(*one)


def test_a_prompt_is_read_once_for_all_its_responses(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, rendered = Reader(tokenizer, RewardContract()), []
    render = reader.template.render_prompt
    monkeypatch.setattr(
        reader.template, "render_prompt", lambda messages: rendered.append(messages) or render(messages)
    )
    reader.encode_all(DIALOGUES)
    assert rendered == [[USER], [SYSTEM, OTHER], [OTHER]]


def test_eos_is_read_also_where_the_chat_template_ends_turns_with_another_token(tokenizer: Any) -> None:
    """As with Gemma: a policy is trained to end with the template's token, a reward model is read at EOS."""
    tokenizer.eos_token = "<|endoftext|>"
    assert read(tokenizer, USER) == f"{TURN}Flour<|endoftext|>"
    assert read(tokenizer, USER, score_token="last") == f"{TURN}Flour"
    assert read(tokenizer, USER, score_token="template") == f"{TURN}Flour{EOS}\n"
    assert Reader(tokenizer, RewardContract()).text([USER], "Flour") == f"{TURN}Flour<|endoftext|>"


def test_plain_markup(tokenizer: Any) -> None:
    options = {"template": "human_assistant"}
    assert read(tokenizer, USER, **options) == f"###Human: Bread?\n###Assistant: Flour{EOS}"
    assert read(tokenizer, USER, **options, score_token="last") == "###Human: Bread?\n###Assistant: Flour"
    assert read(tokenizer, USER, template="raw", score_token="last") == "Bread?Flour"


def test_the_text_is_what_the_tokens_say(tokenizer: Any) -> None:
    for score_token in ("eos", "last", "template", "pooled"):
        for template in ("chat", "human_assistant", "raw"):
            if score_token == "template" and template != "chat":
                continue
            reader = Reader(tokenizer, RewardContract(template=template, score_token=score_token))
            assert tokenizer.decode(reader.encode_whole([USER], "Flour")) == reader.text([USER], "Flour")


def test_the_contract_brings_its_own_chat_template(tokenizer: Any) -> None:
    assert read(tokenizer, USER, chat_template=TURNS + ASKS) == f"[user]Bread?[assistant]Flour{EOS}"


@pytest.mark.parametrize(
    ("chat_template", "system_message", "default", "given", "not_given"),
    [
        (TURNS + ASKS, "rendered", "", "[system]Be brief.[user]Bread?", "[user]Bread?"),
        (WITH_DEFAULT, "rendered", "You bake.", "[system]Be brief.[user]Bread?", "[system]You bake.[user]Bread?"),
        (REFUSING, "merged", "", "[user]Be brief.\n\nBread?", "[user]Bread?"),
        (DROPPING, "dropped", "", "[user]Bread?", "[user]Bread?"),
    ],
)
def test_system_messages(
    tokenizer: Any, chat_template: str, system_message: str, default: str, given: str, not_given: str
) -> None:
    tokenizer.chat_template = chat_template
    contract = with_rendering(RewardContract(score_token="last"), tokenizer)
    assert (contract.template, contract.chat_template) == ("chat", chat_template)
    assert contract.system_message == system_message
    assert contract.default_system_prompt == default
    assert contract.rendered_example == not_given.replace("Bread?", "Hello") + "[assistant]Hi"
    assert read(tokenizer, SYSTEM, USER, score_token="last") == f"{given}[assistant]Flour"
    assert read(tokenizer, USER, score_token="last") == f"{not_given}[assistant]Flour"


def test_the_template_of_the_tests_has_no_default_system_prompt(tokenizer: Any) -> None:
    contract = with_rendering(RewardContract(), tokenizer)
    assert contract.chat_template == CHAT_TEMPLATE
    assert (contract.system_message, contract.default_system_prompt) == ("rendered", "")
    assert contract.rendered_example == f"<|im_start|>user\nHello{EOS}\n<|im_start|>assistant\nHi{EOS}"


def test_markup_is_recorded_without_a_chat_template(tokenizer: Any) -> None:
    contract = with_rendering(RewardContract(template="human_assistant"), tokenizer)
    assert (contract.template, contract.chat_template) == ("human_assistant", None)
    assert contract.rendered_example == f"###Human: Hello\n###Assistant: Hi{EOS}"


@pytest.mark.parametrize("score_token", ["eos", "last", "template"])
def test_cut_on_either_side(tokenizer: Any, score_token: str) -> None:
    def tokens(**fields: Any) -> list[int]:
        return Reader(tokenizer, RewardContract(score_token=score_token, **fields)).encode([USER], "Flour, water, salt")

    whole = tokens()
    assert tokens(max_length=len(whole)) == whole
    assert tokens(max_length=12) == whole[-12:]
    assert tokens(max_length=len(whole) - 1, truncation_side="right") == whole[:-1]


def test_a_prompt_that_leaves_no_room_for_the_response_is_refused(tokenizer: Any) -> None:
    num_prompt = len(tokenizer(TURN, add_special_tokens=False).input_ids)
    message = rf"a prompt has {num_prompt} tokens, .* reads the first {num_prompt} .* response to 'Bread\?'"
    with pytest.raises(UserError, match=message):
        read(tokenizer, USER, max_length=num_prompt, truncation_side="right")
    assert read(tokenizer, USER, max_length=num_prompt + 1, truncation_side="right").startswith(TURN + "F")
    assert read(tokenizer, USER, max_length=num_prompt).endswith(f"Flour{EOS}")  # the prompt's start is lost instead


def test_the_end_of_a_template_needs_one(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="score_token: template needs a chat template"):
        Reader(tokenizer, RewardContract(template="raw", score_token="template"))

"""One golden row for every form that is understood, the rows that are refused, and any JSON whatever."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.data.dialogues import Message
from raft.data.formats import FORMS, parse_row
from raft.data.rows import Row
from raft.errors import UserError


def turns(*contents: str, system: str | None = None) -> tuple[Message, ...]:
    """Messages that alternate, the user's first."""
    lead = [] if system is None else [{"role": "system", "content": system}]
    return tuple(lead + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)])


def roles(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in pairs]


def sharegpt(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": content} for role, content in pairs]


def parse_one(raw: object) -> Row:
    (row,) = parse_row(raw, "f.jsonl:1")
    return row


CONVERSATIONS: dict[str, tuple[dict[str, Any], tuple[Message, ...]]] = {
    "alpaca": ({"instruction": "Add.", "input": "1 2", "output": "3"}, turns("Add.\n1 2", "3")),
    "alpaca, empty input": ({"instruction": "Hi", "input": "", "output": " Yo\n"}, turns("Hi", " Yo\n")),
    "alpaca, null input": ({"instruction": "Hi", "input": None, "output": "Yo"}, turns("Hi", "Yo")),
    "alpaca, all columns": (
        {"instruction": "c", "input": "", "output": "d", "system": "S", "history": [["a", "b"]]},
        turns("a", "b", "c", "d", system="S"),
    ),
    "dolly": ({"instruction": "Who?", "context": "Ann.", "response": "Ann"}, turns("Who?\nAnn.", "Ann")),
    "dolly, empty input": (
        {"instruction": "Who?", "input": " ", "context": "Ann.", "response": "Ann"},
        turns("Who?\nAnn.", "Ann"),
    ),
    "alpaca, input before context": (
        {"instruction": "Who?", "input": "Bob.", "context": ["Ann."], "response": "Bob"},
        turns("Who?\nBob.", "Bob"),
    ),
    "alpaca, input and context are one": (
        {"instruction": "Who?", "input": "Bob.", "context": "Bob.\n", "response": "Bob"},
        turns("Who?\nBob.", "Bob"),
    ),
    "completion repeats the prompt": (
        {"prompt": "a ", "completion": roles(("user", "a"), ("assistant", "b"))},
        turns("a", "b"),
    ),
    "completion repeats the prompt, system message in the prompt": (
        {"prompt": roles(("system", "S"), ("user", "a")), "completion": roles(("user", "a"), ("assistant", "b"))},
        turns("a", "b", system="S"),
    ),
    "completion repeats the prompt, system message in it": (
        {"prompt": "a", "completion": roles(("system", "S"), ("user", "a"), ("assistant", "b"))},
        turns("a", "b", system="S"),
    ),
    "completion brings the prompt, marked-up": (
        {"prompt": "\n\nAssistant:", "completion": roles(("user", "a"), ("assistant", "b"))},
        turns("a", "b"),
    ),
    "completion brings the prompt": (
        {"prompt": "", "completion": roles(("user", "a"), ("assistant", "b"))},
        turns("a", "b"),
    ),
    "an answer that is a dialogue": (
        {"instruction": "Write a dialogue.", "output": "Human: Hello\n\nAssistant: Hi there."},
        turns("Write a dialogue.", "Human: Hello\n\nAssistant: Hi there."),
    ),
    "an answer that is a dialogue, hash": (
        {"prompt": "Say hi", "response": "###Human: Hello ###Assistant: Hi there."},
        turns("Say hi", "###Human: Hello ###Assistant: Hi there."),
    ),
    "an answer that is a dialogue, marked-up prompt": (
        {"prompt": "\n\nHuman: a\n\nAssistant:", "completion": " ###Human: x ###Assistant: y"},
        turns("a", "###Human: x ###Assistant: y"),
    ),
    "an answer that is a turn, plain prompt": (
        {"question": "Which marker?", "answer": "###Assistant: it is"},
        turns("Which marker?", "###Assistant: it is"),
    ),
    "text2text": ({"input": "q", "output": "a"}, turns("q", "a")),
    "sharegpt": (
        {"conversations": sharegpt(("human", "a"), ("gpt", "b"), ("user", "c"), ("bing", "d"))},
        turns("a", "b", "c", "d"),
    ),
    "sharegpt, system column": (
        {"system": "S", "conversations": sharegpt(("human", "a"), ("gpt", "b"))},
        turns("a", "b", system="S"),
    ),
    "sharegpt, system twice": (
        {"system": "S", "conversations": sharegpt(("system", "S"), ("human", "a"), ("gpt", "b"))},
        turns("a", "b", system="S"),
    ),
    "openai": ({"messages": roles(("user", "a"), ("assistant", "b"))}, turns("a", "b")),
    "openai, developer": (
        {"messages": roles(("developer", "S"), ("User", "a"), ("ASSISTANT", "b"))},
        turns("a", "b", system="S"),
    ),
    "from and content": (
        {"messages": [{"from": "human", "content": "a"}, {"from": "gpt", "content": "b"}]},
        turns("a", "b"),
    ),
    "parquet's null fields": (
        {
            "messages": [
                {"role": "user", "content": "a", "tool_calls": None},
                {"role": "assistant", "content": "b"},
            ],
            "text": None,
            "prompt": None,
        },
        turns("a", "b"),
    ),
    "content in parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": "c"},
            ]
        },
        turns("ab", "c"),
    ),
    "messages beside their prompt": (
        {"prompt": "a", "messages": roles(("user", "a"), ("assistant", "b"))},
        turns("a", "b"),
    ),
    "prompt and completion": (
        {"prompt": "The sky is", "completion": " blue."},
        turns("The sky is", " blue."),
    ),
    "prompt and completion as messages": (
        {"prompt": roles(("user", "a")), "completion": roles(("assistant", "b"))},
        turns("a", "b"),
    ),
    "prompt and output": ({"prompt": "a", "output": "b"}, turns("a", "b")),
    "instruction and response": ({"instruction": "a", "response": "b"}, turns("a", "b")),
    "question and answer": ({"question": "a", "answer": "b"}, turns("a", "b")),
    "orca": ({"system_prompt": "S", "question": "a", "response": "b"}, turns("a", "b", system="S")),
    "hh text": (
        {"text": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"},
        turns("a", "b", "c", "d"),
    ),
    "hh text, stripped": ({"text": "Human: a\n\nAssistant: b"}, turns("a", "b")),
    "hash text": ({"text": "###Human: a###Assistant: b###"}, turns("a", "b###")),
    "hash text, spaced": ({"text": " ### Human: a\n### Assistant:\nb\n\nc \n"}, turns("a", "b\n\nc")),
    "hh prompt, reply behind its space": (
        {"prompt": "\n\nHuman: a\n\nAssistant:", "response": " b"},
        turns("a", "b"),
    ),
    "response repeats the prompt": (
        {"prompt": "\n\nHuman: a\n\nAssistant:", "response": "\n\nHuman: a\n\nAssistant: b"},
        turns("a", "b"),
    ),
    "response brings its marker": ({"prompt": "###Human: a", "response": "###Assistant: b"}, turns("a", "b")),
    "assistant begins": (
        {"conversations": sharegpt(("gpt", "Welcome."), ("human", "a"), ("gpt", "b"))},
        tuple(roles(("assistant", "Welcome."), ("user", "a"), ("assistant", "b"))),
    ),
    "tool and reasoning keys that say nothing": (
        {
            "messages": [
                {"role": "user", "content": "a", "tool_calls": [], "thinking": None},
                {
                    "role": "assistant",
                    "content": "b",
                    "tool_calls": "[]",
                    "function_call": {"name": None, "arguments": ""},
                    "reasoning_content": "\n",
                },
            ],
            "tools": "[]",
        },
        turns("a", "b"),
    ),
    "turns of one role in a row": (
        {"messages": roles(("user", "a"), ("user", "b"), ("assistant", "c"))},
        tuple(roles(("user", "a"), ("user", "b"), ("assistant", "c"))),
    ),
}

PROMPTS: dict[str, tuple[dict[str, Any], tuple[Message, ...]]] = {
    "prompt": ({"prompt": "a"}, turns("a")),
    "prompt as messages": ({"prompt": roles(("system", "S"), ("user", "a"))}, turns("a", system="S")),
    "hh prompt": ({"prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"}, turns("a", "b", "c")),
    "hash prompt": ({"prompt": "###Human: a ###Assistant:"}, turns("a")),
    "hash text": ({"text": "###Human: a ###Assistant: "}, turns("a")),
    "hh text without assistant": ({"text": "\n\nHuman: a"}, turns("a")),
    "ends with the user": (
        {"messages": roles(("user", "a"), ("assistant", "b"), ("user", "c"))},
        turns("a", "b", "c"),
    ),
    "ends with an empty turn": ({"messages": roles(("user", "a"), ("assistant", " "))}, turns("a")),
    "alpaca without output": ({"instruction": "a", "input": "b"}, turns("a\nb")),
    "alpaca, empty output": ({"instruction": "a", "input": "b", "output": ""}, turns("a\nb")),
    "question": ({"question": "a"}, turns("a")),
    "question and reference, prepared": ({"prompt": "Q: a", "question": "a", "answer": "b"}, turns("Q: a")),
}

HH = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
HH_TURNS = (("user", "a"), ("assistant", "b"), ("user", "c"))
PAIRS: dict[str, tuple[dict[str, Any], tuple[Message, ...]]] = {
    "prompt and strings": ({"prompt": "a", "chosen": "+", "rejected": "-"}, turns("a")),
    "prompt and messages": (
        {
            "prompt": roles(("user", "a")),
            "chosen": roles(("assistant", "+")),
            "rejected": roles(("assistant", "-")),
        },
        turns("a"),
    ),
    "prompt and whole dialogues": (
        {
            "prompt": "a",
            "chosen": roles(("system", "S"), ("user", "a"), ("assistant", "+")),
            "rejected": roles(("system", "S"), ("user", "a"), ("assistant", "-")),
            "messages": roles(("user", "a"), ("assistant", "+")),
        },
        turns("a", system="S"),
    ),
    "hh": ({"chosen": HH + " +", "rejected": HH + " -"}, turns("a", "b", "c")),
    "hh, explicit prompt": ({"prompt": HH, "chosen": " +", "rejected": " -"}, turns("a", "b", "c")),
    "hh, prompt repeated": ({"prompt": HH, "chosen": HH + " +", "rejected": HH + " -"}, turns("a", "b", "c")),
    "hh, prompt repeated in one": ({"prompt": HH, "chosen": HH + " +", "rejected": " -"}, turns("a", "b", "c")),
    "hh, prompt is its first turn": (
        {"prompt": "a ", "chosen": HH + " +", "rejected": HH + " -"},
        turns("a ", "b", "c"),
    ),
    "hh, prompt in messages repeated": (
        {"prompt": roles(("system", "S"), *HH_TURNS), "chosen": HH + " +", "rejected": HH + " -"},
        turns("a", "b", "c", system="S"),
    ),
    "hh, empty prompt": ({"prompt": "", "chosen": HH + " +", "rejected": HH + " -"}, turns("a", "b", "c")),
    "lmflow pair": (
        {"positive": "###Human: a###Assistant: +", "negative": "###Human: a###Assistant: -"},
        turns("a"),
    ),
    "implicit prompt, messages": (
        {
            "chosen": roles(("user", "a"), ("assistant", "+")),
            "rejected": roles(("user", "a"), ("assistant", "-")),
        },
        turns("a"),
    ),
    "sharegpt": (
        {
            "conversations": sharegpt(("system", "S"), ("human", "a")),
            "chosen": {"from": "gpt", "value": "+"},
            "rejected": {"from": "gpt", "value": "-"},
        },
        turns("a", system="S"),
    ),
    "sharegpt, strings": (
        {"conversations": sharegpt(("human", "a")), "chosen": "+", "rejected": "-"},
        turns("a"),
    ),
    "messages": ({"messages": roles(("user", "a")), "chosen": "+", "rejected": "-"}, turns("a")),
    "context of strings": (
        {"context": ["a", "b", "c"], "chosen": "+", "rejected": "-"},
        turns("a", "b", "c"),
    ),
    "context of messages": ({"context": roles(("user", "a")), "chosen": "+", "rejected": "-"}, turns("a")),
    "context, a string": ({"context": "a", "chosen": "+", "rejected": "-"}, turns("a")),
    "alpaca": ({"instruction": "a", "input": "b", "chosen": "+", "rejected": "-"}, turns("a\nb")),
    "alpaca, context": ({"instruction": "a", "context": "b", "chosen": "+", "rejected": "-"}, turns("a\nb")),
    "question, with a context of its own": (
        {"question": "a", "context": ["b"], "chosen": "+", "rejected": "-"},
        turns("a"),
    ),
    "orca": ({"system": "S", "question": "a", "chosen": "+", "rejected": "-"}, turns("a", system="S")),
    "input": ({"input": "a", "chosen": "+", "rejected": "-"}, turns("a")),
    "lmflow paired conversation": (
        {
            "chosen": {"system": "S", "messages": roles(("user", "a"), ("assistant", "+"))},
            "rejected": {"system": "S", "messages": roles(("user", "a"), ("assistant", "-"))},
        },
        turns("a", system="S"),
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations(name: str) -> None:
    raw, messages = CONVERSATIONS[name]
    row = parse_one(raw)
    assert (row.kind, row.messages) == ("conversation", messages)
    assert row.as_prompt().kind == "prompt"
    assert row.as_prompt().messages == messages[:-1]


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts(name: str) -> None:
    raw, messages = PROMPTS[name]
    row = parse_one(raw)
    assert (row.kind, row.messages) == ("prompt", messages)
    assert row.as_prompt() is row


@pytest.mark.parametrize("name", PAIRS)
def test_preference_pairs(name: str) -> None:
    raw, messages = PAIRS[name]
    row = parse_one(raw)
    assert (row.kind, row.messages, row.chosen, row.rejected) == ("preference", messages, "+", "-")
    prompt = row.as_prompt()
    assert (prompt.kind, prompt.messages, prompt.chosen) == ("prompt", messages, None)


def test_every_form_has_a_golden() -> None:
    raws = [raw for table in (CONVERSATIONS, PROMPTS, PAIRS) for raw, _ in table.values()]
    keys = [{key for key, value in raw.items() if value is not None} for raw in raws]
    assert [form for form in FORMS if not any(row.issuperset(form.columns) for row in keys)] == []


@pytest.mark.parametrize(
    "text",
    [
        "A plain document.",
        "He said ###Human: once.",
        "Human: a reply may begin so.",
        "a\n\nHuman: b\n\nAssistant: c",
        "### Heading\ntext",
        "###Human without a colon",
    ],
)
def test_documents_stay_text_unless_they_begin_with_a_marker(text: str) -> None:
    row = parse_one({"text": text, "url": "u"})
    assert (row.kind, row.text, row.messages, row.extra) == ("text", text, (), {"url": "u"})
    assert row.as_prompt() == Row("f.jsonl:1", messages=turns(text), extra={"url": "u"})


def test_candidates_that_are_dialogues_of_their_own_leave_the_prompt_as_it_is() -> None:
    chosen, rejected = "Human: Hello\n\nAssistant: Hi.", "Human: Hello\n\nAssistant: What?"
    for prompt in ("Write a dialogue.", roles(("user", "Write a dialogue."))):
        row = parse_one({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        assert (row.messages, row.chosen, row.rejected) == (turns("Write a dialogue."), chosen, rejected)


def test_sampled_response_is_never_read_as_turns() -> None:
    response = "###Human: a ###Assistant: b ###Human: c ###Assistant: d"
    row = parse_one({"prompt": roles(("user", "a")), "response": response, "response_tokens": [5, 6]})
    assert row.messages == turns("a", response)


def test_implicit_prompt_of_plain_strings_is_cut_at_a_word() -> None:
    row = parse_one({"chosen": "I like cats", "rejected": "I like cars"})
    assert (row.messages, row.chosen, row.rejected) == (turns("I like"), " cats", " cars")
    row = parse_one({"chosen": "The sky is", "rejected": "The sky is blue"})
    assert (row.messages, row.chosen, row.rejected) == (turns("The sky"), " is", " is blue")


def test_lmflow_objects_hold_many_rows_of_any_form() -> None:
    skipped: Counter[str] = Counter()
    instances = [{"text": "a"}, {"text": ""}, {"text": "###Human: b###Assistant:"}]
    first, second = parse_row({"type": "text_only", "instances": instances}, "f.json", skipped)
    assert (first.source, first.text) == ("f.json[0]", "a")
    assert (second.source, second.messages) == ("f.json[2]", turns("b"))
    assert skipped == {"empty text": 1}
    conversation = {"conversation_id": 7, "system": "S", "tools": [], "messages": roles(("user", "a"))}
    (row,) = parse_row({"type": "conversation", "instances": [conversation]}, "f.json")
    assert (row.messages, row.extra) == (turns("a", system="S"), {"conversation_id": 7})
    pair = PAIRS["lmflow paired conversation"][0]
    (row,) = parse_row({"type": "paired_conversation", "instances": [pair]}, "f.json")
    assert (row.kind, row.chosen) == ("preference", "+")


def test_own_samples_keep_the_sampled_tokens_and_their_columns() -> None:
    raw = {"prompt": roles(("user", "a")), "response": " b ", "response_tokens": [5, 6, 2], "prompt_id": 3}
    row = parse_one(raw)
    assert (row.messages, row.response_tokens) == (turns("a", " b "), (5, 6, 2))
    assert row.extra == {"prompt_id": 3}
    assert row.as_prompt().response_tokens is None
    # A policy may answer with nothing but EOS; that too is a response.
    empty = parse_one({"prompt": "a", "response": "", "response_tokens": [2]})
    assert (empty.kind, empty.messages) == ("conversation", turns("a", ""))


def test_other_columns_reach_reward_functions() -> None:
    row = parse_one({"question": "1+1?", "answer": "2", "category": "sums", "level": None})
    assert row.as_prompt().extra == {"answer": "2", "category": "sums"}
    assert parse_one({"prompt": "a", "chosen": "+", "rejected": "-", "id": 1}).extra == {"id": 1}


def test_a_context_that_is_no_text_beside_an_input_is_kept() -> None:
    row = parse_one({"instruction": "Who?", "input": "Bob.", "context": ["Ann."], "response": "Bob", "functions": []})
    assert row.extra == {"context": ["Ann."]}


def test_a_conversation_ends_with_its_last_answer() -> None:
    open_ended = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", " "), ("user", "d")]
    for raw in ({"messages": roles(*open_ended)}, {"text": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"}):
        answered = parse_one(raw).as_conversation()
        assert answered is not None
        assert (answered.kind, answered.messages) == ("conversation", turns("a", "b"))
    for raw in (
        {"prompt": roles(*open_ended)},  # whoever wrote that wants the last turn answered
        {"messages": roles(("assistant", "b"), ("user", "c"))},
        {"messages": roles(("user", ""), ("assistant", "b"), ("user", "c"))},
        {"messages": roles(("user", "a"), ("assistant", ""), ("user", "c"))},
    ):
        assert parse_one(raw).as_conversation() is None


def test_an_empty_answer_is_one_that_would_be_trained_on() -> None:
    def has(*said: tuple[str, str]) -> bool:
        return parse_one({"messages": roles(*said)}).has_empty_answer

    assert has(("user", "a"), ("assistant", " \n"), ("user", "c"), ("assistant", "d"))
    assert not has(("assistant", ""), ("user", "a"), ("assistant", "b"))
    assert not has(("user", ""), ("user", "a"), ("assistant", "b"))
    sampled = parse_one({"prompt": "a", "response": "", "response_tokens": [2]})
    assert not sampled.has_empty_answer


def test_margin() -> None:
    row = parse_one({"prompt": "a", "chosen": "+", "rejected": "-", "margin": 2})
    assert (row.margin, row.extra) == (2.0, {})


def test_prompt_of_a_row_with_two_last_assistant_turns_ends_with_the_user() -> None:
    row = parse_one({"messages": roles(("user", "a"), ("assistant", "b"), ("assistant", "c"))})
    assert row.as_prompt().messages == turns("a")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"text": " \n"}, "empty text"),
        ({"prompt": ""}, "empty prompt"),
        ({"prompt": " ", "chosen": "+", "rejected": "-"}, "empty prompt"),
        ({"prompt": "\n\nAssistant:"}, "no user turn"),
        ({"conversations": sharegpt(("gpt", "hello"))}, "no user turn"),
        ({"chosen": HH + " +", "rejected": HH}, "empty chosen or rejected reply"),
        ({"prompt": "a", "chosen": "", "rejected": "-"}, "empty chosen or rejected reply"),
        ({"chosen": HH + " +", "rejected": HH + " +"}, "identical chosen and rejected replies"),
        ({"chosen": "a +", "rejected": "a +"}, "identical chosen and rejected replies"),
        (
            {"chosen": HH + " +", "rejected": HH.replace("c", "x") + " -"},
            "chosen and rejected differ before the last turn",
        ),
        (
            {"chosen": HH + " +\n\nAssistant: +", "rejected": HH + " -"},
            "chosen and rejected differ before the last turn",
        ),
        (
            {"chosen": HH + " +\n\nHuman: 1", "rejected": HH + " +\n\nHuman: 2"},
            "chosen and rejected differ before the last turn",
        ),
        (
            {"chosen": "yes", "rejected": "no"},
            "chosen and rejected share no prompt that ends with a user turn",
        ),
        (
            {"chosen": HH + " x\n\nAssistant: +", "rejected": HH + " x\n\nAssistant: -"},
            "chosen and rejected share no prompt that ends with a user turn",
        ),
    ],
)
def test_rows_with_nothing_to_train_on_are_counted(raw: dict[str, Any], reason: str) -> None:
    skipped: Counter[str] = Counter()
    assert parse_row(raw, "f.jsonl:1", skipped) == []
    assert skipped == {reason: 1}


NO_TOOLS = "expected none (tool use is not supported)"
BAD_ROWS: list[tuple[object, str]] = [
    ([], "d.jsonl:3: found list, expected a JSON object"),
    (None, "d.jsonl:3: found null, expected a JSON object"),
    ({"messages": "hi"}, 'd.jsonl:3: field "messages": found str, expected a list of messages'),
    ({"messages": []}, 'd.jsonl:3: field "messages": found an empty list, expected at least one message'),
    (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": 5}]},
        'd.jsonl:3: field "messages[1].content": found int, expected a string',
    ),
    (
        {"messages": [{"role": "user", "content": None}]},
        'd.jsonl:3: field "messages[0].content": found null, expected a string',
    ),
    (
        {"messages": ["a"]},
        'd.jsonl:3: field "messages[0]": found str, expected an object with "role" and "content"',
    ),
    (
        {"messages": [{"role": "user", "text": "a"}]},
        'd.jsonl:3: field "messages[0].content": found no such key among "role", "text", '
        'expected the keys "role" and "content"',
    ),
    (
        {"conversations": sharegpt(("function_call", "f()"))},
        'd.jsonl:3: field "conversations[0].from": found "function_call", expected system, user or assistant '
        "(tool use is not supported)",
    ),
    (
        {"messages": roles(("asistant", "a"))},
        'd.jsonl:3: field "messages[0].role": found "asistant", '
        "expected one of system, developer, user, human, "
        'prompter, assistant, gpt, chatgpt, bing, bard, claude, model, bot (did you mean "assistant"?)',
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}]},
        'd.jsonl:3: field "messages[0].content[0].type": found "image_url", expected "text" '
        "(images and sound are not supported)",
    ),
    (
        {"messages": [{"role": "assistant", "content": "a", "weight": 0}]},
        'd.jsonl:3: field "messages[0].weight": found 0, expected 1 (weighted turns are not supported)',
    ),
    (
        {"messages": roles(("user", "a")), "tools": [{"name": "f"}]},
        'd.jsonl:3: field "tools": found tool descriptions, expected none (tool use is not supported)',
    ),
    *(
        ({**columns, "tools": [{"name": "f"}]}, f"{where}: found tool descriptions, {NO_TOOLS}")
        for where, columns in (
            ('d.jsonl:3: field "tools"', {"prompt": "a", "completion": "b"}),
            ('d.jsonl:3: field "tools"', {"instruction": "a", "output": "b"}),
            ('d.jsonl:3: field "tools"', {"prompt": "a"}),
            ('d.jsonl:3: field "tools"', {"prompt": "a", "chosen": "b", "rejected": "c"}),
            ('d.jsonl:3: field "tools"', {"chosen": "a b", "rejected": "a c"}),
            ('d.jsonl:3: field "tools"', {"text": "###Human: a ###Assistant: b"}),
        )
    ),
    (
        {"messages": roles(("user", "a"), ("assistant", "b")), "functions": [{"name": "f"}]},
        f'd.jsonl:3: field "functions": found tool descriptions, {NO_TOOLS}',
    ),
    (
        {"instruction": "a", "input": "b", "context": "c", "output": "d"},
        'd.jsonl:3: field "context": found a text beside that of "input", expected one of the two (write both into '
        "the input)",
    ),
    *(
        (
            {"prompt": prompt, "completion": completion},
            f'd.jsonl:3: field "completion": found a conversation that begins with another {role} turn, expected the '
            "assistant's turn, or the prompt once more and then the assistant's turn",
        )
        for prompt, completion, role in (
            ("a", roles(("user", "x"), ("assistant", "b")), "user"),
            (roles(("system", "S"), ("user", "a")), roles(("system", "T"), ("user", "a")), "system"),
            (roles(("user", "a"), ("assistant", "b"), ("user", "c")), roles(("user", "a")), "user"),
        )
    ),
    (
        {"chosen": {"messages": roles(("user", "a"), ("assistant", "b")), "tools": "[{}]"}, "rejected": "c"},
        f'd.jsonl:3: field "chosen.tools": found tool descriptions, {NO_TOOLS}',
    ),
    (
        {"messages": [*roles(("user", "a")), {"role": "assistant", "content": "b", "tool_calls": [{"id": "1"}]}]},
        f'd.jsonl:3: field "messages[1].tool_calls": found tool calls, {NO_TOOLS}',
    ),
    (
        {"messages": [*roles(("user", "a")), {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
        f'd.jsonl:3: field "messages[1].tool_calls": found tool calls, {NO_TOOLS}',
    ),
    (
        {"prompt": "a", "completion": [{"role": "assistant", "content": "b", "function_call": {"name": "f"}}]},
        f'd.jsonl:3: field "completion[0].function_call": found tool calls, {NO_TOOLS}',
    ),
    *(
        (
            {"messages": [*roles(("user", "a")), {"role": "assistant", "content": "b", key: "Hm."}]},
            f'd.jsonl:3: field "messages[1].{key}": found "Hm.", expected none (write it into the content)',
        )
        for key in ("reasoning_content", "reasoning", "thinking")
    ),
    (
        {"messages": roles(("system", "S"), ("user", "a")), "system": "T"},
        'd.jsonl:3: field "system": found a second system text, expected the one with which the messages '
        "begin, or none",
    ),
    (
        {"messages": roles(("user", "a"), ("system", "S"))},
        "d.jsonl:3: found a system turn at the end of a conversation, expected it before",
    ),
    (
        {"prompt": "a", "chosen": "b"},
        'd.jsonl:3: field "rejected": found nothing, expected the other reply of the pair, beside "chosen"',
    ),
    (
        {"prompt": "a", "chosen": None, "rejected": "b"},
        'd.jsonl:3: field "chosen": found null, expected the other reply of the pair, beside "rejected"',
    ),
    (
        {"prompt": "a", "chosen": 1, "rejected": "b"},
        'd.jsonl:3: field "chosen": found int, expected a string, a message or a list of messages',
    ),
    (
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": "big"},
        'd.jsonl:3: field "margin": found str, expected a number',
    ),
    (
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 10**400},
        'd.jsonl:3: field "margin": found inf, expected a finite number',
    ),
    (
        {"prompt": "a", "response": "b", "response_tokens": [1, True]},
        'd.jsonl:3: field "response_tokens[1]": found True, expected a token id (an integer from 0)',
    ),
    ({"text": ["a"]}, 'd.jsonl:3: field "text": found list, expected a string'),
    (
        {"text": "a\ud83d"},
        'd.jsonl:3: field "text": found half a surrogate pair at character 2, expected valid Unicode',
    ),
    (
        {"instruction": "a", "history": [["b"]], "output": "c"},
        'd.jsonl:3: field "history[0]": found list, expected a [question, answer] pair',
    ),
    (
        {"type": "text_olny", "instances": []},
        'd.jsonl:3: field "type": found "text_olny", expected one of '
        "text_only, text2text, conversation, paired_conversation, paired_text_to_text",
    ),
    (
        {"type": "text_only", "instances": {}},
        'd.jsonl:3: field "instances": found dict, expected a list of objects',
    ),
    (
        {"type": "text_only", "instances": [{"text": "a"}, 5]},
        "d.jsonl:3[1]: found int, expected a JSON object",
    ),
]


@pytest.mark.parametrize(("raw", "message"), BAD_ROWS)
def test_bad_rows_name_place_field_found_and_allowed(raw: object, message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        parse_row(raw, "d.jsonl:3")


def test_unknown_row_names_its_keys_the_known_forms_and_the_nearest_key() -> None:
    with pytest.raises(UserError) as caught:
        parse_row({"promt": "a", "label": None}, "d.jsonl:3")
    message = str(caught.value)
    assert message.startswith('d.jsonl:3: found a row with the keys "promt", "label" (null) ')
    assert 'did you mean "prompt" for "promt"?' in message
    for form in ("chosen + rejected", "question|input + output", "type + instances", "positive + negative"):
        assert all(part in message for part in form.split(" + "))


def words() -> st.SearchStrategy[str]:
    markers = [
        "",
        " ",
        "a",
        "\n\nHuman: a",
        "\n\nHuman: a\n\nAssistant: b",
        "###Human: a###Assistant:",
        "\ud800",
    ]
    return st.sampled_from(markers) | st.text(max_size=8)


KEYS = [
    *sorted({name for form in FORMS for name in form.columns}),
    "system",
    "margin",
    "response_tokens",
    "tools",
    "functions",
    "tool_calls",
    "thinking",
    "history",
    "instances",
    "type",
    "weight",
    "role",
    "content",
    "from",
    "value",
    "other\n\ud800",
]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | words() | st.sampled_from(["user", "gpt"])
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "gpt", "tool"]), "content": words()}
    ),
    max_size=3,
)
JSON = st.recursive(
    LEAVES | MESSAGES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=500, deadline=None, database=None)
@given(JSON | st.dictionaries(st.sampled_from(KEYS), JSON, max_size=6))
def test_any_json_gives_rows_or_a_user_error(raw: object) -> None:
    try:
        rows = parse_row(raw, "f.jsonl:1")
    except UserError as error:
        message = str(error)
        message.encode()  # a terminal must be able to print it, on one line
        assert message.startswith("f.jsonl:1") and "\n" not in message  # noqa: PT018
        return
    for row in rows:
        last = row.messages[-1]["role"] if row.messages else None
        expected = {"text": None, "conversation": "assistant", "preference": "user", "prompt": "user"}
        assert last == expected[row.kind]
        assert row.as_prompt().kind == "prompt"
        assert row.as_prompt().messages[-1]["role"] == "user"

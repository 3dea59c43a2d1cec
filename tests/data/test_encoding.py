"""Rows to token rows: nothing is dropped without being counted, and packed documents do not see each other."""

from __future__ import annotations

import copy
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from raft.data.batching import collate
from raft.data.encoding import TokenRow, encode_pairs, encode_rows, encode_scored, pack
from raft.data.rows import Row
from raft.data.templates import ConversationTemplate
from raft.errors import UserError
from raft.models.forward import target_logits
from raft.rollout.prompts import encode_prompts
from tests.conftest import SENTENCES


@pytest.fixture(scope="module")
def template(tiny_model: str) -> ConversationTemplate:
    return ConversationTemplate(AutoTokenizer.from_pretrained(tiny_model))


def conversation(*contents: str) -> Row:
    messages = tuple({"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents))
    return Row("here", messages=messages)


def pair(prompt: str, chosen: str, rejected: str, margin: float | None = None) -> Row:
    messages = ({"role": "user", "content": prompt},)
    return Row("here", messages=messages, chosen=chosen, rejected=rejected, margin=margin)


# ---------------------------------------------------------------- conversations


def test_conversation(template: ConversationTemplate) -> None:
    row = conversation("Hello", "I am fine.")
    encoded = encode_rows([row], template, max_length=512)
    tokens, trained = template.encode(row.messages)
    assert encoded.rows == [TokenRow(tokens, trained)]
    assert encoded.rows[0].num_targets == len(template.tokenize("I am fine.<|im_end|>"))
    assert not encoded.counts


def test_too_long_conversations(template: ConversationTemplate) -> None:
    short, long = conversation("Hello", "I am fine."), conversation("Hello", SENTENCES[0])
    late = conversation(SENTENCES[1] * 2, "I am fine.")  # its prompt alone is over the limit
    short_tokens, long_tokens = (template.encode(row.messages)[0] for row in (short, long))
    limit = len(short_tokens) + 2
    assert limit < len(long_tokens)

    cut = encode_rows([short, long, late], template, max_length=limit)
    assert [row.tokens for row in cut.rows] == [short_tokens, long_tokens[:limit]]
    assert cut.rows[1].num_targets == limit - len(template.encode_prompt(long.messages[:-1]))
    assert cut.counts == {"truncated": 2, "dropped: no response within the length limit": 1}

    dropped = encode_rows([short, long, late], template, max_length=limit, overlong="drop")
    assert [row.tokens for row in dropped.rows] == [short_tokens]
    assert dropped.counts == {"dropped: too long": 2}

    with pytest.raises(UserError, match=f"--max_length {limit}: no row is left .*no response within"):
        encode_rows([late], template, max_length=limit)


def test_what_a_template_does_to_rows_is_counted(tiny_model: str) -> None:
    """Here: it passes over system messages and drops all of an earlier answer but its end."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (
        "{% for m in messages if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n"
        "{{ m['content'] if loop.last else m['content'].split()[-1] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template = ConversationTemplate(tokenizer)
    system = ({"role": "system", "content": "Be kind."},)
    deaf, rewritten = "system message passed over by the chat template", "earlier answers not trained on"
    rows = [conversation("Hi", "Yes."), conversation("Hi", "Oh yes.", "So?", "Yes.")]
    rows.append(Row("here", (*system, *rows[0].messages)))
    counts = encode_rows(rows, template, max_length=512).counts
    assert {key.partition(":")[0]: count for key, count in counts.items()} == {deaf: 1, rewritten: 1}
    asked = pair("Hi", "Yes.", "No.")
    told = Row("here", (*system, *asked.messages), chosen="Yes.", rejected="No.")
    assert encode_pairs([asked, told, told], template, max_length=512)[1] == {deaf: 2}
    prompts = [Row(f"here:{i}", one.messages) for i, one in enumerate((asked, told))]
    assert encode_prompts(prompts, template, max_length=512, flag="--dataset_path")[1] == {deaf: 1}


def test_exactly_as_long_as_allowed(template: ConversationTemplate) -> None:
    row = conversation("Hello", "I am fine.")
    limit = len(template.encode(row.messages)[0])
    assert not encode_rows([row], template, max_length=limit, overlong="drop").counts
    assert encode_rows([row, row], template, max_length=limit - 1).counts == {"truncated": 2}


def test_sampled_ids_are_trained_as_they_are(template: ConversationTemplate) -> None:
    row = Row("here", messages=conversation("Hello", "you").messages, response_tokens=(40, 41, 42))
    (encoded,) = encode_rows([row], template, max_length=99).rows
    assert encoded.tokens[-3:] == [40, 41, 42]
    assert encoded.num_targets == 3


# ---------------------------------------------------------------- plain text


def test_text_is_trained_on_every_token(template: ConversationTemplate) -> None:
    (row,) = encode_rows([Row("here", text=SENTENCES[1])], template, max_length=512).rows
    assert row.tokens == template.encode_document(SENTENCES[1])
    assert row.trained == [True] * len(row.tokens)
    assert row.positions is None
    assert row.num_targets == len(row.tokens) - 1  # nothing comes before the first


def test_long_text_is_cut_into_rows_without_losing_a_token(template: ConversationTemplate) -> None:
    tokens = template.encode_document(" ".join(SENTENCES))
    encoded = encode_rows([Row("here", text=" ".join(SENTENCES))], template, max_length=16)
    assert [token for row in encoded.rows for token in row.tokens] == tokens
    assert [len(row.tokens) for row in encoded.rows[:-1]] == [16] * (len(encoded.rows) - 1)
    assert encoded.counts == {"cut into several rows": 1}
    short = Row("here", text="Hello")
    dropped = encode_rows([short, Row("here", text=" ".join(SENTENCES))], template, max_length=16, overlong="drop")
    assert [row.tokens for row in dropped.rows] == [template.encode_document("Hello")]
    assert dropped.counts == {"dropped: too long": 1}


def test_packing_is_for_text_alone(template: ConversationTemplate) -> None:
    """A conversation keeps its own row; documents share rows."""
    texts = [Row("here", text=sentence) for sentence in SENTENCES]
    encoded = encode_rows([*texts, conversation("Hello", "I am fine.")], template, max_length=200, packing=True)
    alone, *packed = encoded.rows
    assert alone.positions is None
    assert len(packed) == 1
    starts = [i for i, position in enumerate(packed[0].positions or []) if position == 0]
    assert len(starts) == 4
    assert packed[0].num_targets == len(packed[0].tokens) - 4  # no document is predicted from another one


def test_first_fit_by_hand() -> None:
    """Lengths 5 4 4 3 2 into rows of 8: [5 3], [4 4], [2]; the 3 fits beside the 5, the 2 nowhere."""
    documents = [[20] * 2, [40] * 4, [50] * 5, [41] * 4, [30] * 3]
    rows = pack(documents, 8)
    assert [row.tokens for row in rows] == [[50] * 5 + [30] * 3, [40] * 4 + [41] * 4, [20] * 2]
    assert [row.positions for row in rows] == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 0, 1, 2, 3], [0, 1]]
    assert [row.num_targets for row in rows] == [6, 6, 1]


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=25), room=st.integers(12, 30))
def test_packing_loses_and_splits_no_document(lengths: list[int], room: int) -> None:
    documents = [[100 + i] * length for i, length in enumerate(lengths)]
    rows = pack(documents, room)
    found = []
    for row in rows:
        assert row.positions is not None
        assert len(row.tokens) == len(row.trained) == len(row.positions) <= room
        for token, position in zip(row.tokens, row.positions, strict=True):
            if position == 0:
                found.append([token])
            else:
                found[-1].append(token)
                assert position == len(found[-1]) - 1
    assert sorted(found) == sorted(documents)
    # First fit: what opens a row did not fit into any row before it.
    for i, row in enumerate(rows):
        opening = row.tokens.count(row.tokens[0])
        assert all(room - len(earlier.tokens) < opening for earlier in rows[:i])


@torch.no_grad()
def test_packed_logits_are_the_unpacked_ones(template: ConversationTemplate, tiny_model: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    documents = [template.encode_document(text) for text in [*SENTENCES, "Hello there", "Bread", "I am fine"]]
    rows = pack(documents, 60)
    assert 1 < len(rows) < len(documents)
    batch = collate(rows, template.tokenizer.pad_token_id)
    assert batch.attention_mask is None
    logits, labels = target_logits(model, batch)
    found: list[tuple[int, ...]] = []
    for i, row in enumerate(rows):
        starts = [at for at, position in enumerate(row.positions or []) if position == 0] + [len(row.tokens)]
        for begin, end in pairwise(starts):
            document = row.tokens[begin:end]
            alone = model(input_ids=torch.tensor([document])).logits[0, :-1]
            inside = (batch.columns >= begin) & (batch.columns < end - 1)
            torch.testing.assert_close(logits[i, inside], alone, rtol=0, atol=2e-5)
            assert labels[i, inside].tolist() == document[1:]
            found.append(tuple(document))
    assert Counter(found) == Counter(map(tuple, documents))
    assert batch.weight == sum(len(document) - 1 for document in documents)


# ---------------------------------------------------------------- preferences


def test_scored_text_loses_the_start_of_its_prompt(template: ConversationTemplate) -> None:
    messages = [{"role": "user", "content": "Hello there"}]
    whole = encode_scored(template, messages, "thank you", 999)
    assert whole == template.encode([*messages, {"role": "assistant", "content": "thank you"}])[0]
    assert whole[-1] == template.tokenizer.eos_token_id
    for limit in (len(whole), len(whole) - 1, 3):
        assert encode_scored(template, messages, "thank you", limit) == whole[-limit:]


def test_pairs(template: ConversationTemplate) -> None:
    rows = [pair("Hello", "thank you", "runs away", margin=1.5), pair("Hello", "thank you", SENTENCES[0])]
    sides = [[encode_scored(template, row.messages, text, 999) for text in (row.chosen or "", row.rejected or "")]
             for row in rows]  # fmt: skip
    pairs, counts = encode_pairs(rows, template, max_length=999)
    assert [[one.chosen, one.rejected] for one in pairs] == sides
    assert [one.margin for one in pairs] == [1.5, 0.0]
    assert not counts
    limit = max(map(len, sides[0]))
    pairs, counts = encode_pairs(rows, template, max_length=limit)
    assert (pairs[1].chosen, pairs[1].rejected) == (sides[1][0], sides[1][1][-limit:])
    assert counts == {"truncated": 1}
    pairs, counts = encode_pairs(rows, template, max_length=limit, overlong="drop")
    assert [one.margin for one in pairs] == [1.5]
    assert counts == {"dropped: too long": 1}
    with pytest.raises(UserError, match=r"--max_length 4: no pair is left .*'dropped: too long': 2"):
        encode_pairs(rows, template, max_length=4, overlong="drop")


def test_targets_of_a_row() -> None:
    everything: Any = [True] * 4
    assert TokenRow([5, 6, 7, 8], everything).num_targets == 3
    assert TokenRow([5, 6, 7, 8], [False, False, True, True]).num_targets == 2
    assert TokenRow([5, 6, 7, 8], everything, positions=[0, 1, 0, 1]).num_targets == 2


def test_a_conversation_that_the_template_refuses_is_named(template: ConversationTemplate) -> None:
    """Many templates want user and assistant to take turns, and raise an error of their own."""
    strict: Any = copy.deepcopy(template.tokenizer)
    strict.chat_template = (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m['content'] }}{% endfor %}"
    )
    alternating = ConversationTemplate(strict, "chat")
    twice = ({"role": "user", "content": "a"}, {"role": "user", "content": "b"})
    answer = {"role": "assistant", "content": "c"}
    said = r"^x\.jsonl:7: the chat template refuses a conversation of user, user: roles must alternate$"
    with pytest.raises(UserError, match=said):
        encode_rows([Row("x.jsonl:7", (*twice, answer))], alternating, max_length=99)
    with pytest.raises(UserError, match=r"^x\.jsonl:7: the chat template refuses"):
        encode_pairs([Row("x.jsonl:7", twice, chosen="c", rejected="d")], alternating, max_length=99)
    with pytest.raises(UserError, match=said):
        encode_prompts([Row("x.jsonl:7", twice)], alternating, max_length=99, flag="--dataset_path")

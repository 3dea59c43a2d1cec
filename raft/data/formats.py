"""One raw row -> the canonical ``Row``, told by the columns it has.

``FORMS`` is the whole list of what is understood: a prompt column, and none, one or two reply columns. The
first form whose columns are all there (null counts as absent) wins. Two kinds of trouble are kept apart:

- a row of the wrong *shape* (type, missing field, unknown role) is a ``UserError`` that names the field;
- a row of the right shape with *nothing to train on* is left out and counted by reason (``SKIPPED_*`` in
  ``raft.data.pairs``). Real files have a few: of Anthropic's 2,012 harmless-base test pairs five differ
  before the last turn and four have an empty reply.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from raft.data.dialogues import (
    TOOL_COLUMNS,
    Message,
    assistant,
    fail,
    parse_markup,
    parse_messages,
    parse_prompt,
    parse_reply,
    quote,
    refuse_tools,
    refuse_unwritable,
    show,
    string,
    type_name,
    user,
    with_system,
)
from raft.data.pairs import (
    SKIPPED_EMPTY_PROMPT,
    SKIPPED_EMPTY_TEXT,
    SKIPPED_NO_USER,
    SkipRow,
    split_common_turns,
    split_common_words,
)
from raft.data.rows import Row
from raft.errors import UserError


@dataclass(frozen=True)
class Form:
    """A set of columns that is understood."""

    prompt: str | None  # holds the prompt or the whole conversation; None: the pair contains it
    replies: tuple[str, ...] = ()  # one: prompt and response; two: the better and the worse reply

    @property
    def columns(self) -> tuple[str, ...]:
        return self.replies if self.prompt is None else (self.prompt, *self.replies)


_PAIR = ("chosen", "rejected")
FORMS = (
    Form("prompt", _PAIR),
    Form("conversations", _PAIR),
    Form("messages", _PAIR),
    Form("instruction", _PAIR),
    Form("question", _PAIR),
    Form("input", _PAIR),
    Form("context", _PAIR),
    Form(None, _PAIR),
    Form(None, ("positive", "negative")),
    Form("messages"),
    Form("conversations"),
    Form("prompt", ("completion",)),
    Form("prompt", ("response",)),
    Form("prompt", ("output",)),
    Form("instruction", ("output",)),
    Form("instruction", ("response",)),
    Form("prompt"),
    Form("question", ("answer",)),
    Form("question", ("response",)),
    Form("input", ("output",)),
    Form("instruction"),
    Form("question"),
    Form("text"),
)
LMFLOW_TYPES = ("text_only", "text2text", "conversation", "paired_conversation", "paired_text_to_text")

# Reference answers stay visible to reward functions when a conversation is used as a prompt.
_KEPT_IN_EXTRA = {"answer", "output", "completion"}
_MODIFIERS = {"system", "system_prompt", "margin", "response_tokens", *TOOL_COLUMNS}
_INSTRUCTION_PARTS = {"input", "context", "history"}


def parse_row(raw: object, source: str, skipped: Counter[str] | None = None) -> list[Row]:
    """The rows in one raw JSON value: one, several (an LMFlow object with ``instances``) or none.

    Rows left out are counted in ``skipped`` by reason. A bad row is a ``UserError`` naming source and field.
    """
    if not isinstance(raw, dict):
        raise UserError(f"{source}: found {type_name(raw)}, expected a JSON object")
    if raw.get("instances") is None:
        items = [(raw, source)]
    else:
        items = [(instance, f"{source}[{i}]") for i, instance in enumerate(_instances(raw, source))]
    rows = []
    for item, item_source in items:
        try:
            rows.append(_parse_one(item, item_source))
        except SkipRow as skip:
            if skipped is not None:
                skipped[str(skip)] += 1
    return rows


def _instances(raw: dict[str, Any], source: str) -> list[Any]:
    declared, instances = raw.get("type"), raw["instances"]
    if declared is not None and declared not in LMFLOW_TYPES:
        fail(source, "type", show(declared), f"one of {', '.join(LMFLOW_TYPES)}")
    if not isinstance(instances, list):
        fail(source, "instances", type_name(instances), "a list of objects")
    return instances


def _parse_one(raw: object, source: str) -> Row:
    if not isinstance(raw, dict):
        raise UserError(f"{source}: found {type_name(raw)}, expected a JSON object")
    columns = {key: value for key, value in raw.items() if value is not None}
    form = _form_of(frozenset(columns))
    if form is not None and len(form.replies) == 2:
        return _preference(form, columns, source)
    _refuse_half_pair(raw, source)
    if form is None:
        raise UserError(f"{source}: {_unknown(raw)}")
    if form.prompt == "text":
        return _text(columns, source)
    return _reply_or_prompt(form, columns, source)


@functools.lru_cache(maxsize=1024)
def _form_of(keys: frozenset[str]) -> Form | None:
    return next((form for form in FORMS if keys.issuperset(form.columns)), None)


def _text(columns: dict[str, Any], source: str) -> Row:
    """A document, or the dialogue that the text is."""
    text = string(columns.pop("text"), source, "text")
    refuse_unwritable(columns, source)
    turns = parse_markup(text)
    if turns is not None:
        refuse_tools(columns, source)
        turns = _with_system_column(turns, columns, source)
        return replace(_conversation(turns, source, columns), is_dialogue=True)
    if not text.strip():
        raise SkipRow(SKIPPED_EMPTY_TEXT)
    return Row(source, text=text, extra=columns)


def _reply_or_prompt(form: Form, columns: dict[str, Any], source: str) -> Row:
    refuse_tools(columns, source)
    messages = _prompt(form, columns, source)
    tokens = None
    if form.replies:
        name = form.replies[0]
        messages = parse_reply(columns[name], source, name, messages, is_marked_up=_is_markup(form, columns))
        tokens = _token_ids(columns.get("response_tokens"), source)
    messages = _with_system_column(messages, columns, source)
    row = _conversation(messages, source, _extra(form, columns, source), tokens)
    return replace(row, is_dialogue=form.prompt in ("messages", "conversations"))


def _conversation(
    messages: list[Message], source: str, extra: dict[str, Any], tokens: tuple[int, ...] | None = None
) -> Row:
    """A conversation, or a prompt if the last assistant turn is missing or empty (and was not sampled so)."""
    last = messages[-1] if messages else user("")
    if last["role"] == "assistant" and not last["content"].strip() and not tokens:
        messages = messages[:-1]
    said = [message["content"] for message in messages if message["role"] == "user"]
    if not said:
        raise SkipRow(SKIPPED_NO_USER)
    if not said[-1].strip():
        raise SkipRow(SKIPPED_EMPTY_PROMPT)
    if messages[-1]["role"] == "system":
        raise UserError(f"{source}: found a system turn at the end of a conversation, expected it before")
    return Row(source, messages=tuple(messages), response_tokens=tokens, extra=extra)


def _preference(form: Form, columns: dict[str, Any], source: str) -> Row:
    refuse_tools(columns, source)
    better, worse = (columns[name] for name in form.replies)
    if form.prompt is None and isinstance(better, str) and isinstance(worse, str):
        texts = (string(columns[name], source, name) for name in form.replies)
        prompt, better, worse = split_common_words(*texts)
    else:
        prompt = [] if form.prompt is None else _prompt(form, columns, source)
    is_marked_up = _is_markup(form, columns)
    dialogues = []
    for name, value in zip(form.replies, (better, worse), strict=True):
        # Some files repeat the prompt in each candidate, others give the reply alone.
        turns = parse_reply(value, source, name, prompt, is_marked_up=is_marked_up, is_candidate=True)
        dialogues.append(_with_system_column(turns, columns, source))
    messages, chosen, rejected = split_common_turns(*dialogues)
    margin = _margin(columns.get("margin"), source)
    extra = _extra(form, columns, source)
    return Row(source, tuple(messages), chosen=chosen, rejected=rejected, margin=margin, extra=extra)


def _prompt(form: Form, columns: dict[str, Any], source: str) -> list[Message]:
    name = form.prompt
    assert name is not None
    value = columns[name]
    if name in ("messages", "conversations"):
        return parse_messages(value, source, name)
    if name == "instruction":
        return _instruction(columns, source)
    if name == "context" and isinstance(value, list) and value and isinstance(value[0], str):
        texts = [string(text, source, f"context[{i}]") for i, text in enumerate(value)]
        # Turns without roles alternate, and the last one is what the candidates answer.
        return [(assistant if (len(texts) - i) % 2 == 0 else user)(text) for i, text in enumerate(texts)]
    return parse_prompt(value, source, name)


def _instruction(columns: dict[str, Any], source: str) -> list[Message]:
    """Alpaca: turns from ``history``, then instruction and input (Dolly: context) on lines of their own.

    Beside an input, a context that is no text is a column like any other; a text would be lost.
    """
    history = columns.get("history", [])
    if not isinstance(history, list):
        fail(source, "history", type_name(history), "a list of [question, answer] pairs")
    messages = []
    for i, pair in enumerate(history):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            fail(source, f"history[{i}]", type_name(pair), "a [question, answer] pair")
        messages.append(user(string(pair[0], source, f"history[{i}][0]")))
        messages.append(assistant(string(pair[1], source, f"history[{i}][1]")))
    text = string(columns.get("input", ""), source, "input")
    context = columns.get("context", "")
    if not text.strip():
        text = string(context, source, "context")
    elif isinstance(context, str) and context.strip() not in ("", text.strip()):
        fail(source, "context", 'a text beside that of "input"', "one of the two (write both into the input)")
    parts = [string(columns["instruction"], source, "instruction"), text]
    return [*messages, user("\n".join(part for part in parts if part.strip()))]


def _is_markup(form: Form, columns: dict[str, Any]) -> bool:
    """Behind a prompt that ends with "Assistant:" the reply begins with a space that is not part of it."""
    prompt = columns.get(form.prompt) if form.prompt else None
    return isinstance(prompt, str) and parse_markup(prompt) is not None


def _with_system_column(messages: list[Message], columns: dict[str, Any], source: str) -> list[Message]:
    name = "system" if "system" in columns else "system_prompt"
    return with_system(messages, columns.get(name), source, name)


def _extra(form: Form, columns: dict[str, Any], source: str) -> dict[str, Any]:
    used = set(form.columns) - _KEPT_IN_EXTRA | _MODIFIERS
    if form.prompt == "instruction":
        used |= {name for name in _INSTRUCTION_PARTS if name != "context" or isinstance(columns.get(name), str)}
    return refuse_unwritable({key: value for key, value in columns.items() if key not in used}, source)


def _margin(value: object, source: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        fail(source, "margin", type_name(value), "a number")
    try:
        margin = float(value)
    except OverflowError:
        margin = math.inf
    if not math.isfinite(margin):
        fail(source, "margin", str(margin), "a finite number")
    return margin


def _token_ids(value: object, source: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        fail(source, "response_tokens", type_name(value), "a list of token ids")
    for i, token in enumerate(value):
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            fail(source, f"response_tokens[{i}]", show(token), "a token id (an integer from 0)")
    return tuple(value)


def _refuse_half_pair(raw: dict[str, Any], source: str) -> None:
    """Half a pair would otherwise pass for a prompt with an odd column."""
    for names in (_PAIR, ("positive", "negative")):
        there = [name for name in names if isinstance(raw.get(name), (str, list, dict))]
        if len(there) == 1:
            missing = names[1] if there[0] == names[0] else names[0]
            found = type_name(raw[missing]) if missing in raw else "nothing"
            fail(source, missing, found, f'the other reply of the pair, beside "{there[0]}"')


def _unknown(raw: dict[str, Any]) -> str:
    """What is wrong with a row that has the columns of no form."""
    items = list(raw.items())[:20]
    found = ", ".join(quote(key) + (" (null)" if value is None else "") for key, value in items)
    by_replies: dict[tuple[str, ...], list[str]] = {}
    for form in FORMS:
        by_replies.setdefault(form.replies, []).append(form.prompt or "(nothing)")
    forms = "; ".join(" + ".join(["|".join(prompts), *replies]) for replies, prompts in by_replies.items())
    known = sorted({name for form in FORMS for name in form.columns} | {"instances"})
    near = [(key, difflib.get_close_matches(key.lower(), known, n=1)) for key in raw if key not in known]
    hints = ", ".join(f'"{match[0]}" for {quote(key)}' for key, match in near[:20] if match)
    hint = f" (did you mean {hints}?)" if hints else ""
    return f"found a row with the keys {found or '(none)'}{hint}, expected one of: {forms}; type + instances"

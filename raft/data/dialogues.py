"""Messages, however a file writes them: as role/content or from/value objects, or marked up in one string.

The markups are Anthropic's ``\\n\\nHuman: ...\\n\\nAssistant: ...`` and ``###Human: ... ###Assistant: ...``.
A string is a dialogue only if it *starts* with a marker, so a document that quotes one stays plain text.
"""

from __future__ import annotations

import difflib
import json
import re
from typing import Any, NoReturn

from raft.errors import UserError
from raft.json_file import MOST_NESTED

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": str}

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "claude": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
TOOL_COLUMNS = ("tools", "functions")
TOOL_ROLES = {"tool", "function", "function_call", "function_response", "observation", "ipython"}

_HH_MARKER = re.compile(r"\n\n(Human|Assistant):")
_HASH_MARKER = re.compile(r"###[ \t]*(Human|Assistant)[ \t]*:")


def type_name(value: object) -> str:
    """The type of a raw value as error messages call it."""
    return "null" if value is None else type(value).__name__


def quote(text: str) -> str:
    """A word of the user's, quoted on one line that any terminal can print."""
    return json.dumps(text[:40], ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def show(value: object) -> str:
    """A short value as error messages quote it; of anything larger than a word, the type."""
    if isinstance(value, str):
        return quote(value)
    is_short = isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 10**9)
    return str(value) if is_short else type_name(value)


def fail(source: str, field: str, found: str, expected: str) -> NoReturn:
    """Raise the one error of a bad field: where it is, what was found, what is allowed."""
    raise UserError(f'{source}: field "{field}": found {found}, expected {expected}')


def string(value: object, source: str, field: str) -> str:
    """``value`` if it is a string that UTF-8 can hold (JSON's escapes can also spell half a character)."""
    if not isinstance(value, str):
        fail(source, field, type_name(value), "a string")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            fail(source, field, f"half a surrogate pair at character {error.start + 1}", "valid Unicode")
    return value


def refuse_unwritable(columns: dict[str, Any], source: str) -> dict[str, Any]:
    """The columns that no field takes; they go to reward functions, over HTTP and into files. All of their text has to
    be text that UTF-8 can hold, and they may not be nested without end."""
    for column, value in columns.items():
        string(column, source, quote(column).strip('"'))
        level = [value]
        for _ in range(MOST_NESTED):
            inner: list[Any] = []
            for one in level:
                if isinstance(one, str):
                    string(one, source, column)
                elif isinstance(one, dict):
                    inner += [*one.keys(), *one.values()]
                elif isinstance(one, list):
                    inner += one
            level = inner
        if level:
            fail(source, column, f"lists or objects more than {MOST_NESTED} deep", "a plain value")
    return columns


def refuse_tools(columns: dict[str, Any], source: str, within: str = "") -> None:
    """Tool descriptions beside a conversation would be lost."""
    for name in TOOL_COLUMNS:
        if not _is_blank(columns.get(name)):
            fail(source, f"{within}{name}", "tool descriptions", "none (tool use is not supported)")


def _is_blank(value: object) -> bool:
    """Whether a value says nothing: null, white space, an empty list or object (as JSON too), an object of nulls."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}")
    return not (any(value.values()) if isinstance(value, dict) else value)


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def parse_markup(text: str) -> list[Message] | None:
    """The turns of a marked-up dialogue, white space around each taken off; None for any other string.

    An open last turn (``...\\n\\nAssistant:``) comes out as an assistant turn with empty content.
    """
    start = text.lstrip()
    if start.startswith("###"):
        marker = _HASH_MARKER
        if not marker.match(start):
            return None
    elif start.startswith(("Human:", "Assistant:")):
        marker = _HH_MARKER
        # Without the leading blank line "Human:" alone is too weak a sign: a reply may begin so.
        if not text.startswith("\n\n") and not (start.startswith("Human:") and "\n\nAssistant:" in start):
            return None
        start = "\n\n" + start
    else:
        return None
    pieces = marker.split(start)
    turns = zip(pieces[1::2], pieces[2::2], strict=True)
    return [{"role": ROLES[who.lower()], "content": content.strip()} for who, content in turns]


def parse_prompt(value: object, source: str, field: str) -> list[Message]:
    """A prompt column: messages, a marked-up dialogue (without its open last turn) or the user's words."""
    if isinstance(value, list):
        return parse_messages(value, source, field)
    text = string(value, source, field)
    turns = parse_markup(text) or [user(text)]
    return turns[:-1] if turns[-1] == assistant("") else turns


def parse_reply(
    value: object,
    source: str,
    field: str,
    prompt: list[Message],
    *,
    is_marked_up: bool = False,
    is_candidate: bool = False,
) -> list[Message]:
    """``prompt`` and a reply column: the assistant's words, one message, several, an object of them, or a dialogue.

    Args:
        is_marked_up: the prompt column is a marked-up dialogue, and its reply may be one as well.
        is_candidate: of a preference pair, whose candidates may be dialogues that repeat the prompt.
    """
    if isinstance(value, str):
        text = string(value, source, field)
        turns = parse_markup(text) if is_marked_up or is_candidate else None
        whole = None if turns is None else _continued(prompt, turns, is_marked_up)
        # Any other dialogue is what the assistant was asked to write.
        return whole or [*prompt, assistant(text.strip() if is_marked_up else text)]
    turns = _reply_messages(value, source, field)
    if turns[0]["role"] == "assistant":
        return [*prompt, *turns]
    if is_candidate:
        return turns
    begun = [one for one in prompt if one["role"] == "system" and turns[0]["role"] != "system"] + turns
    if not _repeats(prompt, begun):
        expected = "the assistant's turn, or the prompt once more and then the assistant's turn"
        fail(source, field, f"a conversation that begins with another {turns[0]['role']} turn", expected)
    return begun


def _repeats(prompt: list[Message], turns: list[Message]) -> bool:
    """Whether ``turns`` go on from what ``prompt`` says, if it says anything; white space around it is no matter."""
    said, again = ([(one["role"], one["content"].strip()) for one in messages] for messages in (prompt, turns))
    if not any(role == "system" for role, _ in said[:1]):
        again = [one for one in again if one[0] != "system"]
    return again[: len(said)] == said or not any(content for _, content in said)


def _continued(prompt: list[Message], turns: list[Message], is_marked_up: bool) -> list[Message] | None:
    """``prompt`` and what ``turns`` add to it; None where they do not go on from it."""
    if is_marked_up and turns[0]["role"] == "assistant":
        return [*prompt, *turns]
    said = [message for message in prompt if message["role"] != "system"]
    if not any(message["content"].strip() for message in said):
        return [*(message for message in prompt if message["role"] == "system"), *turns]
    repeated = [{**message, "content": message["content"].strip()} for message in said]
    return [*prompt, *turns[len(said) :]] if turns[: len(said)] == repeated else None


def _reply_messages(value: object, source: str, field: str) -> list[Message]:
    if isinstance(value, list):
        return parse_messages(value, source, field)
    if not isinstance(value, dict):
        fail(source, field, type_name(value), "a string, a message or a list of messages")
    for key in ("messages", "conversations"):
        if key in value:
            refuse_tools(value, source, f"{field}.")
            turns = parse_messages(value[key], source, f"{field}.{key}")
            return with_system(turns, value.get("system"), source, f"{field}.system")
    return [parse_message(value, source, field)]


def parse_messages(value: object, source: str, field: str) -> list[Message]:
    """A list of at least one message."""
    if not isinstance(value, list):
        fail(source, field, type_name(value), "a list of messages")
    if not value:
        fail(source, field, "an empty list", "at least one message")
    return [parse_message(message, source, f"{field}[{i}]") for i, message in enumerate(value)]


def parse_message(value: object, source: str, field: str) -> Message:
    """One message of ``role`` or ``from`` with ``content`` or ``value``."""
    if not isinstance(value, dict):
        fail(source, field, type_name(value), 'an object with "role" and "content"')
    role_key = "role" if value.get("role") is not None or "from" not in value else "from"
    content_key = "content" if value.get("content") is not None or "value" not in value else "value"
    _refuse_lost_keys(value, source, field)
    for key in (role_key, content_key):
        if key not in value:
            keys = ", ".join(map(quote, list(value)[:20])) or "none"
            fail(source, f"{field}.{key}", f"no such key among {keys}", 'the keys "role" and "content"')
    if value.get("weight", 1) not in (None, 1):
        # Fine-tuning files mark turns not to train on so; training on them would be silently wrong.
        fail(source, f"{field}.weight", show(value["weight"]), "1 (weighted turns are not supported)")
    role = parse_role(value[role_key], source, f"{field}.{role_key}")
    return {"role": role, "content": parse_content(value[content_key], source, f"{field}.{content_key}")}


def _refuse_lost_keys(message: dict[str, Any], source: str, field: str) -> None:
    """Training on the content alone would be silently wrong."""
    for key in ("tool_calls", "function_call"):
        if not _is_blank(message.get(key)):
            fail(source, f"{field}.{key}", "tool calls", "none (tool use is not supported)")
    for key in ("reasoning_content", "reasoning", "thinking"):
        if not _is_blank(message.get(key)):
            fail(source, f"{field}.{key}", show(message[key]), "none (write it into the content)")


def parse_role(value: object, source: str, field: str) -> str:
    """The role as "system", "user" or "assistant"."""
    name = string(value, source, field).strip().lower()
    if name in ROLES:
        return ROLES[name]
    if name in TOOL_ROLES:
        fail(source, field, f'"{name}"', "system, user or assistant (tool use is not supported)")
    near = difflib.get_close_matches(name, ROLES, n=1)
    hint = f' (did you mean "{near[0]}"?)' if near else ""
    fail(source, field, show(name), f"one of {', '.join(ROLES)}{hint}")


def parse_content(value: object, source: str, field: str) -> str:
    """The text of a message; a list of text parts is joined without a separator, as chat templates do."""
    if isinstance(value, list):
        return "".join(_text_part(part, source, f"{field}[{i}]") for i, part in enumerate(value))
    return string(value, source, field)


def _text_part(part: Any, source: str, field: str) -> str:
    if not isinstance(part, dict):
        fail(source, field, type_name(part), 'a part like {"type": "text", "text": "..."}')
    if part.get("type") != "text":
        fail(source, f"{field}.type", show(part.get("type")), '"text" (images and sound are not supported)')
    return string(part.get("text"), source, f"{field}.text")


def with_system(messages: list[Message], value: object, source: str, field: str) -> list[Message]:
    """``messages`` led by the text of a system column, if there is any."""
    text = "" if value is None else string(value, source, field)
    if not text.strip():
        return messages
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"] != text:
            fail(source, field, "a second system text", "the one with which the messages begin, or none")
        return messages
    return [{"role": "system", "content": text}, *messages]

"""Two dialogues or plain texts -> the prompt they share and the two replies. Also: why a row is left out."""

from __future__ import annotations

from raft.data.dialogues import Message, parse_markup, user

SKIPPED_EMPTY_TEXT = "empty text"
SKIPPED_EMPTY_PROMPT = "empty prompt"
SKIPPED_NO_USER = "no user turn"
SKIPPED_EMPTY_ANSWER = "empty assistant turn within a conversation"
SKIPPED_EMPTY_REPLY = "empty chosen or rejected reply"
SKIPPED_IDENTICAL = "identical chosen and rejected replies"
SKIPPED_DIVERGING = "chosen and rejected differ before the last turn"
SKIPPED_NO_COMMON_PROMPT = "chosen and rejected share no prompt that ends with a user turn"


class SkipRow(Exception):
    """The row has nothing to train on; the argument is the reason."""


def split_common_turns(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], str, str]:
    """Two dialogues -> their common leading turns and the one reply with which each ends."""
    if chosen == rejected:
        raise SkipRow(SKIPPED_IDENTICAL)
    last_chosen, last_rejected = chosen[-1], rejected[-1]
    if chosen[:-1] != rejected[:-1] or {last_chosen["role"], last_rejected["role"]} != {"assistant"}:
        raise SkipRow(SKIPPED_DIVERGING)
    prompt = chosen[:-1]
    if not prompt or prompt[-1]["role"] != "user":
        raise SkipRow(SKIPPED_NO_COMMON_PROMPT)
    if not prompt[-1]["content"].strip():
        raise SkipRow(SKIPPED_EMPTY_PROMPT)
    replies = last_chosen["content"], last_rejected["content"]
    if not all(reply.strip() for reply in replies):
        raise SkipRow(SKIPPED_EMPTY_REPLY)
    return prompt, *replies


def split_common_words(chosen: str, rejected: str) -> tuple[list[Message], str, str]:
    """Two plain texts -> their common leading words as the prompt, what follows (with its space) as replies.

    TRL's implicit prompt, but never cut inside a word. Marked-up dialogues are returned as they are.
    """
    if parse_markup(chosen) is not None and parse_markup(rejected) is not None:
        return [], chosen, rejected
    if chosen == rejected:
        raise SkipRow(SKIPPED_IDENTICAL)
    texts = zip(chosen, rejected, strict=False)
    shared = next((i for i, (a, b) in enumerate(texts) if a != b), min(len(chosen), len(rejected)))
    end = next((i for i in range(shared - 1, 0, -1) if chosen[i].isspace()), 0)
    if not chosen[:end].strip():
        raise SkipRow(SKIPPED_NO_COMMON_PROMPT)
    return [user(chosen[:end])], chosen[end:], rejected[end:]

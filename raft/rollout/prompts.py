"""The order in which prompts are drawn: a seeded permutation, reshuffled when it ends, known by one number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from raft.data.dialogues import Message
from raft.data.rows import Row
from raft.data.templates import ConversationTemplate
from raft.data.turns import PROBE
from raft.errors import UserError

TOO_LONG = "dropped: too long"


@dataclass(frozen=True)
class Prompt:
    """A prompt that keeps its id through every filter."""

    prompt_id: str
    messages: tuple[Message, ...]
    tokens: list[int]
    extra: dict[str, object]
    tail: str = ""  # what the template wrote after the last message: see ``raft.rewards.source.Candidate``


def encode_prompts(
    rows: Iterable[Row], template: ConversationTemplate, *, max_length: int, flag: str
) -> tuple[list[Prompt], Counter[str]]:
    """Encode prompts; those over ``max_length`` tokens are dropped and counted (the paper keeps those up to 256).

    A row's ``prompt_id`` column is its id; without one it is the place in its file.

    Raises:
        UserError: if nothing is left.
    """
    prompts, counts = [], Counter[str]()
    for row in rows:
        with row.named():
            rendered = template.render_prompt(row.messages)
        tokens = template.encode_rendered(rendered)
        if len(tokens) > max_length:
            counts[TOO_LONG] += 1
            continue
        counts.update(template.remarks(row.messages))
        prompt_id = str(row.extra.get("prompt_id", row.source))
        tail = prompt_tail(template, row.messages)
        prompts.append(Prompt(prompt_id, row.messages, tokens, dict(row.extra), tail))
    if not prompts:
        raise UserError(f"{flag}: no prompt has at most --prompt_max_length {max_length} tokens.")
    return prompts, counts


def prompt_tail(template: ConversationTemplate, messages: Sequence[Message]) -> str:
    """What a rendered prompt has behind its last message. By a text that no template has in it, unlike "a"."""
    probed = [*messages[:-1], {**messages[-1], "content": PROBE}]
    return template.render_prompt(probed).rpartition(PROBE)[2]


def draw_prompts(num_prompts: int, *, seed: int, cursor: int, count: int) -> list[int]:
    """Indices of the draws ``cursor`` to ``cursor + count - 1``.

    Draw d is entry ``d % num_prompts`` of the permutation of epoch ``d // num_prompts``: the position in the data
    is one number, and nothing is dropped when an epoch ends.
    """
    drawn = []
    permutations: dict[int, np.ndarray] = {}
    for draw in range(cursor, cursor + count):
        epoch, place = divmod(draw, num_prompts)
        if epoch not in permutations:
            permutations[epoch] = np.random.default_rng([seed, epoch]).permutation(num_prompts)
        drawn.append(int(permutations[epoch][place]))
    return drawn

"""The self-test of a reward model when it is loaded: does it score as it did when it was saved?

It takes a batch of at most eight short texts and a few single ones, a second or so on a CPU for a model of 135M
parameters, and fails with one sentence. With a contract that holds examples it compares with their scores; without,
it can only find scores that contradict each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from raft.data.dialogues import Message
from raft.errors import UserError
from raft.rewards.contract import RewardContract
from raft.rewards.reading import HELLO, Reader

PROBES: tuple[tuple[tuple[Message, ...], str], ...] = tuple(
    (({"role": "user", "content": prompt},), response)
    for prompt, response in (
        ("Hello", "Hi."),
        ("What is the capital of France?", "The capital of France is Paris. It lies on the Seine."),
        ("How do I bake bread?", "You need flour, water, salt and yeast. Knead, let it rise for two hours, and bake."),
        ("How do I bake bread?", "no idea lol"),
    )
)
"""Dialogues of different lengths, for models without examples."""

TOLERANCES = {"fp32": 0.01, "bf16": 0.1}
"""How far a score may be from the same text's score in another batch, in standard deviations of scores.

Measured on the shipped reward model: docs/reward_model.md.
"""

STORED_TOLERANCES = {"fp32": 0.05, "bf16": 0.5}
"""How far an example's score may be from the stored one, in standard deviations: another machine, a merged adapter."""


class Tested(Protocol):
    """What the self-test needs of a reward model."""

    @property
    def model(self) -> Any:
        """The scoring module."""
        ...

    tokenizer: Any
    contract: RewardContract
    reader: Reader

    def score_rows(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Scores of rows of token ids, in one batch."""
        ...


def self_test(model: Tested, *, name: str, flag: str) -> None:
    """Refuse a reward model whose scores can not be trusted.

    Args:
        name: of the model, and ``flag`` that it was given by, for the message.

    Raises:
        UserError: with the first thing that is wrong, and what to do.
    """
    try:
        check_reading(model)
        check_scores(model)
    except _Failure as failure:
        raise UserError(
            f"{flag}: {name} fails its self-test: {failure} --no_reward_self_test loads it all the same."
        ) from None


class _Failure(Exception):
    """What is wrong, and what to do."""


def check_reading(model: Tested) -> None:
    """Texts become the tokens that the contract promises: as rendered then, one BOS at most, EOS where it is scored."""
    contract, reader, tokenizer = model.contract, model.reader, model.tokenizer
    text, tokens = reader.text(*HELLO), reader.encode_whole(*HELLO)
    dated = "strftime_now" in (tokenizer.chat_template or "")
    if contract.rendered_example not in (None, text) and not dated:
        raise _Failure(
            f"it now reads a dialogue as {text!r}, but was trained to read {contract.rendered_example!r}; use the "
            "tokenizer that it was saved with."
        )
    template = reader.template
    for field, found in (
        ("system_message", template.system_messages),
        ("default_system_prompt", template.default_system_prompt),
    ):
        said = getattr(contract, field)
        if said not in (None, found) and not (dated and field == "default_system_prompt"):
            raise _Failure(
                f"{field} is {said!r}, but its template gives {found!r}; correct its reward_model.json or use the "
                "tokenizer that it was saved with."
            )
    bos = tokenizer.bos_token_id
    if bos is not None and bos != tokenizer.eos_token_id and tokens[:2] == [bos, bos]:
        raise _Failure(
            f"its texts begin with BOS ({tokenizer.bos_token}) twice: the chat template writes one and the tokenizer "
            "adds another; remove one of them."
        )
    closed = tokens[-1] == tokenizer.eos_token_id
    if contract.score_token == "eos" and not closed:
        raise _Failure(
            f"the score should be read at EOS ({tokenizer.eos_token}), but texts end with "
            f"{tokenizer.decode(tokens[-1:])!r}: the tokenizer does not know its EOS token; correct eos_token in its "
            "tokenizer_config.json, or say score_token: last in reward_model.json."
        )


def check_scores(model: Tested) -> None:
    """Scores are numbers, differ between texts, depend on the token they are read at, and on nothing in the batch."""
    dtype = "bf16" if model.model.dtype == torch.bfloat16 else "fp32"
    texts = [
        (pair.messages, text) for pair in model.contract.examples for text in (pair.chosen, pair.rejected)
    ] or PROBES
    rows = [model.reader.encode(messages, response) for messages, response in texts]
    together = model.score_rows(rows)
    if not all(map(math.isfinite, together)):
        raise _Failure("its scores are not finite numbers; its weights are broken, or overflow in this precision.")
    spread = model.contract.score_std or max(float(np.std(together)), 0.1 * max(map(abs, together)))
    if np.ptp(together) <= 1e-6 * max(1.0, abs(together[0])):
        raise _Failure(
            f"it scores every text alike ({together[0]:.4g}); its score head is empty or was never trained."
        )
    shortest = sorted(range(len(rows)), key=lambda i: len(rows[i]))[:2]
    alone = [model.score_rows([rows[i]])[0] for i in shortest]
    check_score_token(model, [rows[i] for i in shortest], alone, spread)
    worst = max(abs(together[i] - score) for i, score in zip(shortest, alone, strict=True))
    if worst > TOLERANCES[dtype] * spread:
        raise _Failure(
            f"a text's score changes by {worst:.3g} with the batch it is in (scores have a standard deviation of "
            f"{spread:.3g}); padding is read as text: set pad_token in its tokenizer and padding_side in "
            "reward_model.json."
        )
    check_examples(model.contract, together, spread, dtype)


def check_score_token(model: Tested, rows: Sequence[list[int]], scores: Sequence[float], spread: float) -> None:
    """Where the score is read at EOS, a text without its EOS scores differently."""
    if model.contract.score_token != "eos":
        return
    without = [model.score_rows([row[:-1]])[0] for row in rows]
    if max(abs(a - b) for a, b in zip(scores, without, strict=True)) <= 1e-4 * spread:
        raise _Failure(
            "texts score the same with and without the EOS that closes them, so the score is not read at it: padding "
            "is confused with EOS; give the tokenizer a pad_token of its own."
        )


def check_examples(contract: RewardContract, scores: Sequence[float], spread: float, dtype: str) -> None:
    """Stored pairs score as they did: each about its stored score, and the chosen one above the rejected one."""
    precisions = {dtype, contract.body_dtype or dtype}
    tolerance = spread * max(STORED_TOLERANCES[one] for one in precisions)
    for number, pair in enumerate(contract.examples):
        found, stored = scores[2 * number : 2 * number + 2], (pair.chosen_score, pair.rejected_score)
        worst = max(abs(a - b) for a, b in zip(found, stored, strict=True))
        shown = f"example {number + 1} of its contract scores {found[0]:.3f} (chosen) and {found[1]:.3f} (rejected)"
        cure = "weights, base model or tokenizer are not those it was saved with; restore them."
        if pair.chosen_score > pair.rejected_score and not found[0] > found[1]:
            raise _Failure(f"{shown}, the wrong way round; {cure}")
        if worst > tolerance:
            raise _Failure(f"{shown}, where {stored[0]:.3f} and {stored[1]:.3f} are stored; {cure}")

"""What a reward model was trained to read, saved beside its weights so that scoring reads the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from raft.data.formats import Message
from raft.errors import UserError
from raft.run_directory import write_json

FILE = "reward_model.json"

ALLOWED: dict[str, tuple[object, ...]] = {
    "template": ("auto", "chat", "human_assistant", "raw"),
    "system_message": (None, "rendered", "merged", "dropped"),
    "score_token": ("eos", "last", "template", "pooled"),
    "padding_side": ("right", "left"),
    "truncation_side": ("left", "right"),
    "body_dtype": (None, "bf16", "fp32"),
    "score_dtype": ("fp32",),
    "sign": (1, -1),
}
"""The values of the fields that have few of them."""


@dataclass(frozen=True)
class ScoredPair:
    """A held-out pair with the scores it had when the reward model was saved."""

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    chosen_score: float
    rejected_score: float


@dataclass(frozen=True)
class RewardContract:
    """How texts become scores.

    Attributes:
        template: how messages become text (see ConversationTemplate).
        chat_template: the text of the chat template, where that is the template; null is the tokenizer's own.
        system_message: what that does with a system message: ``rendered``, ``merged`` into the first user message
            (where the template refuses system messages), or ``dropped``.
        default_system_prompt: what it writes where a dialogue has no system message; empty for nothing.
        rendered_example: the whole text that a dialogue of "Hello" and "Hi" becomes.
        max_length: tokens read.
        truncation_side: which end a longer text loses: ``left`` is the start of its prompt.
        padding_side: where shorter texts of a batch are padded.
        score_token: the token at which the score is read. ``eos`` closes the response; ``last`` is the response's
            last, no EOS follows; ``template`` is the last that the chat template writes for the whole dialogue, such
            as a line break after EOS; ``pooled`` leaves it to the classifier, as encoders with a [CLS] token do.
        label: the classifier's output that is the score, by index or name; null is the only one.
        sign: 1, or -1 where lower outputs are better.
        body_dtype: compute precision that the figures below were measured in.
        score_dtype: precision of the head.
        base_model: model below the adapter, as a name or path (null for a whole model).
        base_model_fingerprint: identity of its weights.
        accuracy: share of held-out pairs whose chosen response scores strictly higher.
        num_pairs: held-out pairs that was measured on.
        score_mean: mean score of the held-out responses.
        score_std: their standard deviation.
        examples: held-out pairs with their scores, for the self-test.

    Raises:
        UserError: if a value is none of those allowed. It names the field.
    """

    template: str = "auto"
    chat_template: str | None = None
    system_message: str | None = None
    default_system_prompt: str | None = None
    rendered_example: str | None = None
    max_length: int = 512
    truncation_side: str = "left"
    padding_side: str = "right"
    score_token: str = "eos"
    label: int | str | None = None
    sign: int = 1
    body_dtype: str | None = None
    score_dtype: str = "fp32"
    base_model: str | None = None
    base_model_fingerprint: str | None = None
    accuracy: float | None = None
    num_pairs: int | None = None
    score_mean: float | None = None
    score_std: float | None = None
    examples: tuple[ScoredPair, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in ALLOWED.items():
            if (found := getattr(self, name)) not in allowed:
                raise UserError(f"{name}: found {_shown(found)}, allowed are {', '.join(map(_shown, allowed))}.")
        if type(self.max_length) is not int or self.max_length < 1:
            raise UserError(f"max_length: found {_shown(self.max_length)}, allowed are integers from 1.")
        if not (self.label is None or isinstance(self.label, str) or (type(self.label) is int and self.label >= 0)):
            raise UserError(f"label: found {_shown(self.label)}, allowed are integers from 0, names and null.")

    def save(self, directory: Path) -> None:
        """Write ``reward_model.json``."""
        write_json(directory / FILE, asdict(self))

    @classmethod
    def load(cls, directory: str) -> RewardContract | None:
        """Read ``reward_model.json``; None where there is none.

        Raises:
            UserError: see :meth:`read`.
        """
        path = Path(directory) / FILE
        return cls.read(path) if path.is_file() else None

    @classmethod
    def read(cls, path: Path) -> RewardContract:
        """Read a contract from a file. Fields it lacks, as older ones do, have their defaults.

        Raises:
            UserError: if it is not there, broken, or from a toolkit that knows more fields.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}.") from error
        except ValueError as error:
            raise UserError(f"{path}: not JSON: {error}") from error
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known) if isinstance(values, dict) else ["(not an object)"]
        if unknown:
            raise UserError(f"{path}: unknown fields {', '.join(unknown)}; known are {', '.join(sorted(known))}.")
        try:
            return cls(**values | {"examples": _pairs(values.get("examples") or ())})
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


def _pairs(values: Any) -> tuple[ScoredPair, ...]:
    expected = sorted(f.name for f in fields(ScoredPair))
    if not isinstance(values, list | tuple) or any(
        not isinstance(value, Mapping) or sorted(value) != expected for value in values
    ):
        raise UserError(f"examples: expected a list of objects with the fields {', '.join(expected)}.")
    return tuple(ScoredPair(**{**value, "messages": tuple(value["messages"])}) for value in values)


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)

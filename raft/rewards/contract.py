"""What a reward model was trained to read, saved beside its weights so that scoring reads the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from raft import json_file
from raft.data.dialogues import Message, parse_messages, quote
from raft.errors import UserError
from raft.run_directory import write_json

FILE = "reward_model.json"

ALLOWED: dict[str, tuple[object, ...]] = {
    "template": ("auto", "chat", "human_assistant", "raw", "pair"),
    "system_message": (None, "rendered", "merged", "dropped"),
    "score_token": ("eos", "last", "template", "pooled"),
    "padding_side": ("right", "left"),
    "truncation_side": ("left", "right"),
    "body_dtype": (None, "bf16", "fp32"),
    "score_dtype": ("fp32",),
    "function_to_apply": ("none", "softmax", "log_softmax", "sigmoid"),
    "sign": (1, -1),
}
"""The values of the fields that have few of them."""

TEXTS = ("chat_template", "default_system_prompt", "rendered_example", "base_model", "base_model_fingerprint")
NUMBERS = ("accuracy", "num_pairs", "score_mean", "score_std")


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
        template: how messages become text (see ConversationTemplate); ``pair`` gives an encoder's tokenizer the
            prompt, its messages a line each, and the response as two texts.
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
        label: the output that is the score: an index as a number, or a name as a text; null is the only one.
        function_to_apply: to all outputs before that one is read; ``none`` takes it as it is, a logit of several.
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
    function_to_apply: str = "none"
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
        for name in TEXTS:
            if not isinstance(found := getattr(self, name), str | None):
                raise UserError(f"{name}: found {_shown(found)}, allowed are texts and null.")
        for name in NUMBERS:
            found, from_zero = getattr(self, name), name == "score_std"
            if found is not None and not (_is_number(found) and (found >= 0 or not from_zero)):
                numbers = "numbers from 0" if from_zero else "numbers"
                raise UserError(f"{name}: found {_shown(found)}, allowed are {numbers} and null.")
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
        values = json_file.read_object(path)
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            shown = ", ".join(map(quote, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            raise UserError(f"{path}: unknown fields {shown}; known are {', '.join(sorted(known))}.")
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
    for i, value in enumerate(values):
        parse_messages(list(_sequence(value["messages"])), "examples", f"[{i}].messages")
        for name in ("chosen", "rejected"):
            if not isinstance(value[name], str):
                raise UserError(f"examples[{i}].{name}: found {_shown(value[name])}, allowed are texts.")
            if not _is_number(value[f"{name}_score"]):
                found = _shown(value[f"{name}_score"])
                raise UserError(f"examples[{i}].{name}_score: found {found}, allowed are numbers.")
    return tuple(ScoredPair(**{**value, "messages": tuple(value["messages"])}) for value in values)


def _sequence(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise UserError(f"examples: found messages that are {_shown(value)}, allowed are lists of messages.")
    return value


def _is_number(value: object) -> bool:
    """Whether a value is a finite number, and one that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."

"""Do contract, tokenizer and classifier fit each other? And what is assumed where there is no contract."""

from __future__ import annotations

from typing import Any

from raft.errors import UserError
from raft.models.loading import Tokenizer
from raft.models.scoring import has_score_head
from raft.rewards.contract import RewardContract

MOST_ASSUMED = 2048
"""Tokens read, at most, where no contract says how many: longer contexts cost memory that nobody asked for."""


def assume(classifier: Any, tokenizer: Tokenizer) -> RewardContract:
    """How a classifier without a contract is read.

    Decoders: the tokenizer's chat template where it has one, else ###Human/###Assistant markup; read at EOS.
    Others (encoders): the bare text between the tokenizer's own special tokens; the classifier pools.
    """
    lengths = [context_length(classifier.config) or MOST_ASSUMED, tokenizer.model_max_length, MOST_ASSUMED]
    max_length = int(min(lengths))
    if has_score_head(classifier):
        return RewardContract(max_length=max_length)
    template = "chat" if tokenizer.chat_template else "raw"
    return RewardContract(template=template, score_token="pooled", max_length=max_length)


def describe(contract: RewardContract, tokenizer: Tokenizer) -> str:
    """A contract in one line."""
    has_template = contract.chat_template or tokenizer.chat_template
    template = contract.template.replace("auto", "chat" if has_template else "human_assistant")
    where = {
        "eos": "score read at the EOS after the response",
        "last": "score read at the response's last token, without EOS",
        "template": "score read at the last token of the chat template",
        "pooled": "score pooled by the classifier",
    }[contract.score_token]
    cut = "the start" if contract.truncation_side == "left" else "the end"
    better = "higher" if contract.sign > 0 else "lower"
    return (
        f"template {template}, {where}, {contract.max_length} tokens at most ({cut} is cut), "
        f"padding on the {contract.padding_side}, output {contract.label}, {better} is better."
    )


def resolve_label(label: int | str | None, config: Any, *, name: str, source: str = "label") -> int:
    """Index of the classifier's output that a label means.

    Args:
        label: index, or name in the model's config.json (case does not matter); None is the only output.
        name: of the model, for the message.
        source: where the label was said, for the message.

    Raises:
        UserError: if there is no such output, or several and none is named. It lists what there is.
    """
    labels = {int(index): text for index, text in config.id2label.items()}
    known = ", ".join(f"{index} ({text})" for index, text in sorted(labels.items()))
    if label is None:
        if len(labels) > 1:
            raise UserError(
                f"{name} has several outputs: {known}; say which of them is the score, by label in its contract or by "
                f"--reward {name},label={labels[max(labels)]}."
            )
        return 0
    text = str(label)
    matches = [i for i, n in labels.items() if n == text] or [i for i, n in labels.items() if n.lower() == text.lower()]
    if not matches and text.isdecimal() and int(text) in labels:
        matches = [int(text)]
    if len(matches) != 1:
        raise UserError(f"{source}: {name} has no output {text}; it has {known}.")
    return matches[0]


def context_length(config: Any) -> int | None:
    """Positions that a model has; None where its positions have no limit."""
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)


def refuse_misfit(contract: RewardContract, classifier: Any, tokenizer: Tokenizer, *, where: str) -> None:
    """Raise UserError where contract, tokenizer and classifier contradict each other.

    Args:
        where: flag and name of the model, for the message.
    """
    num_rows = classifier.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values())
    if largest >= num_rows:
        raise UserError(
            f"{where}: its tokenizer has token ids up to {largest}, its embedding {num_rows} rows; the tokenizer "
            "belongs to another model, or tokens were added without resizing the embedding."
        )
    length = context_length(classifier.config)
    if length is not None and contract.max_length > length:
        raise UserError(
            f"{where}: its contract says that {contract.max_length} tokens are read (max_length), but the model has "
            f"{length} positions."
        )
    if contract.score_token in ("eos", "last") and tokenizer.eos_token_id is None:
        raise UserError(f"{where}: its tokenizer has no EOS token, which score_token: {contract.score_token} needs.")
    on_one_token = has_score_head(classifier)
    if (contract.score_token == "pooled") == on_one_token:
        kind = "puts its head on one token" if on_one_token else "pools by itself"
        raise UserError(f"{where}: its contract says score_token: {contract.score_token}, but the classifier {kind}.")

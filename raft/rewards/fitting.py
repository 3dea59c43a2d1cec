"""Do contract, tokenizer and classifier fit each other? And what is assumed where there is no contract."""

from __future__ import annotations

import json
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
    lengths = [context_length(classifier) or MOST_ASSUMED, tokenizer.model_max_length, MOST_ASSUMED]
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
    applied = f" after {contract.function_to_apply}" if contract.function_to_apply != "none" else ""
    return (
        f"template {template}, {where}, {contract.max_length} tokens at most ({cut} is cut), "
        f"padding on the {contract.padding_side}, output {contract.label}{applied}, {better} is better."
    )


def resolve_label(
    label: int | str | None, config: Any, *, name: str, source: str = "label", by_text: bool = False
) -> int:
    """Index of the classifier's output that a label means.

    Args:
        label: an index, or a text, which is a name in the model's config.json (exact, else whatever the case); None is
            the only output.
        name: of the model, for the message.
        source: where the label was said, for the message.
        by_text: the label comes from a command line, where all is text: digits may be an index, #1 is surely one.

    Raises:
        UserError: if there is no such output, or several and none is named, or it may mean several. It lists what
            there is.
    """
    labels = {int(index): text for index, text in config.id2label.items()}
    known = ", ".join(f"{index} ({text})" for index, text in sorted(labels.items()))
    if label is None:
        if len(labels) > 1:
            raise UserError(
                f"{name}: it has several outputs: {known}; say which of them is the score, by label in its contract or "
                f"by --reward PATH,label={labels[max(labels)]}."
            )
        return 0
    named, numbered = set[int](), set[int]()
    if isinstance(label, int):
        numbered = {label} & labels.keys()
    else:
        named = {i for i, text in labels.items() if text == label}
        named = named or {i for i, text in labels.items() if text.lower() == label.lower()}
        if by_text and (digits := label.removeprefix("#")).isdecimal():
            numbered = {int(digits)} & labels.keys()
    found, shown = sorted(named | numbered), str(label) if by_text else json.dumps(label, ensure_ascii=False)
    if not found:
        raise UserError(f"{name}: {source} is {shown}, but there is no such output; there are {known}.")
    if len(found) > 1:
        means = " and ".join(f"output {i} ({labels[i]}) by {'name' if i in named else 'index'}" for i in found)
        ways = " or ".join(f"label=#{i}" if by_text else f"{i}" for i in found)
        raise UserError(f"{name}: {source} is {shown}, which is {means}; say {ways}.")
    return found[0]


def context_length(classifier: Any) -> int | None:
    """Tokens that a classifier has positions for; None where these have no limit."""
    config = classifier.config
    length = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    for name, module in classifier.named_modules():
        # RoBERTa and its kin count positions from the row behind that of padding.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return length and length - module.padding_idx - 1
    return length


def refuse_foreign_tokenizer(classifier: Any, tokenizer: Tokenizer, *, where: str) -> None:
    """Raise UserError where a tokenizer has token ids that a classifier's embedding has no rows for.

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


def refuse_other_task(settings: Any, *, where: str) -> None:
    """Raise UserError for the configuration of a model that is no sequence classifier, such as a language model.

    Args:
        where: flag and name of the model, for the message.
    """
    architectures = settings.architectures or ["a model without architecture"]
    if not any("SequenceClassification" in architecture for architecture in architectures):
        raise UserError(
            f"{where} is {', '.join(architectures)}, not a sequence classifier; its score head would be newly "
            "initialised. Train one with `raft reward`, or name another model."
        )


def second_text_after(
    contract: RewardContract, classifier: Any, tokenizer: Tokenizer, *, where: str
) -> int | None:
    """The token id whose first occurrence ends the first text of a pair, where token types tell the two apart.

    None is for models that read one text, and for those without token types, such as RoBERTa and DeBERTa.

    Args:
        where: flag and name of the model, for the message.

    Raises:
        UserError: if the types are others than 0 up to that token and 1 behind it, as XLNet's are.
    """
    if contract.template != "pair" or (getattr(classifier.config, "type_vocab_size", 2) or 0) < 2:
        return None
    example = tokenizer("a", "b")
    types = example.get("token_type_ids")
    if types is None or not any(types):
        return None
    ids, separator = example["input_ids"], tokenizer.sep_token_id
    if separator in ids and types == [int(i > ids.index(separator)) for i in range(len(ids))]:
        return separator
    raise UserError(
        f"{where}: template is pair, but its tokenizer gives the tokens of a pair the types {types}; allowed are 0 up "
        "to the first separator and 1 behind it. Read it with template raw."
    )


def refuse_misfit(contract: RewardContract, classifier: Any, tokenizer: Tokenizer, *, where: str) -> None:
    """Raise UserError where contract, tokenizer and classifier contradict each other.

    Args:
        where: flag and name of the model, for the message.
    """
    refuse_foreign_tokenizer(classifier, tokenizer, where=where)
    length = context_length(classifier)
    if length is not None and contract.max_length > length:
        raise UserError(
            f"{where}: its contract says that {contract.max_length} tokens are read (max_length), but the model has "
            f"{length} positions."
        )
    if "softmax" in contract.function_to_apply and classifier.config.num_labels == 1:
        raise UserError(
            f"{where}: function_to_apply is {contract.function_to_apply}, which is the same for every text with one "
            "output; allowed are none and sigmoid."
        )
    if contract.score_token in ("eos", "last") and tokenizer.eos_token_id is None:
        raise UserError(f"{where}: its tokenizer has no EOS token, which score_token: {contract.score_token} needs.")
    on_one_token = has_score_head(classifier)
    if (contract.score_token == "pooled") == on_one_token:
        kind = "puts its head on one token" if on_one_token else "pools by itself"
        raise UserError(f"{where}: its contract says score_token: {contract.score_token}, but the classifier {kind}.")

"""What the sampler can not draw from, refused by name before anything is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from raft.data.turns import end_tokens
from raft.errors import UserError
from raft.rollout.cache import has_recurrent_layers, keeps_rows_apart


def refuse_recurrent(config: Any, *, name: str, flag: str, advice: str = "") -> None:
    """Refuse a model whose configuration says that its layers keep more than keys and values. Needs no weights.

    Args:
        config: of a transformers model.
        name: of the model.
        flag: that named it.
        advice: what helps, as the end of the sentence.

    Raises:
        UserError: if it names such layers.
    """
    if has_recurrent_layers(config):
        _refuse(config, "has recurrent layers", name, flag, advice)


@torch.no_grad()
def refuse_without_cache(model: Any, *, name: str, flag: str, advice: str = "") -> None:
    """Refuse a model that the sampler can not go on with token by token; two prompts of two tokens are tried.

    Args:
        model: in eval mode with whole weights; others as for :func:`refuse_recurrent`.

    Raises:
        UserError: if it keeps anything but keys and values, or gives no cache.
    """
    refuse_recurrent(model.config, name=name, flag=flag, advice=advice)
    if getattr(model, "_is_stateful", False):  # transformers' own mark; some of these fail in the pass below
        _refuse(model.config, "keeps recurrent states", name, flag, advice)
    ids = torch.zeros(2, 2, dtype=torch.long, device=model.get_input_embeddings().weight.device)
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
    if not keeps_rows_apart(getattr(output, "past_key_values", None)):
        _refuse(model.config, "gives no cache of keys and values alone", name, flag, advice)


def _refuse(config: Any, why: str, name: str, flag: str, advice: str) -> None:
    raise UserError(
        f"{flag}: found {name} ({config.model_type}), which {why}; allowed are models that keep keys and values of "
        f"every token and nothing else{advice}."
    )


def refuse_unknown_tokens(prompts: Iterable[Sequence[int]], num_ids: int, *, name: str, where: str) -> None:
    """Refuse prompts with token ids that a model has no embedding for.

    Args:
        prompts: token ids.
        num_ids: rows of the model's embedding.
        name: of the model.
        where: the flag that named it, or what else the message is about.

    Raises:
        UserError: for the first such prompt.
    """
    for prompt in prompts:
        _refuse_unknown(max(prompt, default=0), "a prompt has", num_ids, name, where)


def refuse_other_tokenizer(
    tokenizer: Any, num_ids: int, *, name: str, where: str, model: Any = None, stop: Sequence[str] = ()
) -> None:
    """Refuse a tokenizer whose pad token, or a token that ends responses, has no embedding in its model.

    Args:
        model, stop: see :func:`raft.data.turns.end_tokens`; others as for :func:`refuse_unknown_tokens`.

    Raises:
        UserError: if it has such a token.
    """
    _refuse_unknown(tokenizer.pad_token_id, "the pad token has", num_ids, name, where)
    for token in end_tokens(tokenizer, model, stop):
        _refuse_unknown(token, "a token that ends responses has", num_ids, name, where)


def _refuse_unknown(token: int, what: str, num_ids: int, name: str, where: str) -> None:
    if token >= num_ids:
        raise UserError(
            f"{where}: {what} id {token}, allowed are ids below {num_ids}, the rows of the embedding of {name}; its "
            "tokenizer has tokens that the model was not resized for."
        )


def rope_warning(config: Any, longest: int, *, name: str, flags: str) -> str | None:
    """What to tell of a model whose rotary positions depend on the longest sequence of a batch; None where none may.

    Past the original context such a model turns the positions of every row of its batch in another way, so that a
    response depends on what it is drawn together with.

    Args:
        config: of a transformers model.
        longest: tokens of prompt and response at most.
        name: of the model.
        flags: that limit them.
    """
    settings = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [settings, *(one for one in settings.values() if isinstance(one, dict))]  # some have them by kind of layer
    limits = [
        one.get("original_max_position_embeddings") for one in kinds if one.get("rope_type") in ("longrope", "dynamic")
    ]
    context = min((limit for limit in limits if limit), default=longest)
    if longest <= context:
        return None
    return (
        f"warning: a sequence may have {longest} tokens; past {context} the rotary positions of {name} depend on the "
        f"longest sequence of a batch, so responses depend on what they are drawn together with ({flags} can be lower)"
    )

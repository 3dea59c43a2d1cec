"""Which tokens end a response: the tokenizer's EOS, and what chat template and generation settings have beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PROBE = "Xylophone"


def end_tokens(tokenizer: Any, model: Any = None, stop: Sequence[str] = ()) -> list[int]:
    """Ids of the tokens after which a response is over, the tokenizer's EOS first.

    Chat models often close a turn with a token that is not the tokenizer's EOS: Gemma with <end_of_turn>, Phi-3 with
    <|end|>. What the chat template writes behind an answer is one, if it is a special token, and so are those that
    ``generation_config.json`` names.

    Args:
        tokenizer: with an EOS token.
        model: whose ``generation_config`` is asked, if it has one.
        stop: stop strings, of which special tokens count: they are in no text, and are looked for as tokens.
    """
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    configured = configured if isinstance(configured, list | tuple) else [configured]
    stops = [tokenizer.convert_tokens_to_ids(text) for text in stop if text in tokenizer.all_special_tokens]
    found = [tokenizer.eos_token_id, turn_end(tokenizer), *configured, *stops]
    return list(dict.fromkeys(token for token in found if token is not None))


def turn_end(tokenizer: Any) -> int | None:
    """The special token that the chat template writes right behind an answer; None where it writes none."""
    from jinja2.exceptions import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        return None
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": PROBE}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except (TemplateError, ValueError):  # a template that wants other turns
        return None
    ids = tokenizer(text.rpartition(PROBE)[2], add_special_tokens=False).input_ids
    added = tokenizer.added_tokens_decoder
    is_special = bool(ids) and ids[0] in added and added[ids[0]].special
    return ids[0] if is_special else None

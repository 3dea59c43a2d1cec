"""How a chat template writes an answer: what stands before it, which token ends it, whether it is trimmed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PROBE = "Xylophone"
"""A text that no template writes by itself."""


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
    turn = answer_turn(tokenizer)
    return None if turn is None else turn.end


@dataclass(frozen=True)
class AnswerTurn:
    """How a chat template writes an answer.

    Attributes:
        end: the special token that closes it; None where there is none.
        before: spaces and line breaks between the generation prompt and the answer, as in ``[/INST] answer``.
        behind: those between the answer and ``end``.
        header: what opens an answer where the template has no generation prompt, although it writes more than that.
        trims_start, trims_end: whether spaces and line breaks of the answer itself are left out.
    """

    end: int | None = None
    before: str = ""
    behind: str = ""
    header: str = ""
    trims_start: bool = False
    trims_end: bool = False

    def trimmed(self, content: str) -> str:
        """An answer as the template writes it."""
        content = content.lstrip() if self.trims_start else content
        return content.rstrip() if self.trims_end else content


def answer_turn(tokenizer: Any) -> AnswerTurn | None:
    """What the tokenizer's chat template makes of an answer; None without a template, or one that wants other turns."""
    from jinja2.exceptions import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        return None

    def rendered(*contents: str, prompting: bool = False) -> str:
        turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), contents, strict=False)]
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompting)

    try:
        before, _, after = rendered("Hi", PROBE).rpartition(PROBE)
        spaced = rendered("Hi", f" {PROBE}\n")
        prompt, unprompted = rendered("Hi", prompting=True), rendered("Hi")
    except (TemplateError, ValueError):
        return None
    behind = after[: len(after) - len(after.lstrip())]
    ids = tokenizer(after.lstrip(), add_special_tokens=False).input_ids
    added = tokenizer.added_tokens_decoder
    is_closed = bool(ids) and ids[0] in added and added[ids[0]].special
    # A generation prompt is taken at its word: what it leaves out but for spaces, such as the empty thoughts of Qwen3,
    # is the model's to write.
    left_out = before.removeprefix(prompt) if before.startswith(prompt) else ""
    return AnswerTurn(
        end=ids[0] if is_closed else None,
        before=left_out if left_out.isspace() else "",
        behind=behind if is_closed else "",
        header=left_out if prompt == unprompted and not left_out.isspace() else "",
        trims_start=spaced.startswith(before + PROBE),
        trims_end=spaced.endswith(PROBE + after),
    )

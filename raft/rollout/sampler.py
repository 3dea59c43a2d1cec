"""Prompts to responses with one model on one device: a shared prompt pass, then tokens until every row is done.

Own code rather than ``generate``: k responses share one pass over their prompt, finished rows leave the batch, and
each token is decided by one uniform number that the caller supplies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from raft.data.batching import pad_left
from raft.functional.sampling import draw_tokens
from raft.rollout.cache import with_room

FinishReason = Literal["eos", "stop", "length"]
COMPACT_BELOW = 7 / 8  # rebuild the batch once this share of its rows or less is still running


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn and when a response ends.

    Attributes:
        temperature: 0 is greedy.
        max_tokens: new tokens at most.
        min_tokens: EOS can not be drawn before so many.
        stop: strings that end a response when they appear in its text.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 128
    min_tokens: int = 0
    stop: tuple[str, ...] = ()


@dataclass
class Generated:
    """One response: the ids as drawn (EOS included) and why it ended."""

    tokens: list[int]
    finish_reason: FinishReason


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[int],
    uniforms: torch.Tensor,
    sampling: Sampling,
    tokenizer: Any,
    on_tokens: Callable[[int], None] = lambda num_tokens: None,
) -> list[Generated]:
    """Sample responses.

    Args:
        model: a causal language model in eval mode.
        prompts: token ids; each goes through the model once.
        rows: for every response wanted, the index of its prompt.
        uniforms: (len(rows), max_tokens) in [0, 1): what decides each token.
        sampling: temperature, limits and stop strings.
        tokenizer: its EOS ends a response; its decoder is what stop strings are looked for in.
        on_tokens: told how many tokens each step drew.

    Returns:
        One response for each of ``rows``, in that order.
    """
    device = model.get_input_embeddings().weight.device
    stops = _StopStrings(tokenizer, sampling.stop)
    input_ids, mask = (tensor.to(device) for tensor in pad_left(prompts, tokenizer.pad_token_id))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    output = model(input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    index = torch.tensor(rows, device=device)
    cache = with_room(output.past_key_values, index, sampling.max_tokens)
    logits, mask, position = output.logits[index, -1], mask[index], positions[index, -1]
    uniforms = uniforms.to(device)
    responses = [Generated([], "length") for _ in rows]
    active = list(range(len(rows)))  # response that each row of the batch belongs to
    running = torch.ones(len(rows), dtype=torch.bool, device=device)

    for step in range(sampling.max_tokens):
        if step < sampling.min_tokens:
            logits[:, tokenizer.eos_token_id] = -torch.inf
        tokens = draw_tokens(
            logits,
            uniforms[:, step],
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
        )
        finished = _record(responses, active, running, tokens, tokenizer.eos_token_id, stops)
        on_tokens(int(running.sum()))
        running &= ~finished
        num_running = int(running.sum())
        if num_running == 0 or step == sampling.max_tokens - 1:
            break
        if num_running <= COMPACT_BELOW * len(running):
            keep = running.nonzero().flatten()
            cache.batch_select_indices(keep)
            tokens, mask, position, uniforms, running = (t[keep] for t in (tokens, mask, position, uniforms, running))
            active = [active[i] for i in keep.tolist()]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        position = position + 1
        logits = model(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=position[:, None],
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
    return responses


def _record(
    responses: list[Generated],
    active: Sequence[int],
    running: torch.Tensor,
    tokens: torch.Tensor,
    eos: int,
    stops: _StopStrings,
) -> torch.Tensor:
    """Append each running row's token to its response; True for rows that are finished by it."""
    finished = tokens == eos
    for i, (token, runs) in enumerate(zip(tokens.tolist(), running.tolist(), strict=True)):
        if runs:
            response = responses[active[i]]
            response.tokens.append(token)
            if token == eos:
                response.finish_reason = "eos"
            elif stops.found_in(response.tokens):
                response.finish_reason = "stop"
                finished[i] = True
    return finished


class _StopStrings:
    """Looks for stop strings at the end of a response that grows token by token."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        # A token may be a single byte of a character; a little slack covers tokens without any text.
        self._window = max((len(string.encode()) for string in stop), default=0) + 8

    def found_in(self, tokens: Sequence[int]) -> bool:
        if not self._stop:
            return False
        tail = self._tokenizer.decode(tokens[-self._window :], skip_special_tokens=True)
        return any(stop in tail for stop in self._stop)


def response_text(generated: Generated, sampling: Sampling, tokenizer: Any) -> str:
    """What a reader sees of a response: no special tokens, nothing from a stop string on, no space around it."""
    text = tokenizer.decode(generated.tokens, skip_special_tokens=True)
    if generated.finish_reason == "stop":
        text = text[: min(text.find(stop) for stop in sampling.stop if stop in text)]
    return text.strip()

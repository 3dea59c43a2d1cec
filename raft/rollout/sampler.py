"""Prompts to responses with one model on one device: a shared prompt pass, then tokens until every row is done.

Own code rather than ``generate``: k responses share one pass over their prompt, finished rows leave the batch, and
each token is decided by one uniform number that the caller supplies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from transformers.cache_utils import Cache

from raft.data.batching import pad_left
from raft.data.turns import end_tokens
from raft.errors import UserError
from raft.functional.sampling import draw_tokens
from raft.rollout.cache import is_plain, side_by_side
from raft.rollout.decoding import Decoder, GraphDecoder, Graphs, GrowingDecoder, can_graph
from raft.rollout.sampling import Generated, Sampling

NOTHING = -1  # no token: the response has ended
CHECKED_EVERY = {False: 1, True: 8}  # steps after which the host looks how far the rows are; on CUDA it has to wait


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[int],
    uniforms: torch.Tensor,
    sampling: Sampling,
    tokenizer: Any,
    on_tokens: Callable[[int], None] = lambda num_tokens: None,
    graphs: Graphs | None = None,
    on_step: Callable[[torch.Tensor], object] = lambda tokens: None,
) -> list[Generated]:
    """Sample responses.

    Args:
        model: a causal language model in eval mode.
        prompts: token ids; each goes through the model once.
        rows: for every response wanted, the index of its prompt.
        uniforms: (len(rows), max_tokens) in [0, 1): what decides each token.
        sampling: temperature, limits and stop strings.
        tokenizer: says what ends a response (:func:`raft.data.turns.end_tokens`) and where stop strings are.
        on_tokens: told how many tokens were drawn, every few steps.
        graphs: what earlier calls with this model left to be used again, on a GPU.
        on_step: given each step's tokens, (len(rows),) on the device, ``NOTHING`` where a response had ended.

    Returns:
        One response for each of ``rows``, in that order.

    Raises:
        UserError: if a response goes on from logits that are not finite.
    """
    device = model.get_input_embeddings().weight.device
    ends, uniforms = torch.tensor(end_tokens(tokenizer, model, sampling.stop), device=device), uniforms.to(device)
    logits, decoder = _start(model, prompts, torch.tensor(rows, device=device), sampling, tokenizer, graphs)
    stops = _StopStrings(tokenizer, sampling.stop, ends.tolist())
    draw = partial(draw_tokens, temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k)
    # Whose response each row is, whether it goes on, all tokens so far: on the device, so that the host need not wait.
    active, running = torch.arange(len(rows), device=device), torch.ones(len(rows), dtype=torch.bool, device=device)
    drawn = torch.full((len(rows), sampling.max_tokens), NOTHING, device=device)
    num_reported, num_ids = 0, logits.shape[-1]
    for step in range(sampling.max_tokens):
        if step < sampling.min_tokens:
            logits[:, ends] = -torch.inf
        tokens = draw(logits, uniforms[active, step])
        drawn[active, step] = tokens.where(running, NOTHING)
        running = running & (tokens[:, None] != ends).all(1) & ~stops.reached(drawn, active, running, step)
        on_step(drawn[:, step])
        if step == sampling.max_tokens - 1:
            break
        if step % CHECKED_EVERY[device.type == "cuda"] == 0:
            num_drawn, num_running = _counts(drawn, running, num_ids)
            on_tokens(num_drawn - num_reported)
            num_reported = num_drawn
            if num_running == 0:
                break
            if num_running <= decoder.compacts_below * len(running):
                decoder.keep(keep := running.nonzero().flatten())
                tokens, active, running = tokens[keep], active[keep], running[keep]
        logits = decoder.step(tokens.clamp(max=num_ids - 1))
    on_tokens(_counts(drawn, running, num_ids)[0] - num_reported)
    return [_response(row, ends.tolist(), i in stops.found) for i, row in enumerate(drawn.tolist())]


def _counts(drawn: torch.Tensor, running: torch.Tensor, num_ids: int) -> tuple[int, int]:
    """Tokens drawn so far and responses that go on, in one wait for the device.

    Raises:
        UserError: if what was drawn is no token: ids from ``num_ids`` on say that logits are not finite.
    """
    num_drawn, num_running, largest = torch.stack([(drawn != NOTHING).sum(), running.sum(), drawn.max()]).tolist()
    if largest >= num_ids:
        raise UserError(
            "the policy's logits are not finite (NaN or infinity), so that no token can be drawn from them: have its "
            "weights diverged, or does it need --dtype fp32?"
        )
    return num_drawn, num_running


def _start(
    model: Any,
    prompts: Sequence[Sequence[int]],
    rows: torch.Tensor,
    sampling: Sampling,
    tokenizer: Any,
    graphs: Graphs | None,
) -> tuple[torch.Tensor, Decoder]:
    """The prompts, once: the logits (R, V) of every row's first token, and what takes the steps from there."""
    input_ids, mask = (tensor.to(rows.device) for tensor in pad_left(prompts, tokenizer.pad_token_id))
    logits, cache = _prompt_pass(model, input_ids, mask, [len(prompt) for prompt in prompts])
    logits = logits[rows]
    if can_graph(model, cache):
        return logits, GraphDecoder(graphs or Graphs(model), cache, rows, mask, sampling.max_tokens)
    return logits, GrowingDecoder(model, cache, rows, mask, sampling.max_tokens)


def _prompt_pass(
    model: Any, input_ids: torch.Tensor, mask: torch.Tensor, lengths: Sequence[int]
) -> tuple[torch.Tensor, Cache]:
    """Logits (P, V) at the end of prompts (P, L), padded on the left, and the cache of all.

    A CPU computes padding as slowly as text, so that prompts go in groups of similar length there. A GPU is quicker
    with all of them at once.
    """
    groups = similar_lengths(lengths) if input_ids.device.type == "cpu" else [list(range(len(lengths)))]
    logits = torch.empty(0)
    caches: list[Cache] = []
    for group in groups:
        width = max(lengths[i] for i in group)
        ids, seen = input_ids[group, -width:], mask[group, -width:]
        positions = (seen.cumsum(-1) - 1).clamp(min=0)
        output = model(input_ids=ids, attention_mask=seen, position_ids=positions, use_cache=True, logits_to_keep=1)
        caches.append(output.past_key_values)
        if len(groups) > 1 and not is_plain(caches[0]):
            return _prompt_pass(model, input_ids, mask, [input_ids.shape[1]] * len(lengths))
        if not len(logits):
            logits = output.logits.new_empty(len(lengths), output.logits.shape[-1])
        logits[group] = output.logits[:, -1]
    return logits, caches[0] if len(caches) == 1 else side_by_side(caches, groups)


def similar_lengths(lengths: Sequence[int], ratio: float = 0.75) -> list[list[int]]:
    """Indices in groups, in each of which the shortest has at least ``ratio`` of the longest's length.

    Within a group they stay in order: a single group is all of them as they were.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not groups or lengths[i] < ratio * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(i)
    return [sorted(group) for group in groups]


def _response(row: Sequence[int], ends: Sequence[int], stopped: bool) -> Generated:
    tokens = list(takewhile(lambda token: token != NOTHING, row))
    return Generated(tokens, "stop" if stopped else "eos" if tokens[-1] in ends else "length")


class _StopStrings:
    """Looks for stop strings at the end of responses that grow token by token; remembers which have one."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], ends: Sequence[int]) -> None:
        self._tokenizer, self._stop, self._ends = tokenizer, stop, ends
        # A token may be a single byte of a character; a little slack covers tokens without any text.
        self._window = max((len(string.encode()) for string in stop), default=0) + 8
        self.found: set[int] = set()

    def reached(self, drawn: torch.Tensor, active: torch.Tensor, running: torch.Tensor, step: int) -> torch.Tensor:
        """(R,), True for the rows of the batch whose response has one after this step. EOS counts before them."""
        reached = torch.zeros_like(running)
        if not self._stop:
            return reached
        tails = drawn[active, max(0, step + 1 - self._window) : step + 1].tolist()
        for i, (response, runs, tail) in enumerate(zip(active.tolist(), running.tolist(), tails, strict=True)):
            if runs and tail[-1] not in self._ends and self._is_in(tail):
                self.found.add(response)
                reached[i] = True
        return reached

    def _is_in(self, tokens: Sequence[int]) -> bool:
        tail = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return any(stop in tail for stop in self._stop)


def response_text(generated: Generated, sampling: Sampling, tokenizer: Any) -> str:
    """What a reader sees of a response: no special tokens, nothing from a stop string on, no space around it."""
    text = tokenizer.decode(generated.tokens, skip_special_tokens=True)
    if generated.finish_reason == "stop":
        text = text[: min((text.find(stop) for stop in sampling.stop if stop in text), default=len(text))]
    return text.strip()

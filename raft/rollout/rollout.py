"""Many prompts to many responses over all ranks, in chunks whose content never depends on who draws them.

A chunk has a fixed composition and its own random numbers, drawn from (run seed, purpose, iteration, chunk). Ranks
take the next chunk from a shared counter. The same run therefore gives the same samples on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from raft import distributed, journal
from raft.memory import in_halves
from raft.rollout.cache import cache_bytes
from raft.rollout.decoding import Graphs
from raft.rollout.sampler import Generated, Sampling, generate

PURPOSES = {"sampling": 0, "held_out": 1}


@dataclass(frozen=True)
class Chunk:
    """Samples that are drawn together: their numbers, and the prompt each of them answers."""

    sample_ids: list[int]
    prompt_indices: list[int]


def plan_chunks(prompt_lengths: Sequence[int], num_samples: int, rows_per_chunk: int) -> list[Chunk]:
    """Divide the samples of an iteration into chunks.

    Prompts of similar length share a chunk (less padding); sample j of prompt i is number ``i * num_samples + j``.

    Args:
        prompt_lengths: tokens of every prompt.
        num_samples: responses a prompt gets.
        rows_per_chunk: responses drawn together at most.
    """
    order = sorted(range(len(prompt_lengths)), key=lambda i: (-prompt_lengths[i], i))
    samples = [(i * num_samples + j, i) for i in order for j in range(num_samples)]
    return [
        Chunk([sample for sample, _ in part], [prompt for _, prompt in part])
        for part in (samples[at : at + rows_per_chunk] for at in range(0, len(samples), rows_per_chunk))
    ]


def default_rows(model_config: Any, width: int, dtype: torch.dtype) -> int:
    """Responses to sample at once where nobody says how many.

    64 on a CPU, which gains nothing from more. On a GPU 512, or the power of two whose keys and values take a quarter
    of its memory: the other three are for weights, optimizer and logits. The same GPUs give the same number.

    Args:
        width: tokens of prompt and response at most.
    """
    device = distributed.device()
    if device.type != "cuda":
        return 64
    quarter = torch.cuda.get_device_properties(device).total_memory / 4
    rows = max(1, int(quarter / cache_bytes(model_config, width, dtype)))
    return min(512, 2 ** (rows.bit_length() - 1))


def rollout(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    num_samples: int,
    sampling: Sampling,
    tokenizer: Any,
    rows_per_chunk: int,
    seed: int,
    iteration: int,
    purpose: str = "sampling",
    attempt: str = "",
) -> list[Generated]:
    """Draw ``num_samples`` responses to each prompt, on all ranks together.

    Args:
        model: the policy in eval mode with whole weights (``Engine.generating``), the same on every rank.
        prompts: token ids.
        attempt: tells apart repeated calls for one iteration; shared by the ranks.

    Returns:
        On every rank, all responses in the order of their sample numbers.
    """
    chunks = plan_chunks([len(prompt) for prompt in prompts], num_samples, rows_per_chunk)
    total = len(prompts) * num_samples
    with tqdm(total=total, desc=purpose, unit="response", leave=False, disable=not distributed.is_main()) as progress:
        meter, graphs = _Meter(progress), Graphs(model)

        def draw(number: int) -> list[Any]:
            random_key = [seed, PURPOSES[purpose], iteration, number]
            drawn = _draw(model, prompts, chunks[number], random_key, sampling, tokenizer, meter, graphs)
            return [[one.tokens, one.finish_reason] for one in drawn]

        def key(number: int) -> list[Any]:
            asked = [list(prompts[i]) for i in chunks[number].prompt_indices]
            return [seed, PURPOSES[purpose], iteration, number, asked, asdict(sampling)]

        drawn = journal.share(
            f"{purpose}/{iteration}/{attempt}",
            len(chunks),
            draw,
            key=key,
            on_done=lambda number: meter.done(len(chunks[number].sample_ids)),
        )
    responses = {
        sample: Generated(*one)
        for chunk, part in zip(chunks, drawn, strict=True)
        for sample, one in zip(chunk.sample_ids, part, strict=True)
    }
    assert len(responses) == total, "every sample is drawn exactly once"
    return [responses[i] for i in range(total)]


def _draw(
    model: Any,
    prompts: Sequence[Sequence[int]],
    chunk: Chunk,
    key: list[int],
    sampling: Sampling,
    tokenizer: Any,
    on_tokens: Callable[[int], None],
    graphs: Graphs,
) -> list[Generated]:
    uniforms = np.random.default_rng(key).random((len(chunk.sample_ids), sampling.max_tokens), dtype=np.float32)

    def draw(rows: range) -> list[Generated]:
        asked = [chunk.prompt_indices[row] for row in rows]
        unique = list(dict.fromkeys(asked))
        place = {prompt: i for i, prompt in enumerate(unique)}
        numbers = torch.from_numpy(uniforms[rows.start : rows.stop])
        texts = [prompts[i] for i in unique]
        return generate(model, texts, [place[i] for i in asked], numbers, sampling, tokenizer, on_tokens, graphs)

    return in_halves(draw, len(chunk.sample_ids), what="responses")


class _Meter:
    """Shows tokens per second beside the bar of finished responses."""

    def __init__(self, progress: Any) -> None:
        self._progress, self._tokens = progress, 0

    def __call__(self, num_tokens: int) -> None:
        self._tokens += num_tokens
        seconds = self._progress.format_dict["elapsed"]
        if seconds:
            self._progress.set_postfix_str(f"{self._tokens / seconds:,.0f} tokens/s", refresh=False)
            self._progress.update(0)

    def done(self, num_responses: int) -> None:
        self._progress.update(num_responses)

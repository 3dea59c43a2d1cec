"""Many prompts to many responses over all ranks, in chunks of which a rank takes the next from a shared counter.

Every sample has random numbers of its own, drawn from (run seed, purpose, iteration, sample). The same run therefore
gives the same samples whoever draws them, and in whatever chunks; of other chunks only sums are rounded otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import torch

from raft import distributed, journal
from raft.bars import tqdm
from raft.memory import device_memory
from raft.rollout.backend import Backend
from raft.rollout.cache import cache_bytes
from raft.rollout.sampling import Generated, Sampling

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


def default_rows(
    model_config: Any,
    width: int,
    dtype: torch.dtype,
    *,
    num_samples: int,
    num_processes: int | None = None,
    memory: int | None = None,
) -> int:
    """Responses to sample at once, at most, where nobody says how many.

    256 on a CPU and 1,024 on a GPU, or the power of two whose keys and values take a quarter of the process's memory:
    the other three are for weights, optimizer and logits. Several ranks get fewer, so that each has equally many
    chunks. Machines of one kind give the same number.

    Args:
        width: tokens of prompt and response at most.
        num_samples: responses that are shared out.
        num_processes: that share them; None is those of this run.
        memory: bytes that a process has; None is what it has on this machine.
    """
    num_processes = num_processes or distributed.world_size()
    device = distributed.device()
    quarter = (memory or device_memory(device, num_processes)) // 4
    rows = max(1, quarter // cache_bytes(model_config, width, dtype))
    at_most = min(1024 if device.type == "cuda" else 256, 2 ** (rows.bit_length() - 1))
    if num_processes == 1:
        return at_most
    num_chunks = num_processes * ceil(num_samples / (num_processes * at_most))
    return ceil(num_samples / num_chunks)


def rollout(
    backend: Backend,
    prompts: Sequence[Sequence[int]],
    *,
    num_samples: int,
    sampling: Sampling,
    rows_per_chunk: int,
    seed: int,
    iteration: int,
    purpose: str = "sampling",
    attempt: str = "",
) -> list[Generated]:
    """Draw ``num_samples`` responses to each prompt, on all ranks together.

    Args:
        backend: what draws, within its ``drawing_from``; of one kind on every rank.
        prompts: token ids.
        attempt: tells apart repeated calls for one iteration; shared by the ranks.

    Returns:
        On every rank, all responses in the order of their sample numbers.
    """
    chunks = plan_chunks([len(prompt) for prompt in prompts], num_samples, rows_per_chunk)
    total = len(prompts) * num_samples
    with tqdm(total=total, desc=purpose, unit="response", leave=False, disable=not distributed.is_main()) as progress:
        meter = _Meter(progress)

        def random_keys(number: int) -> list[list[int]]:
            return [[seed, PURPOSES[purpose], iteration, sample] for sample in chunks[number].sample_ids]

        def draw(number: int) -> list[Any]:
            drawn = backend.draw(prompts, chunks[number].prompt_indices, random_keys(number), sampling, meter)
            return [[one.tokens, one.finish_reason] for one in drawn]

        def key(number: int) -> list[Any]:
            asked = [list(prompts[i]) for i in chunks[number].prompt_indices]
            return [random_keys(number), asked, asdict(sampling), *backend.identity]

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

"""What is measured part by part: sampling and scoring, here and as others do it. Training: ``training_peers``.

Each function runs in a process of its own and gives :class:`Timed`. The texts are responses that this toolkit sampled
from the model, written to ``Texts``: the same rows for everybody.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import Work, load_classifier, load_tokenizer, peak_rss_mib, prompt_batches, silence

PLAIN_BATCH = 16  # texts at once of a scoring loop as one writes it


@dataclass
class Timed:
    """One measurement.

    Attributes:
        seconds: of every repetition that counts.
        amounts: what each of them got done, in the part's unit: tokens of responses, texts, tokens trained on.
        peak_mib: largest resident memory of the process.
        notes: more numbers by name, means over the repetitions.
    """

    seconds: list[float]
    amounts: list[float]
    peak_mib: float = 0.0
    notes: dict[str, float] = field(default_factory=dict)

    def joined(self, later: Timed) -> Timed:
        """This one and a later one of the same; notes are the later's."""
        peak = max(self.peak_mib, later.peak_mib)
        return Timed(self.seconds + later.seconds, self.amounts + later.amounts, peak, later.notes)


def repeat(work: Work, once: Callable[[], float]) -> Timed:
    """Time ``iterations`` calls, after one that warms up; ``once`` gives the amount it got done."""
    seconds, amounts = [], []
    for _ in range(work.num_iterations):
        begin = time.perf_counter()
        amounts.append(once())
        seconds.append(time.perf_counter() - begin)
    return Timed(work.timed(seconds), work.timed(amounts), peak_rss_mib())


# ---------------------------------------------------------------- sampling


def sample_raft(
    work: Work, texts: str | None = None, stop: tuple[str, ...] = (), at_once: int | None = None
) -> Timed:
    """The sampler, as ``raft align`` calls it. With ``texts`` the responses are written there.

    On several ranks they share the chunks, and each gives the time of all of them.
    """
    from raft.rollout.backend import NativeBackend
    from raft.rollout.rollout import default_rows, rollout
    from raft.rollout.sampling import Sampling

    model, tokenizer, messages = _policy(work)
    prompts = [_prompt_ids(tokenizer, one) for one in messages]
    sampling = Sampling(max_tokens=work.output_max_length, stop=stop)
    width, num_samples = work.prompt_max_length + work.output_max_length, len(prompts) * work.num_samples_per_prompt
    rows = at_once or default_rows(model.config, width, model.dtype, num_samples=num_samples)
    backend = NativeBackend(tokenizer)
    responses: list[Any] = []
    calls = itertools.count()

    def once() -> float:
        with backend.drawing_from(nullcontext(model)):
            responses[:] = rollout(
                backend, prompts, num_samples=work.num_samples_per_prompt, sampling=sampling, rows_per_chunk=rows,
                seed=work.seed, iteration=next(calls),
            )  # fmt: skip
        return float(sum(len(one.tokens) for one in responses))

    with silence():
        timed = repeat(work, once)
    if texts:
        rows_of_texts = [
            {"prompt": messages[i // work.num_samples_per_prompt], "response": tokenizer.decode(one.tokens, True)}
            for i, one in enumerate(responses)
        ]
        Path(texts).write_text("".join(json.dumps(row) + "\n" for row in rows_of_texts))
    lengths = [len(one.tokens) for one in responses]
    timed.notes |= {"tokens_a_response": statistics.mean(lengths), "deviation": statistics.pstdev(lengths)}
    return timed


def sample_raft_64(work: Work) -> Timed:
    """The sampler with no more than 64 responses at once, whatever memory there is."""
    return sample_raft(work, at_once=64)


def sample_generate(work: Work) -> Timed:
    """One call of ``generate`` with ``num_return_sequences``, as users write it."""
    import torch

    model, tokenizer, messages = _policy(work)
    texts = [tokenizer.apply_chat_template(m, tokenize=False, add_generation_prompt=True) for m in messages]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    width = inputs.input_ids.shape[1]

    def once() -> float:
        with torch.no_grad():
            tokens = model.generate(
                input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, do_sample=True, temperature=1.0,
                top_k=0, top_p=1.0, num_return_sequences=work.num_samples_per_prompt,
                max_new_tokens=work.output_max_length, pad_token_id=tokenizer.pad_token_id,
            )[:, width:]  # fmt: skip
        ended = (tokens == tokenizer.eos_token_id).int().cumsum(1)
        return float(((ended == 0) | ((ended == 1) & (tokens == tokenizer.eos_token_id))).sum())

    torch.manual_seed(work.seed)
    return repeat(work, once)


def _policy(work: Work) -> tuple[Any, Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    with silence():
        model: Any = AutoModelForCausalLM.from_pretrained(work.model_name_or_path, dtype=compute_dtype()).eval()
    tokenizer = load_tokenizer(work.model_name_or_path)
    torch.manual_seed(work.seed)
    return model, tokenizer, prompt_batches(work, tokenizer)[0]


def _prompt_ids(tokenizer: Any, messages: Any) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def compute_dtype() -> Any:
    """The precision that ``--dtype auto`` takes here, for everybody."""
    from raft.models.loading import DTYPES
    from raft.precision import resolve_dtype

    return DTYPES[resolve_dtype("auto")]


# ---------------------------------------------------------------- scoring


def score_raft(work: Work, texts: str, *, sharing: bool = True) -> Timed:
    """The reward model as ``raft align`` reads it: prompts once for their responses."""
    from raft.rewards.reward_model import load_reward_model
    from raft.rewards.source import Candidate

    with silence():
        model = load_reward_model(
            work.reward_model_or_path, base=work.reward_base_model, dtype="auto", batch_size=32, test=False
        )
    candidates = [Candidate(row["prompt"], row["response"]) for row in rows_of(texts)]
    shared = model.score(candidates, name="benchmark", progress=None)
    model.shares_prompts = model.shares_prompts and sharing
    scores: list[float] = []

    def once() -> float:
        scores[:] = model.score(candidates, name="benchmark", progress=None)
        return float(len(candidates))

    timed = repeat(work, once)
    if not sharing:
        timed.notes["largest_difference_e-6"] = 1e6 * max(abs(a - b) for a, b in zip(scores, shared, strict=True))
    return timed


def score_sorted(work: Work, texts: str) -> Timed:
    """The same, each text whole, sorted by length; and how far scores are from those with shared prompts."""
    return score_raft(work, texts, sharing=False)


def score_plain(work: Work, texts: str, batch_size: int = PLAIN_BATCH) -> Timed:
    """Padded batches of texts as they come, the adapter beside its base: a loop as one writes it."""
    import torch

    with silence():
        classifier, tokenizer = load_classifier(work, merged=False, dtype=str(compute_dtype()).removeprefix("torch."))
    rows = rows_of(texts)
    whole = [[*row["prompt"], {"role": "assistant", "content": row["response"]}] for row in rows]
    dialogues = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in whole]

    @torch.no_grad()
    def once() -> float:
        for at in range(0, len(dialogues), batch_size):
            batch = dialogues[at : at + batch_size]
            inputs = tokenizer(batch, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
            classifier(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)
        return float(len(dialogues))

    return repeat(work, once)


def score_singly(work: Work, texts: str) -> Timed:
    """One text at a time."""
    return score_plain(work, texts, 1)


def rows_of(texts: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(texts).read_text().splitlines()]

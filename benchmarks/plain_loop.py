"""RAFT as a loop that one writes with transformers, peft and torch; and in the schedule of earlier code.

Letters: b prompts, k responses each, N = b*k, P prompt tokens and R response tokens with padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from benchmarks.common import (
    WEIGHTS,
    Measurement,
    Precision,
    Stopwatch,
    Work,
    classifier_of,
    load_tokenizer,
    prompt_batches,
    silence,
)

MICRO_BATCH = 8  # sequences that go through the model at once in training
SCORING_BATCH = 16


@dataclass
class PlainLoop:
    """The parts of a loop as one writes it with transformers, peft and torch."""

    work: Work
    precision: Precision
    policy: Any
    tokenizer: Any
    classifier: Any
    classifier_tokenizer: Any
    optimizer: Any


@dataclass
class Samples:
    """Prompts and responses side by side: ``tokens`` and ``mask`` (N, P + R), the prompts P wide and padded left."""

    tokens: Any
    mask: Any
    prompt_width: int


def measure_plain(work: Work, precision: Precision) -> Measurement:
    """``generate`` with k responses a prompt, scores in batches as they come, padded fine-tuning on the best."""
    with silence():
        loop = build_plain(work, precision)
        watch, lengths = Stopwatch(), []
        for messages in prompt_batches(work, loop.tokenizer):
            samples = plain_iteration(loop, messages, watch)
            watch.lap()
            lengths.append(float(samples.mask[:, samples.prompt_width :].sum(1).float().mean()))
    return watch.measurement(work, lengths)


def plain_iteration(loop: PlainLoop, messages: Sequence[Sequence[dict[str, str]]], watch: Stopwatch) -> Samples:
    """Sample, score, and train on the best response to every prompt; gives all of them."""
    watch.start()
    with watch.phase("sampling"):
        samples = plain_sample(loop, messages)
    with watch.phase("scoring"):
        scores = plain_score(loop, messages, samples)
    with watch.phase("training"):
        plain_train(loop, samples, best_of_each(scores, loop.work.num_samples_per_prompt))
    return samples


def measure_old(work: Work, precision: Precision) -> Measurement:
    """The schedule of earlier RAFT code: a prompt's k responses at a time, scored one by one, padded fine-tuning."""
    with silence():
        loop = build_plain(work, precision)
        watch, lengths = Stopwatch(), []
        for messages in prompt_batches(work, loop.tokenizer):
            samples = old_iteration(loop, messages, watch)
            watch.lap()
            lengths.append(float(samples.mask[:, samples.prompt_width :].sum(1).float().mean()))
    return watch.measurement(work, lengths)


def old_iteration(loop: PlainLoop, messages: Sequence[Sequence[dict[str, str]]], watch: Stopwatch) -> Samples:
    """Sample and score prompt by prompt, then train on the best response to each; gives those."""
    watch.start()
    best = []
    for one in messages:
        with watch.phase("sampling"):
            samples = plain_sample(loop, [one])
        with watch.phase("scoring"):
            chosen = best_of_each(plain_score(loop, [one], samples, 1), loop.work.num_samples_per_prompt)
        best.append(Samples(samples.tokens[chosen], samples.mask[chosen], samples.prompt_width))
    with watch.phase("training"):
        together = stack(best, loop.tokenizer.pad_token_id)
        plain_train(loop, together, range(len(messages)))
    return together


def stack(samples: Sequence[Samples], pad_token_id: int) -> Samples:
    """Samples of different widths in one tensor: prompts padded on the left, responses on the right."""
    import torch
    from torch.nn.functional import pad

    width = max(one.prompt_width for one in samples)
    length = max(one.tokens.shape[1] - one.prompt_width for one in samples)

    def widened(tensor: Any, prompt_width: int, value: int) -> Any:
        return pad(tensor, (width - prompt_width, length - tensor.shape[1] + prompt_width), value=value)

    return Samples(
        torch.cat([widened(one.tokens, one.prompt_width, pad_token_id) for one in samples]),
        torch.cat([widened(one.mask, one.prompt_width, 0) for one in samples]),
        width,
    )


def build_plain(work: Work, precision: Precision) -> PlainLoop:
    """Load everything."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(work.seed)
    dtype = getattr(torch, WEIGHTS[precision])
    policy: Any = AutoModelForCausalLM.from_pretrained(work.model_name_or_path, dtype=dtype)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=work.learning_rate, weight_decay=0.0)
    tokenizer = load_tokenizer(work.model_name_or_path)
    return PlainLoop(work, precision, policy, tokenizer, *classifier_of(work, precision), optimizer)


def _autocast(precision: Precision) -> AbstractContextManager[Any]:
    import torch

    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast")


def plain_sample(loop: PlainLoop, messages: Sequence[Sequence[dict[str, str]]]) -> Samples:
    """Draw k responses to each prompt in one call of ``generate``."""
    import torch

    work, tokenizer = loop.work, loop.tokenizer
    texts = [tokenizer.apply_chat_template(m, tokenize=False, add_generation_prompt=True) for m in messages]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    loop.policy.eval()
    with torch.no_grad(), _autocast(loop.precision):
        tokens = loop.policy.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=work.num_samples_per_prompt,
            max_new_tokens=work.output_max_length,
            pad_token_id=tokenizer.pad_token_id,
            cache_implementation=work.cache_implementation,
            disable_compile=True,
        )
    width = inputs.input_ids.shape[1]
    is_eos = (tokens[:, width:] == tokenizer.eos_token_id).long()
    response_mask = (is_eos.cumsum(1) - is_eos == 0).long()  # up to the first EOS, that one included
    prompt_mask = inputs.attention_mask.repeat_interleave(work.num_samples_per_prompt, 0)
    return Samples(tokens, torch.cat([prompt_mask, response_mask], 1), width)


def plain_score(
    loop: PlainLoop, messages: Sequence[Sequence[dict[str, str]]], samples: Samples, batch_size: int = SCORING_BATCH
) -> Any:
    """Score every response; gives (N,)."""
    import torch

    tokenizer, responses = loop.classifier_tokenizer, samples.tokens[:, samples.prompt_width :]
    texts = []
    for i, response in enumerate(loop.tokenizer.batch_decode(responses, skip_special_tokens=True)):
        answer = {"role": "assistant", "content": response}
        dialogue = [*messages[i // loop.work.num_samples_per_prompt], answer]
        texts.append(tokenizer.apply_chat_template(dialogue, tokenize=False))
    scores = []
    with torch.no_grad():
        for at in range(0, len(texts), batch_size):
            batch = texts[at : at + batch_size]
            inputs = tokenizer(batch, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
            inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            scores.append(loop.classifier(**inputs).logits[:, 0])
    return torch.cat(scores).float()


def best_of_each(scores: Any, num_samples: int) -> Any:
    """Rows (b,) with the best score of every prompt; ``scores`` (N,)."""
    best = scores.view(-1, num_samples).argmax(1)
    return best + num_samples * best.new_tensor(range(len(best)))


def plain_train(loop: PlainLoop, samples: Samples, chosen: Any) -> float:
    """One optimizer step on the chosen rows, loss on their responses alone; gives the loss."""
    import torch

    chosen = torch.as_tensor(chosen)
    tokens, mask = samples.tokens[chosen], samples.mask[chosen]
    labels = tokens.masked_fill(mask == 0, -100)
    labels[:, : samples.prompt_width] = -100
    micro_batches = list(zip(*(tensor.split(MICRO_BATCH) for tensor in (tokens, mask, labels)), strict=True))
    total = 0.0
    loop.policy.train()
    for input_ids, attention_mask, targets in micro_batches:
        with _autocast(loop.precision):
            loss = loop.policy(input_ids=input_ids, attention_mask=attention_mask, labels=targets).loss
        (loss / len(micro_batches)).backward()
        total += loss.item() / len(micro_batches)
    torch.nn.utils.clip_grad_norm_(loop.policy.parameters(), 1.0)
    loop.optimizer.step()
    loop.optimizer.zero_grad()
    return total

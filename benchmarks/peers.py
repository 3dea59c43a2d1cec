"""What is compared: one iteration of RAFT by this toolkit, by a plain loop, and one step of TRL's GRPOTrainer.

Each ``measure_*`` function is run in a process of its own and gives a :class:`Measurement`. Letters: b prompts, k
responses each, N = b*k, P prompt tokens and R response tokens with padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import (
    WEIGHTS,
    Measurement,
    Precision,
    Stopwatch,
    Work,
    load_classifier,
    load_tokenizer,
    prompt_batches,
    silence,
)

MICRO_BATCH = 8  # sequences that go through the model at once in training, this toolkit and the plain loop
TRL_MICRO_BATCH = 16  # the same for TRL, which trains on all k responses
SCORING_BATCH = 16  # of the plain loop

# ---------------------------------------------------------------- this toolkit


def measure_raft(work: Work) -> Measurement:
    """Run ``raft align`` itself and take the time from drawing an iteration's prompts to its last written curve."""
    from raft.stages.align import Alignment
    from raft.stages.common import take

    with TemporaryDirectory() as folder, silence():
        alignment: Any = Alignment(align_config(work, folder))
        watch, spent = Stopwatch(), alignment.progress.seconds
        before: dict[str, float] = {}

        def begin() -> None:
            before.update(spent)
            watch.start()

        def end() -> None:
            for phase in spent:
                watch.add(phase, spent[phase] - before.get(phase, 0.0))
            watch.lap()

        alignment.take_prompts = _around(alignment.take_prompts, before=begin)
        alignment.record = _around(alignment.record, after=end)
        take(alignment.directory, alignment.config)
        alignment.run()
        lengths = [row["response/length_mean"] for row in _log(folder) if "response/length_mean" in row]
    phases = {name for lap in watch.laps for name, seconds in lap.items() if seconds}
    watch.laps = [{name: seconds for name, seconds in lap.items() if name in phases} for lap in watch.laps]
    return watch.measurement(lengths, {name: seconds for name, seconds in spent.items() if name not in phases})


def align_config(work: Work, folder: str) -> Any:
    """The flags of ``raft align`` for this work: one optimizer step an iteration, held-out only at start and end."""
    from raft.arguments import from_dict
    from raft.stages.align_config import AlignConfig

    num_iterations = 1 + work.iterations
    micro_batch = gcd(work.num_prompts, MICRO_BATCH)
    shared = ["model_name_or_path", "reward_model_or_path", "reward_base_model", "dataset_path", "learning_rate"]
    shared += ["num_samples_per_prompt", "output_max_length", "prompt_max_length", "num_eval_prompts", "seed"]
    own = {
        "output_dir": f"{folder}/run",
        "num_raft_iteration": num_iterations,
        "raft_batch_size": work.num_prompts,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": work.num_prompts // micro_batch,
        "num_train_epochs": 1,  # one pass, as the peers make
        "eval_every_n_iterations": 0,
        "save_every_n_iterations": num_iterations,
    }
    return from_dict(AlignConfig, {name: getattr(work, name) for name in shared} | own)


def _around(
    function: Callable[..., Any],
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
) -> Callable[..., Any]:
    def wrapped(*arguments: Any) -> Any:
        before()
        result = function(*arguments)
        after()
        return result

    return wrapped


def _log(folder: str) -> list[dict[str, Any]]:
    from raft.run_directory import read_jsonl

    return read_jsonl(Path(folder) / "run" / "metrics.jsonl")


# ---------------------------------------------------------------- a plain loop


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
    return watch.measurement(lengths)


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


def build_plain(work: Work, precision: Precision) -> PlainLoop:
    """Load everything."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(work.seed)
    dtype = getattr(torch, WEIGHTS[precision])
    policy: Any = AutoModelForCausalLM.from_pretrained(work.model_name_or_path, dtype=dtype)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=work.learning_rate, weight_decay=0.0)
    tokenizer = load_tokenizer(work.model_name_or_path)
    return PlainLoop(work, precision, policy, tokenizer, *load_classifier(work, merged=False), optimizer)


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


def plain_score(loop: PlainLoop, messages: Sequence[Sequence[dict[str, str]]], samples: Samples) -> Any:
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
        for at in range(0, len(texts), SCORING_BATCH):
            batch = texts[at : at + SCORING_BATCH]
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


# ---------------------------------------------------------------- TRL


def measure_trl(work: Work, precision: Precision) -> Measurement:
    """Steps of TRL's GRPOTrainer, N responses each, the reward model as a model with its adapter merged."""
    from datasets import Dataset
    from trl import GRPOTrainer

    with TemporaryDirectory() as folder, silence():
        tokenizer = load_tokenizer(work.model_name_or_path)
        classifier, classifier_tokenizer = load_classifier(work, merged=True)
        batches, watch = prompt_batches(work, tokenizer), Stopwatch()
        trainer: Any = GRPOTrainer(
            model=work.model_name_or_path,
            reward_funcs=classifier,
            reward_processing_classes=classifier_tokenizer,
            processing_class=tokenizer,
            args=grpo_config(work, precision, folder),
            train_dataset=Dataset.from_list([{"prompt": messages} for batch in batches for messages in batch]),
            callbacks=[_lap_callback(watch)],
        )
        _time_phases(trainer, watch)
        trainer.train()
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "completions/mean_length" in row]
    for lap in watch.laps:
        lap["training"] = lap["total"] - lap["sampling"] - lap["scoring"]
    return watch.measurement(lengths)


def grpo_config(work: Work, precision: Precision, folder: str) -> Any:
    """One optimizer step on N responses, without what costs time: reference model, recomputation, saving, logs."""
    from trl import GRPOConfig

    num_responses = work.num_prompts * work.num_samples_per_prompt
    micro_batch = gcd(num_responses, TRL_MICRO_BATCH)
    return GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=True,
        model_init_kwargs={"dtype": WEIGHTS[precision]},
        cache_implementation=work.cache_implementation,
        num_generations=work.num_samples_per_prompt,
        max_completion_length=work.output_max_length,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        beta=0.0,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=num_responses // micro_batch,
        gradient_checkpointing=False,
        learning_rate=work.learning_rate,
        max_steps=1 + work.iterations,
        shuffle_dataset=False,
        dataloader_pin_memory=False,
        seed=work.seed,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )


def _lap_callback(watch: Stopwatch) -> Any:
    from transformers import TrainerCallback

    class LapCallback(TrainerCallback):
        """From the end of one step to the end of the next: nothing that a step needs is left out."""

        def on_train_begin(self, *arguments: Any, **options: Any) -> None:
            watch.start()

        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            watch.lap()

    return LapCallback()


def _time_phases(trainer: Any, watch: Stopwatch) -> None:
    """Put the stopwatch around the two phases that a GRPO step begins with."""
    for phase, name in (("sampling", "_generate"), ("scoring", "_calculate_rewards")):
        setattr(trainer, name, watch.phase(phase)(getattr(trainer, name)))

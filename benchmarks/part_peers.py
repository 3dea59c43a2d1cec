"""What is measured part by part: sampling, scoring, fine-tuning and reward modelling, here and as others do it.

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
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import Work, load_classifier, load_tokenizer, peak_rss_mib, prompt_batches, silence

ROWS_A_STEP = 8  # of fine-tuning
PAIRS_A_STEP = 4  # of reward modelling
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
    work: Work, texts: str | None = None, stop: tuple[str, ...] = (), rows_per_chunk: int | None = None
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
    rows, backend = rows_per_chunk or default_rows(model.config, 0, model.dtype), NativeBackend(tokenizer)
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
        model: Any = AutoModelForCausalLM.from_pretrained(work.model_name_or_path, dtype=_dtype()).eval()
    tokenizer = load_tokenizer(work.model_name_or_path)
    torch.manual_seed(work.seed)
    return model, tokenizer, prompt_batches(work, tokenizer)[0]


def _prompt_ids(tokenizer: Any, messages: Any) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def _dtype() -> Any:
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
    candidates = [Candidate(row["prompt"], row["response"]) for row in _rows(texts)]
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
        classifier, tokenizer = load_classifier(work, merged=False, dtype=str(_dtype()).removeprefix("torch."))
    rows = _rows(texts)
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


def _rows(texts: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(texts).read_text().splitlines()]


def _of_a_step(rows: list[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    """The rows of every step, the same for everybody and in any order: of as many prompts as there are."""
    return rows[:: max(1, len(rows) // size)][:size]


# ---------------------------------------------------------------- training


def sft_raft(work: Work, texts: str) -> Timed:
    """``raft sft``: the time of its optimizer steps."""
    from raft.stages import sft

    texts_of_step = _of_a_step(_rows(texts), ROWS_A_STEP)
    rows = [{"messages": [*r["prompt"], {"role": "assistant", "content": r["response"]}]} for r in texts_of_step]
    return _stage(work, sft.main, sft.SFTConfig, rows)


def sft_raft_one_bucket(work: Work, texts: str) -> Timed:
    """The same with DeepSpeed's own bucket of half a billion gradients, which are in memory twice then."""
    from raft.engine import engine

    engine.reduce_in_small_buckets = lambda deepspeed_engine: None  # type: ignore[assignment]
    return sft_raft(work, texts)


def reward_raft(work: Work, texts: str) -> Timed:
    """``raft reward``: the time of its optimizer steps."""
    from raft.stages import reward_modeling

    flags = {"use_lora": True}
    return _stage(work, reward_modeling.main, reward_modeling.RewardModelingConfig, _pairs(texts), flags)


def _stage(
    work: Work, main: Callable[[Any], None], kind: Any, rows: list[Any], flags: dict[str, Any] | None = None
) -> Timed:
    from raft.arguments import from_dict
    from raft.engine.engine import Engine

    seconds: list[float] = []
    amounts: list[float] = []
    train_step = Engine.train_step

    def timed(engine: Any, batches: Any, loss_fn: Any) -> Any:
        begin = time.perf_counter()
        found = train_step(engine, batches, loss_fn)
        seconds.append(time.perf_counter() - begin)
        amounts.append(float(len(rows)))
        peaks.append(peak_rss_mib())
        return found

    peaks: list[float] = []
    with TemporaryDirectory() as folder, silence():
        data = Path(folder, "rows.jsonl")
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = {
            "model_name_or_path": work.model_name_or_path, "dataset_path": str(data), "output_dir": f"{folder}/run",
            "per_device_train_batch_size": len(rows), "learning_rate": work.learning_rate,
            "num_train_epochs": work.num_iterations, "max_steps": work.num_iterations,
            "validation_split_percentage": 0, "seed": work.seed,
        }  # fmt: skip
        Engine.train_step = timed  # type: ignore[method-assign]
        main(from_dict(kind, settings | (flags or {})))
    return Timed(work.timed(seconds), work.timed(amounts), peaks[-1])


def _pairs(texts: str) -> list[dict[str, Any]]:
    """Neighbouring responses to one prompt; which is the better does not matter for time."""
    rows = _rows(texts)
    both = [(a, b) for a, b in zip(rows[::2], rows[1::2], strict=False) if a["prompt"] == b["prompt"]]
    answer = "assistant"
    pairs = [
        {
            "prompt": a["prompt"],
            "chosen": [{"role": answer, "content": a["response"]}],
            "rejected": [{"role": answer, "content": b["response"]}],
        }
        for a, b in both
        if a["response"] != b["response"]
    ]
    return _of_a_step(pairs, PAIRS_A_STEP)


def sft_trl(work: Work, texts: str) -> Timed:
    """TRL's SFTTrainer on the same rows, padded."""
    return _sft_trl(work, texts, packing=False)


def sft_trl_packed(work: Work, texts: str) -> Timed:
    """The same rows packed into one."""
    return _sft_trl(work, texts, packing=True)


def _sft_trl(work: Work, texts: str, *, packing: bool) -> Timed:
    from trl import SFTConfig, SFTTrainer

    rows = [
        {"prompt": r["prompt"], "completion": [{"role": "assistant", "content": r["response"]}]}
        for r in _of_a_step(_rows(texts), ROWS_A_STEP)
    ]
    tokenizer = load_tokenizer(work.model_name_or_path)
    lengths = [len(tokenizer.apply_chat_template(r["prompt"] + r["completion"]).input_ids) for r in rows]
    options = {"packing": True, "max_length": sum(lengths)} if packing else {"max_length": max(lengths)}
    return _trl(work, SFTTrainer, SFTConfig, rows, 1 if packing else len(rows), options, tokenizer)


def reward_trl(work: Work, texts: str) -> Timed:
    """TRL's RewardTrainer on the same pairs, LoRA of the same rank."""
    from peft import LoraConfig
    from trl import RewardConfig, RewardTrainer

    from raft.config import LoraConfig as OurLora

    ours = OurLora()
    lora = LoraConfig(
        task_type="SEQ_CLS", r=ours.lora_r, lora_alpha=ours.lora_alpha, target_modules="all-linear",
        modules_to_save=["score"],
    )  # fmt: skip
    tokenizer = load_tokenizer(work.model_name_or_path)
    options = {"max_length": 1024}
    pairs = _pairs(texts)
    return _trl(work, RewardTrainer, RewardConfig, pairs, len(pairs), options, tokenizer, lora)


def _trl(
    work: Work,
    trainer_kind: Any,
    config_kind: Any,
    rows: list[Any],
    batch: int,
    options: Any,
    tokenizer: Any,
    lora: Any = None,
) -> Timed:
    import torch
    from datasets import Dataset

    from benchmarks.common import Stopwatch
    from benchmarks.peers import _lap_callback

    bf16, watch = _dtype() == torch.bfloat16, Stopwatch()
    with TemporaryDirectory() as folder, silence():
        config = config_kind(
            output_dir=folder, use_cpu=True, bf16=bf16, model_init_kwargs={"dtype": "float32"},
            per_device_train_batch_size=batch, gradient_checkpointing=False, learning_rate=work.learning_rate,
            max_steps=work.num_iterations, dataloader_pin_memory=False, seed=work.seed, save_strategy="no",
            logging_strategy="no", report_to="none", disable_tqdm=True, **options,
        )  # fmt: skip
        more = {"peft_config": lora} if lora else {}
        trainer = trainer_kind(
            model=work.model_name_or_path, args=config, train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer, callbacks=[_lap_callback(watch)], **more,
        )  # fmt: skip
        trainer.train()
    laps = work.timed([lap["total"] for lap in watch.laps])
    return Timed(laps, [float(len(rows))] * len(laps), watch.peak_rss_mib)

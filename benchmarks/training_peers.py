"""Fine-tuning and reward modelling part by part: optimizer steps here and of TRL's trainers, on the same rows.

Each function runs in a process of its own and gives :class:`benchmarks.part_peers.Timed`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import Stopwatch, Work, load_tokenizer, peak_rss_mib, silence
from benchmarks.part_peers import Timed, compute_dtype, rows_of

ROWS_A_STEP = 8  # of fine-tuning
PAIRS_A_STEP = 4  # of reward modelling


def of_a_step(rows: list[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    """The rows of every step, the same for everybody and in any order: of as many prompts as there are."""
    return rows[:: max(1, len(rows) // size)][:size]


def sft_raft(work: Work, texts: str) -> Timed:
    """``raft sft``: the time of its optimizer steps."""
    from raft.stages import sft

    texts_of_step = of_a_step(rows_of(texts), ROWS_A_STEP)
    rows = [{"messages": [*r["prompt"], {"role": "assistant", "content": r["response"]}]} for r in texts_of_step]
    return _stage(work, sft.main, sft.SFTConfig, rows)


def sft_raft_one_bucket(work: Work, texts: str) -> Timed:
    """The same with DeepSpeed's own bucket of half a billion gradients, which are in memory twice then."""
    from raft.engine import engine

    engine.reduce_in_small_buckets = lambda deepspeed_engine: None  # type: ignore[assignment]
    return sft_raft(work, texts)


def sft_raft_padded(work: Work, texts: str) -> Timed:
    """The same with rows padded to the longest of a micro-batch, as on a GPU."""
    from raft.engine import build, loop

    build.reads_documents = lambda model: False  # type: ignore[assignment]
    loop.PASS_COST = 2**30  # no padding is worth another pass
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
    rows = rows_of(texts)
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
    return of_a_step(pairs, PAIRS_A_STEP)


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
        for r in of_a_step(rows_of(texts), ROWS_A_STEP)
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

    from benchmarks.peers import _lap_callback

    bf16, watch = compute_dtype() == torch.bfloat16, Stopwatch()
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

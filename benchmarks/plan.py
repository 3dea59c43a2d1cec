"""`raft plan` against the run: estimated and measured peak of memory, and time, for runs of different kinds.

Each run is the whole command in a process of its own; README.md says what is counted.

    python benchmarks/plan.py
    python benchmarks/plan.py --settings sft-zero0 align-lora
"""

from __future__ import annotations

import io
import json
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script; the runs' processes take this path over
    sys.path.insert(0, str(ROOT))

from benchmarks.common import silence  # noqa: E402
from benchmarks.iteration import cpu_model, machine_label, num_cores, version  # noqa: E402
from benchmarks.shared_base import forget_peak, memory, peak_memory  # noqa: E402
from raft.arguments import argument, parse  # noqa: E402
from raft.errors import UserError  # noqa: E402
from raft.run_directory import write_json  # noqa: E402

MIB = 2**20
SMALL = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 10, "num_attention_heads": 6}
SMALL |= {"num_key_value_heads": 2, "tie_word_embeddings": True}
WORDS = [
    "bread",
    "needs",
    "flour",
    "water",
    "salt",
    "and",
    "time",
    "so",
    "bake",
    "it",
    "until",
    "it",
    "is",
    "brown",
    "and",
    "let",
    "it",
    "rest",
    "for",
    "an",
    "hour",
]

SFT = ("sft", "--dataset_path", "{data}/chats.jsonl", "--max_steps", "2")
ALIGN = ("align", "--dataset_path", "{data}/prompts.jsonl", "--eval_dataset_path", "{data}/held_out.jsonl",
         "--num_raft_iteration", "2", "--eval_every_n_iterations", "0", "--kl_num_responses", "4",
         "--num_train_epochs", "1")  # fmt: skip
SETTINGS: dict[str, tuple[str, ...]] = {
    "sft-zero0": (*SFT, "--model_name_or_path", "{small}", "--dtype", "fp32", "--per_device_train_batch_size", "4",
                  "--max_length", "192"),
    "sft-zero2": (*SFT, "--model_name_or_path", "{small}", "--dtype", "fp32", "--per_device_train_batch_size", "2",
                  "--max_length", "128", "--deepspeed", "scripts/deepspeed/zero2.json"),
    "sft-lora-bf16": (*SFT, "--model_name_or_path", "{small}", "--dtype", "bf16", "--use_lora",
                      "--per_device_train_batch_size", "4", "--max_length", "128"),
    "align-full": (*ALIGN, "--model_name_or_path", "{small}", "--reward_model_or_path", "{reward}", "--dtype", "fp32",
                   "--reward_dtype", "fp32", "--no_reward_self_test", "--raft_batch_size", "4",
                   "--num_samples_per_prompt", "4", "--output_min_length", "32", "--output_max_length", "32",
                   "--per_device_train_batch_size", "4"),
    "align-lora": (*ALIGN, "--model_name_or_path", "{model}", "--reward_model_or_path", "data/reward_model",
                   "--reward_base_model", "{model}", "--use_lora", "--dtype", "fp32", "--reward_dtype", "fp32",
                   "--raft_batch_size", "2", "--num_samples_per_prompt", "2", "--output_min_length", "8",
                   "--output_max_length", "8", "--per_device_train_batch_size", "2"),
    "sft-bf16-zero2": (*SFT, "--model_name_or_path", "{model}", "--dtype", "bf16", "--per_device_train_batch_size", "1",
                       "--max_length", "64", "--deepspeed", "scripts/deepspeed/zero2.json"),
    "sft-large": (*SFT, "--model_name_or_path", "{model}", "--dtype", "fp32", "--per_device_train_batch_size", "2",
                  "--max_length", "64"),
}  # fmt: skip


@dataclass
class Work:
    """Work"""

    model_name_or_path: str = argument("output_models/SmolLM2-135M-Instruct", "The larger model, and the tokenizer.")
    settings: list[str] = argument([], "Which of the settings; none is all.")
    num_threads: int = argument(1, "Threads of torch.")


@dataclass
class Result:
    """Result"""

    label: str | None = argument(None, "This machine's name in the result's file name. Default: its CPU and cores.")
    results_dir: str = argument("benchmarks/results", "Where the result is written.")


@dataclass
class PlanBenchmark:
    """Compare what raft plan says with what runs need."""

    work: Work = field(default_factory=Work)
    result: Result = field(default_factory=Result)

    examples: ClassVar[tuple[str, ...]] = ("python benchmarks/plan.py",)


def main(config: PlanBenchmark) -> dict[str, Any]:
    """Plan and run every setting, print the table and write the result; gives what was written."""
    chosen = config.work.settings or list(SETTINGS)
    if unknown := set(chosen) - set(SETTINGS):
        raise UserError(f"--settings: found {', '.join(unknown)}, allowed are {', '.join(SETTINGS)}.")
    path = Path(config.result.results_dir) / f"plan-{config.result.label or machine_label()}.json"
    result: dict[str, Any] = {
        "machine": {"cpu": cpu_model(), "num_cores": num_cores(), "python": platform.python_version()},
        "num_threads": config.work.num_threads,
        "packages": {name: version(name) for name in ("torch", "transformers", "deepspeed", "peft")},
        "settings": json.loads(path.read_text())["settings"] if config.work.settings and path.is_file() else {},
    }
    with TemporaryDirectory() as folder:
        places = prepare(Path(folder), config.work.model_name_or_path)
        for name in chosen:
            arguments = [word.format(**places) for word in SETTINGS[name]]
            planned = apart(plan, arguments, config.work.num_threads)
            measured = apart(run, [*arguments, "--output_dir", f"{folder}/{name}"], config.work.num_threads)
            result["settings"][name] = row(SETTINGS[name], planned, measured)
            write_json(path, result)
            print(describe(name, result["settings"][name]), flush=True)
    print(f"\nwritten to {path}")
    return result


def prepare(folder: Path, model: str) -> dict[str, str]:
    """A smaller model and reward model with random weights, and data at the limits of the settings."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(model)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id, num_labels=1, **SMALL,
    )  # fmt: skip
    torch.manual_seed(0)
    for name, kind in (("small", LlamaForCausalLM), ("reward", LlamaForSequenceClassification)):
        kind(shape).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    chats = [{"messages": [_turn("user", i, 20 + i), _turn("assistant", i + 1, 400)]} for i in range(8)]
    prompts = [{"prompt": _turn("user", i, 30 + i % 8)["content"]} for i in range(16)]
    for name, rows in (("chats", chats), ("prompts", prompts), ("held_out", prompts[:4])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return {"data": str(folder), "small": str(folder / "small"), "reward": str(folder / "reward"), "model": model}


def _turn(role: str, start: int, num_words: int) -> dict[str, str]:
    return {"role": role, "content": " ".join(WORDS[(start + 3 * i) % len(WORDS)] for i in range(num_words))}


def apart(work: Any, arguments: list[str], num_threads: int) -> dict[str, Any]:
    """Do something in a fresh process."""
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found: dict[str, Any] = pool.submit(work, arguments).result()
    return found


def plan(arguments: list[str]) -> dict[str, Any]:
    """What ``raft plan --json`` says."""
    from raft.cli import main as raft

    said = io.StringIO()
    with redirect_stdout(said):
        code = raft(["plan", *arguments, "--json"])
    assert code == 0, said.getvalue()
    found: dict[str, Any] = json.loads(said.getvalue().splitlines()[-1])
    return found


def run(arguments: list[str]) -> dict[str, Any]:
    """What the command took: bytes at its peak above what its libraries have, on the disk in the end, and seconds."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import datasets  # noqa: F401  # libraries are no models
    import deepspeed  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import peft  # noqa: F401
    import torch.utils.tensorboard
    import transformers.models.llama.modeling_llama  # noqa: F401

    from raft.cli import main as raft
    from raft.stages import align, reward_modeling, sft  # noqa: F401

    before = memory()
    forget_peak()
    begin = time.perf_counter()
    with silence():
        code = raft(arguments)
    assert code == 0, arguments
    directory = Path(arguments[-1])
    return {
        "peak": (peak_memory() - before) * MIB,
        "disk": sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()),
        "seconds": time.perf_counter() - begin,
    }


def row(setting: tuple[str, ...], planned: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """What is written of one setting."""
    disk = sum(size for name, size in planned["disk"].items() if name != "while saving")
    estimated = {"peak": planned["peak"], "disk": disk, "seconds": planned["seconds"].get("run")}
    ratios = {key: estimated[key] / measured[key] for key in measured if estimated[key] is not None}
    return {
        "command": " ".join(setting),
        "estimated": estimated,
        "measured": measured,
        "estimated / measured": ratios,
        "peaks": planned["peaks"],
    }


def describe(name: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    estimated, measured, ratio = found["estimated"], found["measured"], found["estimated / measured"]
    return (
        f"{name:<16} MiB {estimated['peak'] / MIB:>8.0f} {measured['peak'] / MIB:>8.0f} {ratio['peak']:>6.2f}"
        f"   disk {estimated['disk'] / MIB:>8.0f} {measured['disk'] / MIB:>8.0f} {ratio['disk']:>6.2f}"
        f"   seconds {estimated['seconds'] or 0:>7.1f} {measured['seconds']:>7.1f} {ratio.get('seconds', 0):>6.2f}"
    )


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        print(f"{'':<16}     estimated measured  ratio, each time")
        main(parse(PlanBenchmark, sys.argv[1:], prog="python benchmarks/plan.py"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

"""Memory of ``raft align --use_lora`` with a KL penalty: policy, reward model and reference on one base, or on three.

Both runs are whole commands, one iteration long, each in a process of its own. The first iteration's responses are
the same in both, so their scores and log-ratios can be compared. README.md says what is counted.

    python benchmarks/shared_base.py
    python benchmarks/shared_base.py --num_prompts 16 --num_samples_per_prompt 8 --dtype bf16
"""

from __future__ import annotations

import gc
import os
import platform
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script; the runs' processes take this path over
    sys.path.insert(0, str(ROOT))

from benchmarks.common import silence  # noqa: E402
from benchmarks.iteration import cpu_model, machine_label, num_cores, version  # noqa: E402
from raft.arguments import argument, parse  # noqa: E402
from raft.errors import UserError  # noqa: E402
from raft.precision import Dtype  # noqa: E402
from raft.run_directory import read_jsonl, write_json  # noqa: E402

MIB = 2**20
COLUMNS = {"weights": "weights", "peak": "peak", "scoring_seconds": "scoring s"}


@dataclass
class Work:
    """Work: the same for both"""

    model_name_or_path: str = argument("output_models/SmolLM2-135M-Instruct", "Policy, trained by LoRA.")
    reward_model_or_path: str = argument("data/reward_model", "LoRA adapter of a reward model on the same base.")
    dataset_path: str = argument("data/prompts/train.jsonl", "Prompts.")
    dtype: Dtype = argument("auto", "Compute precision of all three.")
    num_prompts: int = argument(8, "b: prompts of the iteration.")
    num_samples_per_prompt: int = argument(4, "k: responses to each prompt.")
    output_max_length: int = argument(32, "Response tokens at most.")
    batch_size: int = argument(8, "Rows in one forward pass of sampling, scoring and training.")


@dataclass
class Result:
    """Result"""

    label: str | None = argument(None, "This machine's name in the result's file name. Default: its CPU and cores.")
    results_dir: str = argument("benchmarks/results", "Where the result is written.")


@dataclass
class SharedBaseBenchmark:
    """Measure what one base model in memory saves, and that scores stay the same."""

    work: Work = field(default_factory=Work)
    result: Result = field(default_factory=Result)

    examples: ClassVar[tuple[str, ...]] = ("python benchmarks/shared_base.py",)


@dataclass
class Measurement:
    """What one run needed.

    Attributes:
        weights: MiB of all parameters in memory after loading, each counted once.
        peak: MiB that the run needed at most, loading included, above what there was before.
        scoring_seconds: of the iteration.
        device: what the memory is of.
        dtype: the policy's precision.
        samples: tokens, score and log-ratio of every response.
    """

    weights: float
    peak: float
    scoring_seconds: float
    device: str
    dtype: str
    samples: list[dict[str, Any]]


def main(config: SharedBaseBenchmark) -> dict[str, Any]:
    """Measure both, print the table and write the result; gives what was written."""
    measured = {name: measure_apart(config.work, name == "shared") for name in ("separate", "shared")}
    differences = compare(measured["separate"], measured["shared"])
    print(describe(measured, differences))
    result = {
        "work": {key: Path(v).name if "path" in key else v for key, v in asdict(config.work).items()},
        "machine": {"cpu": cpu_model(), "num_cores": num_cores(), "python": platform.python_version()},
        "packages": {name: version(name) for name in ("torch", "transformers", "deepspeed", "peft")},
        "measured": {
            name: {key: value for key, value in asdict(found).items() if key != "samples"}
            for name, found in measured.items()
        },
        "differences": differences,
    }
    path = Path(config.result.results_dir) / f"shared_base-{config.result.label or machine_label()}.json"
    write_json(path, result)
    print(f"\nwritten to {path}")
    return result


def measure_apart(work: Work, share: bool) -> Measurement:
    """Measure in a fresh process, so that what one run freed is not counted for the other."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, work, share).result()


def measure(work: Work, share: bool) -> Measurement:
    """Run ``raft align`` in this process."""
    import torch

    from raft.stages.align import Alignment
    from raft.stages.common import take

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with TemporaryDirectory() as folder, silence():
        import deepspeed  # noqa: F401  # libraries are no models
        import peft  # noqa: F401

        before = memory()
        forget_peak()
        alignment = Alignment(align_config(work, folder, share))
        weights = weights_in_memory()
        take(alignment.directory, alignment.config)
        alignment.run()
        rows = read_jsonl(Path(folder) / "run/iterations/0001/samples.jsonl")
    samples = [{"tokens": row["response_tokens"], **row["scores"]} for row in rows]
    seconds = alignment.progress.seconds["scoring"]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "process (resident)"
    dtype = alignment.config.model.dtype
    return Measurement(weights, peak_memory() - before, seconds, device, dtype, samples)


def align_config(work: Work, folder: str, share: bool) -> Any:
    """The flags of ``raft align``."""
    from raft.arguments import from_dict
    from raft.stages.align_config import AlignConfig

    same = ("model_name_or_path", "reward_model_or_path", "dataset_path", "dtype", "num_samples_per_prompt")
    own = {
        "use_lora": True,
        "share_base_model": share,
        "kl_coefficient": 0.1,
        "reward_dtype": work.dtype,
        "raft_batch_size": work.num_prompts,
        "output_max_length": work.output_max_length,
        "inference_batch_size_per_device": work.batch_size,
        "reward_batch_size": work.batch_size,
        "per_device_train_batch_size": work.batch_size,
        "num_raft_iteration": 1,
        "num_eval_prompts": work.num_prompts,
        "output_dir": f"{folder}/run",
    }
    return from_dict(AlignConfig, {name: getattr(work, name) for name in same} | own)


# ---------------------------------------------------------------- memory


def memory() -> float:
    """MiB in use now: allocated on the GPU, or resident in this process."""
    import torch

    return torch.cuda.memory_allocated() / MIB if torch.cuda.is_available() else _status("VmRSS")


def peak_memory() -> float:
    """The most MiB in use since :func:`forget_peak`."""
    import torch

    return torch.cuda.max_memory_allocated() / MIB if torch.cuda.is_available() else _status("VmHWM")


def forget_peak() -> None:
    """Let the peak begin at what is in use now."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> float:
    """MiB of a line such as ``VmRSS: 123 kB``; Linux alone has it."""
    found = re.search(rf"^{key}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, key
    return int(found.group(1)) / 1024


def weights_in_memory() -> float:
    """MiB of all parameters that exist, tied ones once."""
    import torch

    parameters = [found for found in gc.get_objects() if issubclass(type(found), torch.nn.Parameter)]
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in parameters}
    return sum(storages.values()) / MIB


# ---------------------------------------------------------------- the table


def compare(separate: Measurement, shared: Measurement) -> dict[str, float]:
    """The largest difference of a response's numbers between the two runs."""
    pairs = list(zip(separate.samples, shared.samples, strict=True))
    assert all(a["tokens"] == b["tokens"] for a, b in pairs), "not the same responses"
    names = [name for name in separate.samples[0] if name != "tokens"]
    return {name: max(abs(a[name] - b[name]) for a, b in pairs) for name in names}


def describe(measured: dict[str, Measurement], differences: dict[str, float]) -> str:
    """The table for the screen."""
    values = {name: [getattr(found, key) for key in COLUMNS] for name, found in measured.items()}
    ratios = [b / a for a, b in zip(values["separate"], values["shared"], strict=True)]
    shared = measured["shared"]
    lines = [
        f"\nMiB of the {shared.device}; policy, reward model and reference in {shared.dtype}",
        f"{'':<18}" + "".join(f"{title:>12}" for title in COLUMNS.values()),
        *(f"{name:<18}" + "".join(f"{value:>12.1f}" for value in row) for name, row in values.items()),
        f"{'shared / separate':<18}" + "".join(f"{ratio:>12.2f}" for ratio in ratios),
        "largest difference of a response: " + ", ".join(f"{name} {value:.2g}" for name, value in differences.items()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        main(parse(SharedBaseBenchmark, sys.argv[1:], prog="python benchmarks/shared_base.py"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

"""Where the time of a decoding step goes on a CPU: kernels by share, and how fast its matrix products are.

python benchmarks/decoding.py
python benchmarks/decoding.py --rows 16 64 --num_threads 1
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
os.environ.update(CUDA_VISIBLE_DEVICES="", TOKENIZERS_PARALLELISM="false")

import torch  # noqa: E402

from benchmarks.iteration import cpu_model, machine_label, num_cores, version  # noqa: E402
from raft.arguments import argument, parse  # noqa: E402
from raft.errors import UserError  # noqa: E402
from raft.run_directory import write_json  # noqa: E402


@dataclass
class Measuring:
    """Measuring"""

    model_name_or_path: str = argument("output_models/SmolLM2-135M-Instruct", "Policy.")
    rows: list[int] = argument([64], "Responses sampled at once.")
    prompt_tokens: int = argument(128, "Tokens of a prompt.")
    num_samples_per_prompt: int = argument(8, "Responses to each prompt.")
    steps: int = argument(8, "Steps that are profiled.")
    num_threads: int | None = argument(None, "Threads of torch. Default: its own choice.")
    results_dir: str = argument("benchmarks/results", "Where the result is written.")
    label: str | None = argument(None, "This machine's name in the result's file name. Default: its CPU and cores.")


@dataclass
class DecodingConfig:
    """Profile decoding steps on the CPU."""

    measuring: Measuring = field(default_factory=Measuring)

    examples: ClassVar[tuple[str, ...]] = ("python benchmarks/decoding.py",)


def main(config: DecodingConfig) -> dict[str, Any]:
    """Profile each number of rows, print a table and write the result."""
    from raft.models.loading import DTYPES
    from raft.precision import resolve_dtype

    measuring = config.measuring
    if measuring.num_threads:
        torch.set_num_threads(measuring.num_threads)
    dtype = resolve_dtype("auto")
    model = load(measuring.model_name_or_path, DTYPES[dtype])
    found = {str(rows): profile(model, rows, measuring) for rows in measuring.rows}
    for rows, one in found.items():
        shares = ", ".join(f"{name} {share:.0%}" for name, share in one["shares"].items())
        print(f"{rows} rows: {one['seconds_a_step']:.3f} s a step; {shares}")
        print(f"  matrix products at {one['gflops_per_second']:.0f} GFLOP/s")
    result = {
        "settings": {**asdict(measuring), "model_name_or_path": Path(measuring.model_name_or_path).name},
        "machine": {"cpu": cpu_model(), "num_cores": num_cores(), "num_threads": torch.get_num_threads()},
        "packages": {name: version(name) for name in ("torch", "transformers")},
        "dtype": dtype,
        "rows": found,
    }
    write_json(Path(measuring.results_dir) / f"decoding-{measuring.label or machine_label()}.json", result)
    return result


def load(path: str, dtype: torch.dtype) -> Any:
    """The policy in eval mode."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


@torch.no_grad()
def profile(model: Any, num_rows: int, measuring: Measuring) -> dict[str, Any]:
    """Share of each kernel in the time of all, seconds a step, and the speed of matrix products."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiling

    from raft.rollout.decoding import GrowingDecoder

    num_prompts = -(-num_rows // measuring.num_samples_per_prompt)
    prompts = torch.randint(3, model.config.vocab_size, (num_prompts, measuring.prompt_tokens))
    mask, rows = torch.ones_like(prompts), torch.arange(num_rows) % num_prompts
    output = model(input_ids=prompts, attention_mask=mask, use_cache=True, logits_to_keep=1)
    decoder = GrowingDecoder(model, output.past_key_values, rows, mask, measuring.steps + 2)
    tokens = torch.full((num_rows,), 3)
    for _ in range(2):  # not counted
        decoder.step(tokens)
    with profiling(activities=[ProfilerActivity.CPU], with_flops=True) as profiled:
        for _ in range(measuring.steps):
            decoder.step(tokens)
    kernels = [one for one in profiled.key_averages() if one.self_cpu_time_total]
    total = sum(one.self_cpu_time_total for one in kernels)
    products = [one for one in kernels if one.key in ("aten::mm", "aten::addmm", "aten::bmm")]
    flops, product_time = (sum(getattr(one, name) for one in products) for name in ("flops", "self_cpu_time_total"))
    largest = sorted(kernels, key=lambda one: -one.self_cpu_time_total)[:8]
    return {
        "seconds_a_step": total / 1e6 / measuring.steps,
        "shares": {one.key.removeprefix("aten::"): one.self_cpu_time_total / total for one in largest},
        "gflops_a_step": flops / 1e9 / measuring.steps,
        "gflops_per_second": flops / product_time / 1e3,
    }


def run(arguments: Sequence[str]) -> None:
    """The command line."""
    try:
        main(parse(DecodingConfig, arguments, prog="python benchmarks/decoding.py"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run(sys.argv[1:])

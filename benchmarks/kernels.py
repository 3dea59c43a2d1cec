"""Where the time of a decoding step and of a training step goes on a CPU, and how much of it no code could save.

Shares of the kernels come from torch's profiler. Then every matrix product of the step is timed alone, in the same
shapes: their sum is the floor under any step that leaves them to the same library.

    python benchmarks/kernels.py
    python benchmarks/kernels.py --rows 16 64 --num_threads 1
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
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

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")
COPIES = 5  # of a product's operands, used in turn: in a step no weight is in the processor's cache either


@dataclass
class Measuring:
    """Measuring"""

    model_name_or_path: str = argument("output_models/SmolLM2-135M-Instruct", "Policy.")
    rows: list[int] = argument([64], "Responses sampled at once.")
    prompt_tokens: int = argument(85, "Tokens of a prompt.")
    response_tokens: int = argument(87, "Tokens of a response, in training.")
    num_samples_per_prompt: int = argument(8, "Responses to each prompt, in decoding.")
    training_rows: int = argument(8, "Rows of a training step; 0 leaves it out.")
    steps: int = argument(8, "Decoding steps that are profiled; training takes a quarter of them.")
    num_threads: int | None = argument(None, "Threads of torch. Default: its own choice.")
    results_dir: str = argument("benchmarks/results", "Where the result is written.")
    label: str | None = argument(None, "This machine's name in the result's file name. Default: its CPU and cores.")


@dataclass
class KernelsConfig:
    """Profile decoding and training on the CPU."""

    measuring: Measuring = field(default_factory=Measuring)

    examples: ClassVar[tuple[str, ...]] = ("python benchmarks/kernels.py",)


def main(config: KernelsConfig) -> dict[str, Any]:
    """Profile each number of rows and a training step, print what was found and write it."""
    from raft.models.loading import DTYPES
    from raft.precision import resolve_dtype

    measuring = config.measuring
    if measuring.num_threads:
        torch.set_num_threads(measuring.num_threads)
    dtype = resolve_dtype("auto")
    model = load(measuring.model_name_or_path, DTYPES[dtype])
    found = {}
    for rows in measuring.rows:
        found[f"decoding, {rows} rows"] = profile(decoding_step(model, rows, measuring), measuring.steps)
    if measuring.training_rows:
        step = training_step(model, measuring)
        found[f"training, {measuring.training_rows} rows"] = profile(step, max(1, measuring.steps // 4))
    for name, one in found.items():
        print(describe(name, one))
    cost = pass_cost(model, measuring) if measuring.training_rows else None
    if cost is not None:
        print(f"one more forward and backward pass takes the time of {cost:.0f} positions")
    drawing = {rows: drawing_seconds(rows, model.config.vocab_size) for rows in measuring.rows}
    for rows, (blocks, whole) in drawing.items():
        print(f"drawing {rows} tokens takes {1000 * blocks:.1f} ms in blocks of rows, {1000 * whole:.1f} ms at once")
    result = {
        "settings": {**asdict(measuring), "model_name_or_path": Path(measuring.model_name_or_path).name},
        "machine": {"cpu": cpu_model(), "num_cores": num_cores(), "num_threads": torch.get_num_threads()},
        "packages": {name: version(name) for name in ("torch", "transformers")},
        "dtype": dtype,
        "found": found,
        "pass_cost": cost,
        "drawing_seconds": {rows: {"in blocks": blocks, "at once": whole} for rows, (blocks, whole) in drawing.items()},
    }
    write_json(Path(measuring.results_dir) / f"kernels-{measuring.label or machine_label()}.json", result)
    return result


def load(path: str, dtype: torch.dtype) -> Any:
    """The policy in eval mode."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


# ---------------------------------------------------------------- the steps


def decoding_step(model: Any, num_rows: int, measuring: Measuring) -> Callable[[], None]:
    """One more token for each of so many rows, drawn at temperature 1."""
    from raft.functional.sampling import draw_tokens
    from raft.rollout.decoding import GrowingDecoder

    num_prompts = -(-num_rows // measuring.num_samples_per_prompt)
    prompts = torch.randint(3, model.config.vocab_size, (num_prompts, measuring.prompt_tokens))
    mask, rows = torch.ones_like(prompts), torch.arange(num_rows) % num_prompts
    with torch.no_grad():
        output = model(input_ids=prompts, attention_mask=mask, use_cache=True, logits_to_keep=1)
    decoder = GrowingDecoder(model, output.past_key_values, rows, mask, measuring.steps + WARM_UP)
    tokens = torch.full((num_rows,), 3)

    @torch.no_grad()
    def step() -> None:
        tokens.copy_(draw_tokens(decoder.step(tokens), torch.rand(num_rows)))

    return step


def training_step(model: Any, measuring: Measuring) -> Callable[[], None]:
    """Forward and backward of rows of equal length, as ``raft sft`` computes them; no optimizer."""
    from raft.data.batching import Batch
    from raft.models.forward import next_token_loss

    rows, prompt, response = measuring.training_rows, measuring.prompt_tokens, measuring.response_tokens
    ids = torch.randint(3, model.config.vocab_size, (rows, prompt + response))
    positions = torch.arange(prompt + response).expand_as(ids)
    columns = torch.arange(prompt - 1, prompt + response - 1)
    batch = Batch(ids, torch.ones_like(ids), positions, ids, columns, rows * response)

    def step() -> None:
        model.train()
        loss, _ = next_token_loss(model, batch)
        loss.backward()
        model.zero_grad()

    return step


def pass_cost(model: Any, measuring: Measuring, repetitions: int = 3) -> float:
    """Positions in the time of a training pass over none: where a line through a short pass and a long one begins.

    ``raft.engine.loop.PASS_COST`` is this on two cores, for a model of 135M parameters.
    """
    short = replace(measuring, training_rows=1, prompt_tokens=measuring.prompt_tokens // 4 or 1,
                    response_tokens=measuring.response_tokens // 4 or 1)  # fmt: skip
    sizes, seconds = [], []
    for one in (short, measuring):
        step = training_step(model, one)
        step()
        seconds.append(median(timed(step) for _ in range(repetitions)))
        sizes.append(one.training_rows * (one.prompt_tokens + one.response_tokens))
    a_position = (seconds[1] - seconds[0]) / (sizes[1] - sizes[0])
    return seconds[0] / a_position - sizes[0]


def drawing_seconds(num_rows: int, vocab_size: int, repetitions: int = 9) -> tuple[float, float]:
    """Seconds of drawing a token a row, in blocks of rows as the sampler does and of all rows at once."""
    from raft.functional import sampling

    logits, uniforms = torch.randn(num_rows, vocab_size), torch.rand(num_rows)
    found, in_blocks = [], sampling.VALUES_AT_ONCE
    for at_once in (in_blocks, logits.numel()):
        sampling.VALUES_AT_ONCE = at_once
        try:
            found.append(median(timed(lambda: sampling.draw_tokens(logits, uniforms)) for _ in range(repetitions)))
        finally:
            sampling.VALUES_AT_ONCE = in_blocks
    return found[0], found[1]


# ---------------------------------------------------------------- what they spend their time on

WARM_UP = 2


def profile(step: Callable[[], None], num_steps: int) -> dict[str, Any]:
    """Seconds a step, share of each kernel, and of the matrix products their operations and seconds, in it and alone.

    Seconds are medians of steps that nobody profiles; shares are of the profiler's own sum.
    """
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiling

    seconds = [timed(step) for _ in range(WARM_UP + num_steps // 2)][WARM_UP:]
    with profiling(activities=[ProfilerActivity.CPU], with_flops=True, record_shapes=True) as profiled:
        for _ in range(max(1, num_steps // 2)):
            step()
    profiled_steps = max(1, num_steps // 2)
    kernels = [one for one in profiled.key_averages() if one.self_cpu_time_total]
    total = sum(one.self_cpu_time_total for one in kernels)
    products = [one for one in profiled.key_averages(group_by_input_shape=True) if one.key in PRODUCTS]
    largest = sorted(kernels, key=lambda one: -one.self_cpu_time_total)[:8]
    return {
        "seconds_a_step": median(seconds) if seconds else total / 1e6 / profiled_steps,
        "shares": {one.key.removeprefix("aten::"): one.self_cpu_time_total / total for one in largest},
        "gflop_a_step": sum(one.flops for one in products) / 1e9 / profiled_steps,
        "products_seconds": sum(one.self_cpu_time_total for one in products) / 1e6 / profiled_steps,
        "products_alone_seconds": sum(alone(one) * one.count for one in products) / profiled_steps,
    }


def timed(step: Callable[[], object]) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def alone(product: Any) -> float:
    """Seconds of one product of these shapes with nothing around it, in the layout that is quickest."""
    shapes = [shape for shape in product.input_shapes if len(shape) >= 2][-2:]
    multiply = torch.bmm if product.key == "aten::bmm" else torch.mm
    return min(_seconds(multiply, shapes, layout) for layout in ((False, False), (False, True), (True, False)))


def _seconds(multiply: Callable[..., Any], shapes: Sequence[Sequence[int]], layout: tuple[bool, bool]) -> float:
    operands = [
        [_operand(shape, turned) for shape, turned in zip(shapes, layout, strict=True)] for _ in range(COPIES)
    ]
    multiply(*operands[0])
    return median(timed(lambda pair=pair: multiply(*pair)) for pair in operands)  # type: ignore[misc]


def _operand(shape: Sequence[int], turned: bool) -> torch.Tensor:
    return torch.randn(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2) if turned else torch.randn(*shape)


def describe(name: str, found: dict[str, Any]) -> str:
    """A few lines for the screen."""
    shares = ", ".join(f"{kernel} {share:.0%}" for kernel, share in found["shares"].items())
    work, inside, floor = (found[key] for key in ("gflop_a_step", "products_seconds", "products_alone_seconds"))
    return (
        f"{name}: {found['seconds_a_step']:.3f} s a step; {shares}\n"
        f"  matrix products: {work:.1f} GFLOP in {inside:.3f} s ({work / inside:.0f} GFLOP/s); "
        f"alone {floor:.3f} s ({work / floor:.0f} GFLOP/s)\n"
        f"  with nothing but these products a step would be {found['seconds_a_step'] / floor:.2f} times as fast"
    )


def run(arguments: Sequence[str]) -> None:
    """The command line."""
    try:
        main(parse(KernelsConfig, arguments, prog="python benchmarks/kernels.py"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run(sys.argv[1:])

"""How near one GPU comes to its limits: sampling, scoring and fine-tuning of SmolLM2-135M and of larger Llama shapes.

First the limits of the card are measured (a copy, a matrix product), then every rate is given beside what those limits
allow: a decoding step has to read all weights and all keys and values once; a training step has to multiply.
Larger shapes have random weights: speed does not depend on what weights say. Results are written after every row.

    python benchmarks/gpu.py                       # some minutes on one GPU
    python benchmarks/gpu.py --small               # does it run? On a CPU too; says nothing about speed
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from raft import distributed  # noqa: E402
from raft.arguments import argument, parse  # noqa: E402
from raft.errors import UserError  # noqa: E402
from raft.run_directory import environment, write_json  # noqa: E402

Part = Literal["sampling", "scoring", "sft"]
Way = Literal["graph", "growing", "generate"]

# hidden, layers, heads, key heads, MLP, vocabulary, tied
SHAPES = {"1b": (2048, 16, 32, 8, 8192, 128256, True), "7b": (4096, 32, 32, 32, 11008, 32000, False)}


@dataclass
class Measuring:
    """Measuring"""

    parts: list[Part] = argument(["sampling", "scoring", "sft"], "What to measure.")
    models: list[str] = argument(
        ["output_models/SmolLM2-135M-Instruct", "1b", "7b"], "Directories of models, or 1b and 7b: Llama shapes."
    )
    rows: list[int] = argument([64, 256, 1024], "Responses that are sampled at once.")
    ways: list[Way] = argument(["graph", "growing", "generate"], "By CUDA graphs, without, by transformers' generate.")
    prompt_tokens: int = argument(64, "Tokens of a prompt.")
    output_max_length: int = argument(128, "Tokens of a response; EOS can not come before.")
    num_samples_per_prompt: int = argument(8, "k: responses that share a prompt pass.")
    sft_length: int = argument(2048, "Tokens of a training row.")
    sft_rows: int = argument(16, "Rows of an optimizer step.")
    time_limit: float = argument(420.0, "Start no further row after so many seconds.")
    small: bool = argument(False, "Tiny numbers, to see whether it runs.")
    results_file: str = argument("benchmarks/results/gpu.json", "Where the result is written.")


@dataclass
class GpuConfig:
    """Measure sampling, scoring and fine-tuning on one GPU beside its physical limits."""

    measuring: Measuring = field(default_factory=Measuring)

    examples: ClassVar[tuple[str, ...]] = (
        "python benchmarks/gpu.py",
        "python benchmarks/gpu.py --parts sampling --models 7b --rows 64 256",
        "python benchmarks/gpu.py --small --results_file small.json",
    )


def main(config: GpuConfig) -> dict[str, Any]:
    """Measure part after part, print a line for each row and write everything so far after each."""
    measuring = small(config.measuring) if config.measuring.small else config.measuring
    distributed.initialize()
    begin, rows = time.perf_counter(), []
    result: dict[str, Any] = {"environment": environment(), "limits": limits(), "rows": rows}
    print(f"limits: {result['limits']}", flush=True)
    for name in measuring.models:
        for row in measurements(name, measuring, result["limits"], lambda: time.perf_counter() - begin):
            rows.append(row)
            print("  ".join(f"{key} {_short(value)}" for key, value in row.items()), flush=True)
            write_json(Path(measuring.results_file), result)
    return result


def small(measuring: Measuring) -> Measuring:
    """The same with tiny numbers."""
    values = vars(measuring) | {"rows": [8], "output_max_length": 8, "sft_length": 64, "sft_rows": 2}
    return Measuring(**{**values, "models": measuring.models[:1]})


def measurements(
    name: str, measuring: Measuring, limit: dict[str, float], elapsed: Callable[[], float]
) -> Iterator[dict[str, Any]]:
    """Every row of one model; one that runs out of memory says so."""
    parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "sampling": lambda: sampling_rows(name, measuring, limit),
        "scoring": lambda: scoring_rows(name, measuring, limit),
        "sft": lambda: sft_rows(name, measuring, limit),
    }
    for part in measuring.parts:
        if elapsed() > measuring.time_limit:
            yield {"part": part, "model": name, "skipped": "time limit"}
            continue
        try:
            yield from ({"part": part, "model": Path(name).name} | row for row in parts[part]())
        except torch.OutOfMemoryError:
            yield {"part": part, "model": Path(name).name, "skipped": "out of memory"}
        torch.cuda.empty_cache()  # nothing without a GPU


# ---------------------------------------------------------------- limits


def limits() -> dict[str, float]:
    """Bytes a second of a device-to-device copy (read and written), and operations a second of a bf16 product."""
    size = 2**30 if torch.cuda.is_available() else 2**24
    source = torch.empty(size, dtype=torch.uint8, device=distributed.device())
    target = torch.empty_like(source)
    edge = 8192 if torch.cuda.is_available() else 256
    a = torch.randn(edge, edge, device=distributed.device(), dtype=torch.bfloat16)
    b = torch.randn_like(a)
    return {
        "bytes_per_second": 2 * size / seconds_of(lambda: target.copy_(source)),
        "bf16_flops_per_second": 2 * edge**3 / seconds_of(lambda: a @ b),
    }


def seconds_of(function: Callable[[], Any], repeats: int = 5) -> float:
    """Median seconds of a call, after one that is not counted."""
    found = []
    for _ in range(repeats + 1):
        synchronize()
        begin = time.perf_counter()
        function()
        synchronize()
        found.append(time.perf_counter() - begin)
    return sorted(found[1:])[repeats // 2]


def synchronize() -> None:
    """Wait for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# ---------------------------------------------------------------- models


def load_language_model(name: str, dtype: torch.dtype) -> Any:
    """A model from a directory, or a Llama of a given shape with random weights, on the device."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    if name not in SHAPES:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, attn_implementation="sdpa")
        return model.to(distributed.device()).eval()
    hidden, layers, heads, key_heads, mlp, vocabulary, tied = SHAPES[name]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_heads, tie_word_embeddings=tied,
        max_position_embeddings=8192, eos_token_id=2, pad_token_id=2, bos_token_id=1,
    )  # fmt: skip
    with torch.device(distributed.device()):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


class Ids:
    """As much of a tokenizer as sampling ids needs."""

    eos_token_id, pad_token_id = 2, 2


def random_ids(model: Any, num_rows: int, length: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Token ids (num_rows, length) of no meaning."""
    return torch.randint(3, model.config.vocab_size, (num_rows, length), generator=generator)


def num_parameters(model: Any) -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def matrix_parameters(model: Any) -> int:
    """Parameters that every token is multiplied with: all, without the embedding where it is not the head as well."""
    embedding = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embedding
    return num_parameters(model) - (0 if tied else embedding.numel())


# ---------------------------------------------------------------- sampling


def sampling_rows(name: str, measuring: Measuring, limit: dict[str, float]) -> Iterator[dict[str, Any]]:
    """Tokens a second by number of rows and way of taking steps, and the share of what memory and products allow."""
    model = load_language_model(name, torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    for num_rows in measuring.rows:
        bound = sampling_bound(model, num_rows, measuring, limit)
        for backend in measuring.ways:
            if backend == "graph" and not torch.cuda.is_available():
                continue
            seconds = sampling_seconds(model, num_rows, measuring, backend)
            rate = num_rows * measuring.output_max_length / seconds
            yield {
                "backend": backend, "rows": num_rows, "seconds": seconds, "tokens_per_second": rate,
                "bound_tokens_per_second": bound, "share_of_bound": rate / bound, "peak_gib": peak_gib(),
            }  # fmt: skip


def sampling_bound(model: Any, num_rows: int, measuring: Measuring, limit: dict[str, float]) -> float:
    """Tokens a second if every step read each weight, key and value once, at the speed of a copy; or multiplied."""
    config, weight = model.config, next(model.parameters())
    width = measuring.prompt_tokens + measuring.output_max_length / 2
    key_heads = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    cache_bytes = num_rows * width * 2 * config.num_hidden_layers * key_heads * weight.element_size()
    weight_bytes = matrix_parameters(model) * weight.element_size()
    reading = (cache_bytes + weight_bytes) / limit["bytes_per_second"]
    multiplying = 2 * matrix_parameters(model) * num_rows / limit["bf16_flops_per_second"]
    return num_rows / max(reading, multiplying)


def sampling_seconds(model: Any, num_rows: int, measuring: Measuring, backend: Way) -> float:
    """Seconds of one batch of responses, prompt pass included, the second time it is drawn."""
    from raft.rollout import sampler
    from raft.rollout.decoding import Graphs

    k, length = measuring.num_samples_per_prompt, measuring.output_max_length
    generator = torch.Generator().manual_seed(0)
    prompts = random_ids(model, num_rows // k, measuring.prompt_tokens, generator)
    rows = [i for i in range(num_rows // k) for _ in range(k)]
    uniforms = torch.rand(num_rows, length, generator=generator)
    settings = sampler.Sampling(max_tokens=length, min_tokens=length)
    graphs, device = Graphs(model), distributed.device()

    def generate() -> None:
        model.generate(
            prompts.to(device), attention_mask=torch.ones_like(prompts, device=device), do_sample=True, temperature=1.0,
            top_k=0, top_p=1.0, num_return_sequences=k, max_new_tokens=length, min_new_tokens=length, pad_token_id=2,
        )  # fmt: skip

    def ours() -> None:
        sampler.generate(model, prompts.tolist(), rows, uniforms, settings, Ids(), graphs=graphs)

    can_graph = sampler.can_graph
    if backend == "growing":
        sampler.can_graph = lambda model, cache: False  # type: ignore[assignment]
    try:
        reset_peak()
        return seconds_of(generate if backend == "generate" else ours, repeats=1 if backend != "graph" else 2)
    finally:
        sampler.can_graph = can_graph


# ---------------------------------------------------------------- scoring and training


def scoring_rows(name: str, measuring: Measuring, limit: dict[str, float]) -> Iterator[dict[str, Any]]:
    """Texts and FLOPs a second of a forward pass over rows of prompt and response."""
    from raft.models.scoring import ScoringModel

    model = load_language_model(name, torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    model.score = torch.nn.Linear(model.config.hidden_size, 1, device=distributed.device(), dtype=torch.float32)
    scoring, num_matrix = ScoringModel(_HeadAsFloat(model)), matrix_parameters(model)
    num_matrix -= model.get_output_embeddings().weight.numel()  # scoring does not multiply with the head
    length = measuring.prompt_tokens + measuring.output_max_length
    for num_rows in measuring.rows[-2:]:
        ids = random_ids(model, num_rows, length).to(distributed.device())
        reset_peak()
        with torch.no_grad():
            seconds = seconds_of(lambda ids=ids: scoring(input_ids=ids, attention_mask=torch.ones_like(ids)))
        flops = 2 * num_matrix * ids.numel()
        yield {
            "rows": num_rows, "length": length, "texts_per_second": num_rows / seconds, "seconds": seconds,
            "mfu": flops / seconds / limit["bf16_flops_per_second"], "peak_gib": peak_gib(),
        }  # fmt: skip


class _HeadAsFloat(torch.nn.Module):
    """A language model's body with a score head in fp32, as ScoringModel wants a classifier."""

    base_model_prefix = "model"

    def __init__(self, language_model: Any) -> None:
        super().__init__()
        self.model, head = language_model.model, language_model.score
        self.score = lambda hidden: head(hidden.float())


def sft_rows(name: str, measuring: Measuring, limit: dict[str, float]) -> Iterator[dict[str, Any]]:
    """Tokens and FLOPs a second of optimizer steps with the engine: packed-like rows, all tokens trained on."""
    from raft.config import TrainingConfig
    from raft.data.batching import collate
    from raft.data.encoding import TokenRow
    from raft.engine.engine import Engine
    from raft.models.forward import next_token_loss

    model = load_language_model(name, torch.float32)
    config, num_matrix = model.config, matrix_parameters(model)
    length, num_rows = measuring.sft_length, measuring.sft_rows
    checkpointing = name == "7b"
    engine = Engine(
        model, TrainingConfig(learning_rate=1e-5), total_steps=100, bf16=torch.cuda.is_available(),
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    micro = max(1, min(num_rows, 2 if name in SHAPES else 8))
    ids = random_ids(model, num_rows, length).tolist()
    rows = [TokenRow(row, [True] * length) for row in ids]
    batches = [collate(rows[at : at + micro], 2) for at in range(0, num_rows, micro)]
    reset_peak()
    seconds = seconds_of(lambda: engine.train_step(batches, next_token_loss), repeats=3)
    # 6 operations a parameter and token, and attention's own products (causal: half); recomputation is not counted.
    num_tokens = num_rows * length
    flops = 6 * num_tokens * (num_matrix + length * config.hidden_size * config.num_hidden_layers)
    yield {
        "rows": num_rows, "length": length, "micro_batch": micro, "gradient_checkpointing": checkpointing,
        "tokens_per_second": num_tokens / seconds, "seconds": seconds,
        "mfu": flops / seconds / limit["bf16_flops_per_second"], "peak_gib": peak_gib(),
    }  # fmt: skip


# ---------------------------------------------------------------- what is used and shown


def reset_peak() -> None:
    """Forget the largest memory so far."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float | None:
    """Largest memory in use since then."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None


def _short(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def run(arguments: Sequence[str]) -> None:
    """The command line."""
    try:
        main(parse(GpuConfig, arguments, prog="python benchmarks/gpu.py"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run(sys.argv[1:])

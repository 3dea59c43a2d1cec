"""What only a GPU shows. Left out where the tests see none; on a machine with one:

RAFT_TEST_GPU=1 python -m pytest tests/test_gpu.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from raft import cli
from raft.config import LoraConfig, ModelConfig, TrainingConfig
from raft.data.batching import collate
from raft.data.encoding import TokenRow
from raft.engine.build import build_policy
from raft.engine.engine import Engine
from raft.models.forward import next_token_loss
from raft.rollout import sampler
from raft.rollout.decoding import Graphs
from raft.rollout.sampling import Sampling
from tests.conftest import build_tokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or RAFT_TEST_GPU is not 1")


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random two-layer Llama whose heads have the usual size of 64, so that it runs by the usual kernels."""
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("models") / "wide"
    tokenizer = build_tokenizer(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return str(directory)


def build_engine(model: str, *, use_lora: bool) -> Engine:
    settings = ModelConfig(model_name_or_path=model, dtype="bf16")
    return build_policy(settings, LoraConfig(use_lora=use_lora), TrainingConfig(), seed=0, total_steps=9)


def row(num_prompt: int, num_response: int) -> TokenRow:
    ids = [3 + (7 * i) % 300 for i in range(num_prompt + num_response)]
    return TokenRow(ids, [False] * num_prompt + [True] * num_response)


@pytest.mark.parametrize("use_lora", [False, True])
@pytest.mark.parametrize("width", [64, 100, 192, 256, 448])
def test_gradients_of_padded_rows_are_finite_at_every_width(wide_model: str, width: int, use_lora: bool) -> None:
    # cuDNN's attention gives NaN for padding on the left at 64, 192, 448, ... tokens.
    engine = build_engine(wide_model, use_lora=use_lora)
    batch = collate([row(width - 20, 20), row(10, 12), row(30, 20)], 0)
    assert batch.input_ids.shape[1] == width
    assert (batch.attention_mask == 0)[:, 0].tolist() == [False, True, True]
    metrics = engine.train_step([batch], next_token_loss)
    assert math.isfinite(metrics["grad_norm"])
    assert metrics["grad_norm"] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_draw_the_tokens_that_steps_without_them_draw(
    wide_model: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(wide_model)
    model = AutoModelForCausalLM.from_pretrained(wide_model, dtype=dtype, attn_implementation="sdpa").cuda().eval()
    prompts = [list(range(5, 5 + n)) for n in (3, 17, 40, 9)]
    rows = [i for i in range(4) for _ in range(16)]
    uniforms = torch.rand(len(rows), 40, generator=torch.Generator().manual_seed(0))

    def draw(graphs: Graphs | None) -> list[list[int]]:
        found = sampler.generate(
            model, prompts, rows, uniforms, Sampling(max_tokens=40, temperature=0.7), tokenizer, graphs=graphs
        )
        return [one.tokens for one in found]

    graphs = Graphs(model)
    first, again = draw(graphs), draw(graphs)
    assert any(captured is not None for captured in graphs._captured.values())
    assert "without CUDA graphs" not in capsys.readouterr().err
    monkeypatch.setattr(sampler, "can_graph", lambda model, cache: False)
    plain = draw(None)
    assert first == again
    same = sum(a == b for a, b in zip(first, plain, strict=True))
    assert same == len(rows) if dtype == torch.float32 else same > len(rows) / 2  # bf16: sums in another order


def run(name: str, directory: Path, *flags: Any) -> Path:
    assert cli.main([name, "--dtype", "bf16", "--output_dir", str(directory), *map(str, flags)]) == 0
    return directory


@pytest.mark.parametrize("extra", [[], ["--use_lora", "--kl_coefficient", "0.1"]], ids=["full", "lora"])
def test_a_run_learns_and_repeats_itself(wide_model: str, prompts: str, tmp_path: Path, extra: list[str]) -> None:
    flags = ["--model_name_or_path", wide_model, "--dataset_path", prompts, "--eval_dataset_path", prompts]
    flags += ["--reward", "rule:length,min=20", "--raft_batch_size", 8, "--num_samples_per_prompt", 4]
    flags += ["--num_raft_iteration", 2, "--output_max_length", 24, "--learning_rate", 1e-3, *extra]
    one, other = run("align", tmp_path / "one", *flags), run("align", tmp_path / "other", *flags)
    for name in ("iterations/0001/samples.jsonl", "iterations/0002/samples.jsonl"):
        assert (one / name).read_text() == (other / name).read_text()
    metrics = [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(m["grad_norm"]) for m in metrics if "grad_norm" in m)

"""The benchmark measures what it says it measures; how long that takes is no matter here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import diversity, gpu, iteration, kernels, parts, peers, plain_loop
from benchmarks.common import Measurement, Precision, Work, load_tokenizer, prompt_batches

pytestmark = pytest.mark.benchmarks


@pytest.fixture
def work(tiny_model: str, tiny_reward_model: str, prompts: str) -> Work:
    return Work(
        model_name_or_path=tiny_model,
        reward_model_or_path=tiny_reward_model,
        dataset_path=prompts,
        num_prompts=3,
        num_samples_per_prompt=2,
        output_max_length=5,
        iterations=2,
        num_eval_prompts=2,
    )


def measurement(*totals: float) -> Measurement:
    laps = [{"sampling": 1.0, "total": total} for total in totals]
    return Measurement(laps, warm_up=laps[0], response_tokens=[4.0], peak_rss_mib=100.0, num_threads=1)


def check(found: Measurement, work: Work) -> None:
    assert len(found.iterations) == len(found.response_tokens) == work.iterations
    for lap in [found.warm_up, *found.iterations]:
        phases = [lap[phase] for phase in iteration.PHASES]
        assert min(phases) > 0
        assert sum(phases) <= lap["total"]
    assert all(1 <= length <= work.output_max_length for length in found.response_tokens)
    assert found.peak_rss_mib > 100  # torch alone is more


def test_raft_is_measured_in_a_process_of_its_own(work: Work) -> None:
    found = iteration.measure_apart(peers.measure_raft, work)
    check(found, work)
    assert {"loading", "checkpoints", "saving"} <= set(found.apart)
    assert not set(found.apart) & set(iteration.PHASES)


@pytest.mark.parametrize("precision", ["bf16", "autocast"])
def test_plain_loop_is_measured(work: Work, precision: Precision) -> None:
    check(plain_loop.measure_plain(work, precision), work)


def test_plain_loop_keeps_responses_up_to_eos(work: Work) -> None:
    loop = plain_loop.build_plain(work, "bf16")
    eos = loop.tokenizer.eos_token_id
    ends = [[5, eos, eos, eos], [5, 6, 7, eos], [5, 6, 7, 8], [eos, 5, 6, 7]]

    def generate(input_ids: torch.Tensor, **options: object) -> torch.Tensor:
        return torch.cat([input_ids.repeat_interleave(2, 0), torch.tensor(ends)], 1)

    loop.policy = SimpleNamespace(eval=lambda: None, generate=generate)
    messages = [[{"role": "user", "content": text}] for text in ("hi", "a longer one")]
    samples = plain_loop.plain_sample(loop, messages)
    width = samples.prompt_width
    assert samples.mask[:, width:].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]]
    lengths = [len(loop.tokenizer.apply_chat_template(m, add_generation_prompt=True).input_ids) for m in messages]
    assert samples.mask[:, :width].sum(1).tolist() == [lengths[0]] * 2 + [lengths[1]] * 2
    assert samples.mask[:2, 0].tolist() == [0, 0]  # padded on the left


def test_plain_loop_trains_on_responses_alone_up_to_eos(work: Work) -> None:
    loop = plain_loop.build_plain(work, "autocast")
    eos = loop.tokenizer.eos_token_id
    tokens = torch.tensor([[7, 8, 9, eos, 20], [7, 8, 9, 10, 11]])
    mask = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = loop.policy(input_ids=tokens, attention_mask=mask).logits.float()
    logprobs = logits.log_softmax(-1)
    targets = [logprobs[0, 1, 9], logprobs[0, 2, eos], logprobs[1, 1, 9], logprobs[1, 2, 10], logprobs[1, 3, 11]]
    before = loop.policy.get_input_embeddings().weight.detach().clone()
    loss = plain_loop.plain_train(loop, plain_loop.Samples(tokens, mask, prompt_width=2), torch.tensor([0, 1]))
    assert loss == pytest.approx(-float(sum(targets)) / 5, rel=1e-5)
    assert not torch.equal(before, loop.policy.get_input_embeddings().weight)


def test_every_peer_gets_the_prompts_that_raft_draws(work: Work) -> None:
    from raft.rollout.prompts import draw_prompts

    batches = prompt_batches(work, load_tokenizer(work.model_name_or_path))
    assert [len(batch) for batch in batches] == [3, 3, 3]
    texts = [messages[0]["content"] for batch in batches for messages in batch]
    rows = Path(work.dataset_path).read_text().splitlines()
    drawn = draw_prompts(len(rows), seed=work.seed, cursor=0, count=9)
    assert all(f'"prompt": "{text}"' in rows[i] for text, i in zip(texts, drawn, strict=True))


def test_the_old_schedule_samples_prompt_by_prompt_and_trains_on_the_best(work: Work) -> None:
    check(plain_loop.measure_old(work, "fp32"), work)


def test_samples_of_different_widths_in_one_tensor() -> None:
    short = plain_loop.Samples(torch.tensor([[1, 9, 8]]), torch.tensor([[1, 1, 1]]), prompt_width=1)
    long = plain_loop.Samples(torch.tensor([[2, 3, 7]]), torch.tensor([[1, 1, 1]]), prompt_width=2)
    both = plain_loop.stack([short, long], 0)
    assert both.tokens.tolist() == [[0, 1, 9, 8], [2, 3, 7, 0]]
    assert both.mask.tolist() == [[0, 1, 1, 1], [1, 1, 1, 0]]
    assert both.prompt_width == 2


def test_parts_are_measured(work: Work, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All but those that start whole commands, which take long: sampling and what reads its texts."""
    measuring = parts.Measuring(parts=["sampling", "scoring", "sft", "reward"], results_dir=str(tmp_path), label="here")
    work = replace(work, iterations=1)  # every turn of a contestant is a process
    result = parts.main(parts.PartsConfig(measuring, work))
    assert json.loads((tmp_path / "parts-here.json").read_text()) == json.loads(json.dumps(result))
    shown = capsys.readouterr().out
    for part, (unit, contestants) in parts.PARTS.items():
        assert f"{part}: {unit} a second" in shown
        ours = {name for name in contestants if not name.startswith("trl")}
        assert ours <= set(result["parts"][part])
        for name, timed in result["parts"][part].items():
            assert len(timed["seconds"]) == work.iterations, (part, name)
            assert min(timed["seconds"]) > 0
    texts = result["parts"]["scoring"]["raft"]["amounts"]
    assert texts == [work.num_prompts * work.num_samples_per_prompt] * work.iterations


def test_slope_of_time_over_size() -> None:
    rows = {str(n): parts.Timed([3.0 * n**0.5], [float(n)]) for n in (64, 128, 512)}
    assert parts.slope(rows) == pytest.approx(0.5)


def test_best_of_each_prompt() -> None:
    scores = torch.tensor([1.0, 3.0, 2.0, 9.0, 8.0, 7.0, 0.0, 0.5, 0.25])
    assert plain_loop.best_of_each(scores, 3).tolist() == [1, 3, 7]


def test_ratio_is_of_medians_and_of_the_quickest_form() -> None:
    measured = {"raft": measurement(2.0, 4.0, 90.0), "trl bf16": measurement(9.0), "trl autocast": measurement(8.0)}
    assert iteration.ratios(measured) == {"trl": 2.0}
    table = iteration.describe(measured, {"plain": "no time"})
    assert "trl takes 2.00 times as long as raft" in table
    assert "plain: skipped, no time" in table


def test_trl_that_is_not_installed_is_skipped_and_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(iteration.util, "find_spec", lambda name: None)
    monkeypatch.setattr(iteration, "measure_apart", lambda *arguments: measurement(2.0))
    config = iteration.BenchmarkConfig()
    config.measuring.peers, config.measuring.results_dir, config.measuring.label = ["trl"], str(tmp_path), "here"
    result: dict[str, Any] = iteration.main(config)
    assert list(result["peers"]) == ["raft"]
    assert "bash benchmarks/peers.sh" in capsys.readouterr().out
    written = (tmp_path / "iteration-here.json").read_text()
    assert str(Path.home()) not in written
    assert result["work"]["model_name_or_path"] == "SmolLM2-135M-Instruct"


def test_diversity_benchmark_gets_the_numbers_of_the_plain_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = diversity.Size(num_responses=30, num_words=20, self_bleu_texts=10, results_dir=str(tmp_path), label="here")
    result = diversity.main(diversity.BenchmarkConfig(size))
    assert result["same_tokens"]
    assert result["largest_difference"] < 1e-9
    assert set(result["seconds"]["plain"]) == {"tokens", "n-grams", "msttr", "repetition", "self_bleu"}
    assert "ratio" in capsys.readouterr().out
    assert (tmp_path / "diversity-here.json").is_file()


def test_gpu_measures_every_part_also_without_a_gpu(tiny_model: str, tmp_path: Path) -> None:
    measuring = gpu.Measuring(models=[tiny_model], small=True, results_file=str(tmp_path / "gpu.json"))
    result = gpu.main(gpu.GpuConfig(measuring))
    assert json.loads((tmp_path / "gpu.json").read_text()) == result
    parts = [(row["part"], row.get("backend")) for row in result["rows"]]
    assert parts == [("sampling", "growing"), ("sampling", "generate"), ("scoring", None), ("sft", None)]
    for row in result["rows"]:
        assert row["seconds"] > 0
    sampled = result["rows"][0]
    assert sampled["tokens_per_second"] == pytest.approx(8 * 8 / sampled["seconds"])


def test_the_bound_of_sampling_by_hand() -> None:
    """A model of one layer: a step reads 2 bytes of every weight, and of 2 x 3 columns of 4 values for each row."""
    config = LlamaConfig(
        vocab_size=10, hidden_size=8, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    weights = 10 * 8 + 2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 4 + 3 * 8  # embedding, q and o, k and v, MLP, norms
    assert gpu.matrix_parameters(model) == weights
    measuring = gpu.Measuring(prompt_tokens=2, output_max_length=2)
    limit = {"bytes_per_second": 1000.0, "bf16_flops_per_second": 1e12}
    seconds = (2 * weights + 5 * 3 * 2 * 4 * 2) / 1000
    assert gpu.sampling_bound(model, 5, measuring, limit) == pytest.approx(5 / seconds)
    slow = {"bytes_per_second": 1e12, "bf16_flops_per_second": 1000.0}
    assert gpu.sampling_bound(model, 5, measuring, slow) == pytest.approx(5 / (2 * weights * 5 / 1000))


def test_decoding_and_training_steps_are_profiled(tiny_model: str, tmp_path: Path) -> None:
    """The products of a pass are known: two operations a weight and token, three times that with both gradients."""
    measuring = kernels.Measuring(
        model_name_or_path=tiny_model, rows=[4], prompt_tokens=6, response_tokens=3, num_samples_per_prompt=2,
        training_rows=2, steps=4, results_dir=str(tmp_path), label="here",
    )  # fmt: skip
    result = kernels.main(kernels.KernelsConfig(measuring))
    found = result["found"]
    assert isinstance(result["pass_cost"], float)
    assert min(result["drawing_seconds"][4].values()) > 0
    body = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)  # two layers
    head = 32 * load_tokenizer(tiny_model).vocab_size
    decoding, training = found["decoding, 4 rows"], found["training, 2 rows"]
    assert decoding["gflop_a_step"] == pytest.approx(4 * 2 * (body + head) / 1e9)
    assert training["gflop_a_step"] == pytest.approx(2 * 2 * 3 * (9 * body + 3 * head) / 1e9)
    for one in found.values():
        assert "mm" in one["shares"]
        assert 0 < sum(one["shares"].values()) <= 1 + 1e-9
        assert one["products_alone_seconds"] > 0
    assert (tmp_path / "kernels-here.json").is_file()

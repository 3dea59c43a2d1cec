"""``raft align --rollout_backend vllm``, with a stand-in for vLLM, where handing weights over is least simple."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raft import cli
from raft.run_directory import read_jsonl
from tests.rollout import fake_vllm
from tests.stages.test_align import command_line


def test_a_sharded_policy_with_adapters_draws_by_vllm(
    talkative_model: str,
    tiny_reward_model: str,
    prompts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    started: list[Any] = []

    class Recorded(fake_vllm.LLM):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(fake_vllm, "LLM", Recorded)
    monkeypatch.setattr("raft.reports.curves.draw_align_curves", lambda directory: None)
    flags = command_line(
        model_name_or_path=talkative_model,
        reward_model_or_path=tiny_reward_model,
        dataset_path=prompts,
        eval_dataset_path="none",
        validation_split_percentage=25,
        num_raft_iteration=2,
        raft_batch_size=3,
        num_samples_per_prompt=2,
        output_max_length=6,
        inference_batch_size_per_device=4,
        num_train_epochs=1,
        learning_rate=3e-2,
        eval_every_n_iterations=0,
        use_lora=True,
        deepspeed="scripts/deepspeed/zero3.json",
        dtype="fp32",
        output_dir=tmp_path / "run",
    )
    with fake_vllm.installed():
        # Every hand-over is checked against the policy's own log-probabilities, after training too.
        assert cli.main(["align", *flags, "--rollout_backend", "vllm"]) == 0
    (llm,) = started
    assert llm.max_model_len == 256 + 6
    # Held-out responses before and after, two iterations of six samples in two chunks.
    handed_over = ["weights", "reload_weights", "kv_cache", "generate"]
    evaluation, sampling = [*handed_over, "generate", "sleep"], [*handed_over, "generate", "generate", "sleep"]
    assert llm.calls == ["sleep", *evaluation, *sampling, *sampling, *evaluation]
    rows = read_jsonl(tmp_path / "run/iterations/0002/samples.jsonl")
    assert len({tuple(row["response_tokens"]) for row in rows}) > 3
    assert cli.main(["align", *flags, "--resume"]) == 2
    assert "--rollout_backend: the run to be resumed has vllm, found native" in capsys.readouterr().err

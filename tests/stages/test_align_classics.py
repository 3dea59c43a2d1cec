"""One short run with much that is usual to go wrong: a batch beyond the data, equal rewards, no learning, secrets."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from raft import cli
from raft.run_directory import read_jsonl
from tests.reports.page_runs import data_of
from tests.rewards.sources import server

SECRETS = {
    "HF_TOKEN": "hf_SecretOfTheHub1",
    "HUGGING_FACE_HUB_TOKEN": "hf_SecretOfTheHub2",
    "WANDB_API_KEY": "SecretOfTheTracker3",
    "RAFT_REWARD_TOKEN": "SecretOfTheScorer4",
}


@dataclass
class Done:
    """A run and what was seen of it."""

    path: Path
    printed: str
    requests: list[Any]

    @property
    def samples(self) -> list[dict[str, Any]]:
        return read_jsonl(self.path / "iterations/0001/samples.jsonl")


def all_equal(number: int, path: str, body: bytes) -> tuple[int, bytes]:
    """A scorer without an opinion."""
    if path == "/health":
        return 200, b"{}"
    return 200, json.dumps({"scores": [1.0] * len(json.loads(body)["candidates"])}).encode()


@pytest.fixture(scope="module")
def done(talkative_model: str, prompts: str, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """b=16 of 9 prompts, k=2, one iteration, all rewards equal, learning rate 0, secrets in the environment."""
    path, screen = tmp_path_factory.mktemp("classics") / "run", io.StringIO()
    settings = {
        "model_name_or_path": talkative_model, "dataset_path": prompts, "eval_dataset_path": "none",
        "validation_split_percentage": 25, "num_raft_iteration": 1, "raft_batch_size": 16, "num_samples_per_prompt": 2,
        "output_max_length": 6, "per_device_train_batch_size": 16, "num_train_epochs": 1, "learning_rate": 0,
        "dtype": "fp32", "output_dir": path,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, server(all_equal) as (address, requests):
        patch.setattr("raft.reports.curves.draw_align_curves", lambda directory: None)
        for name, secret in SECRETS.items():
            patch.setenv(name, secret)
        flags = [text for name, value in (settings | {"reward": address}).items() for text in (f"--{name}", str(value))]
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
            assert cli.main(["align", *flags]) == 0, screen.getvalue()
    return Done(path, screen.getvalue(), requests)


def test_a_batch_larger_than_the_data_set_takes_prompts_again(done: Done) -> None:
    counts = Counter(row["prompt_id"] for row in done.samples)
    assert sorted(counts.values()) == [2] * 2 + [4] * 7  # 16 draws of 9 prompts, two samples each


def test_of_equal_rewards_the_first_sample_is_selected(done: Done) -> None:
    assert {row["reward"] for row in done.samples} == {1.0}
    assert [row["sample_id"] for row in done.samples if row["selected"]] == list(range(0, 32, 2))


def test_a_learning_rate_of_0_changes_no_weight(done: Done, talkative_model: str) -> None:
    before, after = (load_file(Path(path) / "model.safetensors") for path in (talkative_model, done.path / "final"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_no_secret_is_written_or_printed(done: Done) -> None:
    assert {headers["Authorization"] for _, headers, _ in done.requests} == {"Bearer SecretOfTheScorer4"}
    page = json.dumps(data_of((done.path / "report.html").read_text()))
    texts = {"the screen": done.printed, "the page's data": page}
    files = [path for path in done.path.rglob("*") if path.is_file()]
    assert {"config.yaml", "environment.json", "metrics.jsonl", "report.html"} <= {path.name for path in files}
    texts |= {str(path): path.read_bytes().decode("latin-1") for path in files}
    found = [(where, secret) for where, text in texts.items() for secret in SECRETS.values() if secret in text]
    assert found == []

"""Entropy, KL and perplexity against transformers alone: one row at a time, unpadded, in double precision."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raft.config import LoraConfig
from raft.data.encoding import TokenRow
from raft.models.lora import attach
from raft.rollout.backend import NativeBackend
from raft.rollout.logprobs import initial_policy, perplexity, policy_statistics
from raft.rollout.rollout import rollout
from raft.rollout.sampling import Sampling
from tests.conftest import build_model

ROWS = [
    TokenRow([5, 9, 7, 300, 12, 2], [False] * 2 + [True] * 4),
    TokenRow([40, 41, 42, 43, 44, 45, 46, 2], [False] * 7 + [True]),
    TokenRow([17, 4, 200], [False, True, True]),
]


def load(directory: str | Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def policy(tiny_model: str) -> Any:
    return load(tiny_model)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("models") / "other"
    build_model(directory, seed=7)
    return load(directory)


def statistics(policy: Any, reference: Any | None, rows: list[TokenRow], batch_size: int = 2) -> dict[str, float]:
    return policy_statistics(policy, reference, rows, batch_size=batch_size, pad_token_id=0)


def logprobs(model: Any, row: TokenRow) -> torch.Tensor:
    """Of all tokens at the positions of the row's targets, (K, V)."""
    with torch.no_grad():
        logits = model(torch.tensor([row.tokens])).logits[0].double()
    targets = [i for i, trained in enumerate(row.trained) if trained]
    return torch.log_softmax(logits, -1)[[i - 1 for i in targets]]


def test_statistics_are_those_of_plain_transformers(policy: Any, reference: Any) -> None:
    entropies, distances, sums = [], [], []
    for row in ROWS:
        p, p0 = logprobs(policy, row), logprobs(reference, row)
        entropies += (-(p.exp() * p).sum(-1)).tolist()
        distances += (p.exp() * (p - p0)).sum(-1).tolist()
        sums.append(sum(distances[-len(p) :]))
    expected = {"entropy": np.mean(entropies), "kl": np.mean(distances), "kl_response": np.mean(sums)}
    assert len(entropies) == 7
    for batch_size in (1, 2, 3):
        assert statistics(policy, reference, ROWS, batch_size) == pytest.approx(expected, rel=1e-4)


def test_a_policy_is_at_no_distance_from_itself(policy: Any) -> None:
    found = statistics(policy, copy.deepcopy(policy), ROWS)
    assert found["kl"] == pytest.approx(0.0, abs=1e-7)
    assert found["kl_response"] == pytest.approx(0.0, abs=1e-7)
    assert found["entropy"] > 0


def test_the_mean_log_ratio_of_samples_at_temperature_1_estimates_the_same(
    policy: Any, reference: Any, tiny_model: str
) -> None:
    """k1 is unbiased there; ours has its mean and less noise."""
    tokenizer, num_samples = AutoTokenizer.from_pretrained(tiny_model), 400
    options: dict[str, Any] = {"seed": 0, "iteration": 0, "rows_per_chunk": 100}
    sampling, backend = Sampling(temperature=1.0, max_tokens=4), NativeBackend(tokenizer)
    with backend.drawing_from(nullcontext(policy)):
        drawn = rollout(backend, [[5, 9, 7]], num_samples=num_samples, sampling=sampling, **options)
    rows = [TokenRow([5, 9, 7, *one.tokens], [False] * 3 + [True] * len(one.tokens)) for one in drawn]
    ratios = []
    for row in rows:
        p, p0, tokens = logprobs(policy, row), logprobs(reference, row), torch.tensor(row.tokens[3:])
        ratios.append(float((p - p0).gather(1, tokens[:, None]).sum()))
    error = np.std(ratios) / math.sqrt(num_samples)
    assert error < 0.1 * np.mean(ratios)
    assert statistics(policy, reference, rows, 100)["kl_response"] == pytest.approx(np.mean(ratios), abs=4 * error)


def test_adapters_are_switched_off_for_the_initial_policy(policy: Any) -> None:
    adapted = attach(copy.deepcopy(policy), LoraConfig(use_lora=True, lora_r=4), task="CAUSAL_LM").eval()
    assert statistics(adapted, None, ROWS)["kl"] == pytest.approx(0.0, abs=1e-7)  # adapters start as nothing
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    found = statistics(adapted, None, ROWS)
    assert found["kl"] > 0.01
    assert found == pytest.approx(statistics(adapted, policy, ROWS), rel=1e-5)
    with pytest.raises(RuntimeError, match="in the middle"), initial_policy(adapted, None):
        raise RuntimeError("in the middle")
    assert statistics(adapted, policy, ROWS) == pytest.approx(found, rel=1e-5)  # on again


def test_the_copy_goes_home(policy: Any) -> None:
    moves: list[str] = []

    class Copy:
        """A module that lives elsewhere; no second device is needed to see where it is sent."""

        def parameters(self) -> Any:
            return iter([torch.empty(0, device="meta")])

        def to(self, device: torch.device) -> None:
            moves.append(str(device))

    with initial_policy(policy, Copy()):
        assert moves == ["cpu"]
    with pytest.raises(RuntimeError, match="in the middle"), initial_policy(policy, Copy()):
        raise RuntimeError("in the middle")
    assert moves == ["cpu", "meta"] * 2


def test_perplexity_is_that_of_plain_transformers(policy: Any) -> None:
    values = []
    for row in ROWS:
        targets = torch.tensor([token for token, trained in zip(row.tokens, row.trained, strict=True) if trained])
        values += logprobs(policy, row).gather(1, targets[:, None]).flatten().tolist()
    found = perplexity(policy, ROWS, batch_size=2, pad_token_id=0, name="test")
    assert found == pytest.approx(math.exp(-np.mean(values)), rel=1e-4)

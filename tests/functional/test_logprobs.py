from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from raft.functional.logprobs import entropy, kl_divergence, token_logprobs


def test_by_hand() -> None:
    # Weights 1, 2, 5 of 8 in one place and 3, 3, 2 of 8 in the other.
    logits = torch.log(torch.tensor([[[1.0, 2.0, 5.0], [3.0, 3.0, 2.0]]]))
    found = token_logprobs(logits, torch.tensor([[2, 0]]))
    assert found.tolist()[0] == pytest.approx([math.log(5 / 8), math.log(3 / 8)], abs=1e-6)


def test_temperature_by_hand() -> None:
    # Half the temperature squares the weights: 1, 4, 25 of 30.
    logits = torch.log(torch.tensor([[1.0, 2.0, 5.0]]))
    assert token_logprobs(logits, torch.tensor([1]), temperature=0.5).item() == pytest.approx(
        math.log(4 / 30), abs=1e-6
    )


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4)])
def test_equals_log_softmax_for_any_leading_dimensions(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(*shape, 11, generator=generator) * 4
    tokens = torch.randint(11, shape, generator=generator)
    expected = torch.log_softmax(logits.double(), -1).gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(token_logprobs(logits, tokens).double(), expected, atol=1e-5, rtol=0)


def test_bfloat16_logits_give_fp32_logprobs() -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(2)).bfloat16()
    found = token_logprobs(logits, torch.arange(4))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, -functional.cross_entropy(logits.float(), torch.arange(4), reduction="none"))


def test_large_logits_do_not_overflow() -> None:
    assert token_logprobs(torch.tensor([[1e4, 0.0]]), torch.tensor([1])).item() == -1e4


def test_entropy_by_hand() -> None:
    # Four equal tokens: ln 4. Weights 1, 1, 2: ln 4 - (1/2) ln 2. A certain one: 0.
    logits = torch.log(torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 2.0, 1e-30], [1.0, 1e-30, 1e-30, 1e-30]]))
    expected = [math.log(4), math.log(4) - 0.5 * math.log(2), 0.0]
    assert entropy(logits).tolist() == pytest.approx(expected, abs=1e-6)


def test_kl_divergence_by_hand() -> None:
    p, p0 = torch.tensor([[0.5, 0.5], [0.25, 0.75]]), torch.tensor([[0.25, 0.75], [0.25, 0.75]])
    expected = [0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0.0]
    assert kl_divergence(p.log() + 3.0, p0.log() - 1.0).tolist() == pytest.approx(expected, abs=1e-6)
    assert kl_divergence(p.log().bfloat16(), p0.log().bfloat16()).dtype == torch.float32

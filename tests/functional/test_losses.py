from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from raft.functional.losses import bradley_terry_loss, sft_loss


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_sft_by_hand() -> None:
    # Three places with weights 1, 3 of 4 / 1, 1 of 2 / anything; the last one does not count.
    logits = torch.log(torch.tensor([[[1.0, 3.0], [1.0, 1.0], [9.0, 1.0]]]))
    loss = sft_loss(logits, torch.tensor([[1, 0, -100]]))
    # -ln(3/4) - ln(1/2) = ln(8/3), a sum and no mean.
    assert loss.item() == pytest.approx(math.log(8 / 3), abs=1e-6)


def test_sft_equals_torch_cross_entropy_and_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, 13, generator=generator, requires_grad=True)
    labels = torch.randint(13, (3, 7), generator=generator)
    labels[torch.rand(3, 7, generator=generator) < 0.4] = -100
    ours = sft_loss(logits, labels)
    theirs = functional.cross_entropy(logits.reshape(-1, 13), labels.reshape(-1), ignore_index=-100, reduction="sum")
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(ours, logits, retain_graph=True)
    (expected,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(gradient, expected)
    assert gradient[labels == -100].abs().max() == 0


def test_sft_without_a_label_is_zero_with_zero_gradient() -> None:
    logits = torch.randn(1, 2, 5, requires_grad=True)
    loss = sft_loss(logits, torch.full((1, 2), -100))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


def test_sft_takes_another_ignored_label() -> None:
    logits = torch.log(torch.tensor([[[1.0, 3.0], [1.0, 1.0]]]))
    assert sft_loss(logits, torch.tensor([[1, 0]]), ignored=0).item() == pytest.approx(math.log(4 / 3), abs=1e-6)


def test_bradley_terry_by_hand() -> None:
    # sigmoid(ln 3) = 3/4 and sigmoid(0) = 1/2: -ln(3/4) - ln(1/2) = ln(8/3).
    loss = bradley_terry_loss(torch.tensor([math.log(3), 0.7]), torch.tensor([0.0, 0.7]))
    assert loss.item() == pytest.approx(math.log(8 / 3), abs=1e-6)


def test_bradley_terry_gradient_by_hand() -> None:
    # d/dchosen of -ln sigmoid(d) is -(1 - sigmoid(d)): -1/4 at d = ln 3, and the opposite for rejected.
    chosen = torch.tensor([math.log(3)], requires_grad=True)
    rejected = torch.tensor([0.0], requires_grad=True)
    bradley_terry_loss(chosen, rejected).backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.25, abs=1e-6)
    assert rejected.grad.item() == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("margin", [0.5, torch.tensor([0.5, 0.5])])
def test_margin_is_taken_off_the_difference(margin: torch.Tensor | float) -> None:
    loss = bradley_terry_loss(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0]), margin=margin)
    assert loss.item() == pytest.approx(-log_sigmoid(0.5) - log_sigmoid(-1.5), abs=1e-6)


def test_every_pair_has_its_own_margin() -> None:
    margins = torch.tensor([0.0, 3.0])
    loss = bradley_terry_loss(torch.tensor([2.0, 2.0]), torch.tensor([1.0, 1.0]), margin=margins)
    assert loss.item() == pytest.approx(-log_sigmoid(1.0) - log_sigmoid(-2.0), abs=1e-6)


def test_label_smoothing_by_hand() -> None:
    # One label in ten is wrong: 0.9 of the loss of the order given, 0.1 of the other one.
    loss = bradley_terry_loss(torch.tensor([1.0]), torch.tensor([0.0]), label_smoothing=0.1)
    assert loss.item() == pytest.approx(-0.9 * log_sigmoid(1.0) - 0.1 * log_sigmoid(-1.0), abs=1e-6)


def test_centering_by_hand() -> None:
    # (1.5 + 0.5)^2 = 4 at weight 0.25 adds 1 to -ln sigmoid(1); opposite scores add nothing.
    loss = bradley_terry_loss(torch.tensor([1.5]), torch.tensor([0.5]), centering=0.25)
    assert loss.item() == pytest.approx(1.0 - log_sigmoid(1.0), abs=1e-6)
    opposite = bradley_terry_loss(torch.tensor([0.5]), torch.tensor([-0.5]), centering=0.25)
    assert opposite.item() == pytest.approx(-log_sigmoid(1.0), abs=1e-6)


def test_only_differences_count_without_centering() -> None:
    chosen, rejected = torch.tensor([0.5, -1.0]), torch.tensor([0.25, 2.0])
    shifted = bradley_terry_loss(chosen + 8, rejected + 8)
    torch.testing.assert_close(bradley_terry_loss(chosen, rejected), shifted)


def test_hopeless_pairs_give_finite_losses() -> None:
    assert bradley_terry_loss(torch.tensor([-500.0]), torch.tensor([500.0])).item() == pytest.approx(1000.0)


def test_bfloat16_scores_are_compared_in_fp32() -> None:
    # 3.015625 - 3 is one step of bfloat16 at 3; a difference of bfloat16 numbers would lose most of it at a margin.
    loss = bradley_terry_loss(torch.tensor([3.015625]).bfloat16(), torch.tensor([3.0]).bfloat16(), margin=0.001)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(-log_sigmoid(0.014625), abs=1e-6)

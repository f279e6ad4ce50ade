"""The loss against the textbook formula."""

import pytest
import torch
from torch.nn import functional as F

from neuralmem.training.loss import token_loss, write_price


def example() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    targets = torch.randint(7, (2, 5), generator=generator)
    targets[0, 3:] = -100
    return logits, targets


def test_without_weights_it_is_the_mean_over_targets() -> None:
    logits, targets = example()
    torch.testing.assert_close(token_loss(logits, targets), F.cross_entropy(logits.flatten(0, 1), targets.flatten()))


def test_weights_are_shares_of_the_mean() -> None:
    logits, targets = example()
    weights = torch.zeros(2, 5)
    weights[1, 0], weights[1, 4] = 3.0, 1.0
    each = -logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(token_loss(logits, targets, weights), (3 * each[1, 0] + each[1, 4]) / 4)


def test_no_target_is_no_loss_and_no_gradient() -> None:
    logits, targets = example()
    logits.requires_grad_()
    loss = token_loss(logits, targets.fill_(-100))
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def test_low_precision_logits_give_a_float32_loss() -> None:
    logits, targets = example()
    assert token_loss(logits.bfloat16(), targets).dtype == torch.float32


def test_a_shut_gate_costs_nothing_and_an_open_one_one() -> None:
    for floor in (None, 1.0, 1e-4):
        assert write_price(torch.tensor([0.0, 1.0]), floor).tolist() == pytest.approx([0, 1])


def test_the_logarithm_pushes_small_gates_as_hard_as_large_ones() -> None:
    """Along the logit, which is what a step of training moves."""

    def slopes(floor: float | None) -> torch.Tensor:
        logits = torch.tensor([0.003, 0.3], dtype=torch.float64).logit().requires_grad_()
        return torch.autograd.grad(write_price(logits.sigmoid(), floor).sum(), logits)[0]

    small, large = slopes(None)
    assert small < 0.02 * large
    small, large = slopes(1e-4)
    assert small > large > small / 2 > 0

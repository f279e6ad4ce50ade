"""The optimizers of matrices against literal loops, against what they reduce to, and at their bounds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neuralmem.errors import UserError
from neuralmem.ops.newton_schulz import newton_schulz
from neuralmem.training.optimizers import deep_momentum
from neuralmem.training.optimizers.deep_momentum import DeepMomentum
from neuralmem.training.optimizers.delta_momentum import DeltaMomentum
from neuralmem.training.optimizers.m3 import M3
from neuralmem.training.optimizers.together import Together

SHAPES = [(5, 3), (3, 5)]
ETA = 0.8
LARGEST = (1 - 0.95) ** -0.5  # of an entry of P g


def gradients(shape: tuple[int, int], steps: int = 7) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(steps)]


def descend(make: Callable[..., Optimizer], found: list[Tensor], **options: Any) -> Tensor:
    """The weights after these gradients, from zero."""
    weight = nn.Parameter(torch.zeros_like(found[0]))
    optimizer = make([weight], **options)
    for weight.grad in found:
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("shape", SHAPES)
def test_delta_momentum_is_the_literal_loop(shape: tuple[int, int]) -> None:
    lr, delta, decay = 0.3, 0.7, 0.9
    weight, m, square = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
    for step, g in enumerate(gradients(shape), start=1):
        square = decay * square + (1 - decay) * g**2
        held = sum(torch.outer(m @ row, row) for row in g / g.norm())
        m = ETA * m - delta * held + (1 - ETA) * g / ((square / (1 - decay**step)).sqrt() + 1e-8)
        weight = weight - lr * m
    ours = descend(DeltaMomentum, gradients(shape), lr=lr, momentum=ETA, delta=delta, square_decay=decay)
    torch.testing.assert_close(ours, weight, rtol=0, atol=1e-12)


PLAIN = [(DeltaMomentum, {"delta": 0.0}), (DeepMomentum, {"width": 0})]


@pytest.mark.parametrize(("make", "options"), PLAIN, ids=["delta 0", "width 0"])
def test_without_what_is_new_it_is_momentum(make: type[Optimizer], options: dict) -> None:
    found = gradients((4, 3))
    ours = descend(make, found, lr=0.5, momentum=ETA, square_decay=None, **options)
    theirs = descend(torch.optim.SGD, found, lr=0.5 * (1 - ETA), momentum=ETA)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("make", "options"), PLAIN, ids=["delta", "deep"])
def test_what_is_new_makes_a_difference(make: type[Optimizer], options: dict) -> None:
    found = gradients((4, 3))
    assert (descend(make, found, lr=1.0) - descend(make, found, lr=1.0, **options)).norm() > 1e-2


def test_delta_momentum_replaces_what_it_holds_along_a_gradient() -> None:
    """Of two steps along one row nothing of the first is left but eta - 1 of it; across it eta of it."""
    same, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    weight = nn.Parameter(torch.zeros(1, 2))
    for second, left in ((same, ETA - 1), (other, ETA)):
        optimizer = DeltaMomentum([weight], lr=1.0, momentum=ETA, square_decay=None)
        for weight.grad in (same, second):
            optimizer.step()
        expected = (1 - ETA) * (left * same + second)
        torch.testing.assert_close(optimizer.state[weight]["momentum"], expected)


def m3_loop(found: list[Tensor], lr: float, rho: float, f: int) -> Tensor:
    """Algorithm 1 with running means and a step of root mean square 0.2."""
    fast, slow, square = 0.95, 0.9, 0.999
    weight, m1, m2, v, o2 = (torch.zeros_like(found[0]) for _ in range(5))
    for step, g in enumerate(found, start=1):
        m1 = fast * m1 + (1 - fast) * g
        v = square * v + (1 - square) * g**2
        u = (newton_schulz(m1) + rho * o2) / ((v / (1 - square**step)).sqrt() + 1e-8)
        weight = weight - lr * 0.2 * u / u.square().mean().sqrt()
        if step % f == 0:
            m2 = slow * m2 + (1 - slow) * sum(found[step - f : step]) / f
            o2 = newton_schulz(m2)
    return weight


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_m3_is_the_literal_loop(shape: tuple[int, int], rho: float) -> None:
    ours = descend(M3, gradients(shape, 8), lr=0.3, slow_weight=rho, slow_every=3)
    torch.testing.assert_close(ours, m3_loop(gradients(shape, 8), 0.3, rho, 3), rtol=0, atol=1e-10)


def test_m3s_slow_momentum_waits_for_f_steps() -> None:
    found = gradients((4, 3), 8)
    apart = [
        (descend(M3, found[:n], slow_every=4, slow_weight=1.0) - descend(M3, found[:n], slow_weight=0.0)).norm()
        for n in (4, 5)
    ]
    assert apart[0] == 0
    assert apart[1] > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_m3_without_slow_momentum_is_muon_where_v_is_even(shape: tuple[int, int]) -> None:
    signs = [g.sign() for g in gradients(shape)]
    for n in range(len(signs)):
        steps = []
        for make, options in ((M3, {"slow_weight": 0.0}), (torch.optim.Muon, {"nesterov": False, "weight_decay": 0.0})):
            before, after = (descend(make, signs[:k] or [0 * signs[0]], lr=1.0, **options) for k in (n, n + 1))
            steps.append((after - before).flatten())
        assert torch.cosine_similarity(*steps, dim=0) > 0.999  # torch iterates in bfloat16
        torch.testing.assert_close(steps[0].square().mean().sqrt().item(), 0.2)


@pytest.mark.parametrize(("decay", "taken_over"), [(0.999, False), (0.95, True)])
def test_a_row_without_gradients_takes_m3s_steps_only_if_v_forgets_it_first(decay: float, taken_over: bool) -> None:
    weight, most = nn.Parameter(torch.zeros(4, 4)), 0.0
    optimizer = M3([weight], lr=1.0, square_decay=decay)
    for step, g in enumerate(gradients((4, 4), 600)):
        weight.grad = g.float() * torch.tensor([0.0, 1.0, 1.0, 1.0]) * torch.tensor([[0.0], [1.0], [1.0], [1.0]])
        weight.grad[0, 0] = float(step < 50)
        before = weight.detach().clone()
        optimizer.step()
        squares = (weight.detach() - before).square().sum(1)
        most = max(most, float(squares[0] / squares.sum())) if step >= 50 else 0.0
    assert most > 0.99 if taken_over else most < 0.9


def test_deep_momentum_descends_its_inner_objective() -> None:
    e = nn.functional.normalize(gradients((6, 4))[0], dim=1)
    into, out = (x.requires_grad_() for x in (gradients((3, 4))[0], gradients((4, 3))[0]))
    loss = -(deep_momentum._recall(e, into, out) * e).sum(1).mean()
    for ours, theirs in zip(deep_momentum._descent(e, into, out), torch.autograd.grad(loss, (into, out)), strict=True):
        torch.testing.assert_close(ours, -theirs, rtol=0, atol=1e-12)


def test_deep_momentum_is_the_literal_loop() -> None:
    found, lr = gradients((5, 3)), 0.3
    first = deep_momentum._first(found[0], 2)["first_into"]
    weight, s, b, shift = torch.zeros(5, 3).double(), torch.zeros(5, 3).double(), torch.zeros(3, 2).double(), 0 * first
    for u in found:
        s = ETA * s + (1 - ETA) * u
        e = torch.stack([row / row.norm() for row in u])
        a_then, b_then = (first + shift).requires_grad_(), b.clone().requires_grad_()
        inner = -(torch.tanh(e @ a_then.T) @ b_then.T / 2**0.5 * e).sum(1).mean()
        to_a, to_b = torch.autograd.grad(inner, (a_then, b_then))
        shift, b = ETA * shift - (1 - ETA) * to_a, ETA * b - (1 - ETA) * to_b
        recalled = torch.tanh(e @ (first + shift).T) @ b.T / 2**0.5
        weight = weight - lr * (s + u.norm(dim=1, keepdim=True) * recalled)
    ours = descend(DeepMomentum, found, lr=lr, momentum=ETA, width=2, square_decay=None)
    torch.testing.assert_close(ours, weight, rtol=0, atol=1e-12)


def test_deep_momentum_steps_farther_along_what_gradients_share() -> None:
    shared = [torch.ones(6, 4).double() for _ in range(40)]
    plain, deep = (descend(DeepMomentum, shared, lr=1.0, square_decay=None, width=width) for width in (0, 16))
    assert (deep / plain > 1.1).all()


HOSTILE = {
    "zero": [torch.zeros(4, 3)] * 20,
    "huge": [1e15 * g.float() for g in gradients((4, 3), 50)],
    "tiny": [1e-30 * g.float() for g in gradients((4, 3), 50)],
    "one row": [torch.eye(4, 3)[[0, 3, 3, 3]] * (step < 5) for step in range(60)],
    "turning": [torch.ones(4, 3) * (-1) ** step for step in range(60)],
    "outlier": [torch.ones(4, 3) * 1e10 ** (step == 30) for step in range(60)],
}


@pytest.mark.parametrize("found", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize(("make", "most"), [(M3, 0.2), (DeltaMomentum, LARGEST), (DeepMomentum, 2 * LARGEST)])
def test_steps_are_bounded(make: type[Optimizer], most: float, found: list[Tensor]) -> None:
    weight = nn.Parameter(torch.zeros_like(found[0]))
    optimizer = make([weight], lr=1.0)
    for weight.grad in found:
        before = weight.detach().clone()
        optimizer.step()
        assert weight.isfinite().all()
        assert (weight.detach() - before).square().mean().sqrt() <= most * (1 + 1e-5)


@pytest.mark.parametrize("make", [M3, DeltaMomentum, DeepMomentum])
def test_weight_decay_is_adamws(make: type[Optimizer]) -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    weight.grad = torch.zeros(2, 3)
    make([weight], lr=0.5, weight_decay=0.2).step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 3), 0.9))


@pytest.mark.parametrize("make", [M3, DeltaMomentum, DeepMomentum])
def test_only_matrices(make: type[Optimizer]) -> None:
    with pytest.raises(UserError, match=r"shape \[2, 3, 4\]; it must be a matrix"):
        make([nn.Parameter(torch.zeros(2, 3, 4))])


def test_together_is_each_for_itself() -> None:
    def parts() -> tuple[nn.Linear, Optimizer, Optimizer]:
        torch.manual_seed(0)
        layer = nn.Linear(3, 4)
        return layer, torch.optim.Muon([layer.weight], lr=0.1), torch.optim.AdamW([layer.bias], lr=0.2)

    apart, first, second = parts()
    joined, *both = parts()
    together = Together(both)

    def closure(layer: nn.Linear) -> Tensor:
        layer.zero_grad()
        loss = layer(torch.ones(2, 3)).square().sum()
        loss.backward()
        return loss

    for _ in range(3):
        loss = closure(apart)
        first.step()
        second.step()
        assert together.step(lambda: closure(joined)) == loss
    assert all(torch.equal(a, b) for a, b in zip(apart.parameters(), joined.parameters(), strict=True))


def test_together_shares_groups_and_state_also_after_loading() -> None:
    layer = nn.Linear(3, 4)
    together = Together([torch.optim.Muon([layer.weight], lr=0.1), torch.optim.AdamW([layer.bias], lr=0.2)])
    layer(torch.ones(2, 3)).sum().backward()
    together.step()
    together.load_state_dict(together.state_dict())
    for group in together.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in layer.parameters()]
    together.step()
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
    assert together.state[layer.bias]["step"] == 2
    assert set(together.state) == set(layer.parameters())

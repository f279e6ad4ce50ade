"""Moneta, Yaad and Memora against the equations of Miras, token by token, gradients by autograd."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from neuralmem import registry
from neuralmem.config import MemoryConfig
from neuralmem.memory._memory import Memory
from neuralmem.modules.stream import Rows

CONFIG = MemoryConfig(heads=1, head_width=4, expansion=1.5, chunk_size=4, alpha_bias=-2.0, theta_bias=2.0)
TOKENS = 10


def build(rule: str, **settings: object) -> Memory:
    torch.manual_seed(0)
    config = replace(CONFIG, rule=rule, **settings)
    return registry.find("rule", rule, Memory, "memory.rule")(8, config).double()


def loop(rule: Memory, x: Tensor, loss: Callable[[Tensor, Tensor], Tensor], to_weights: Callable[[Tensor], Tensor]):
    """Reads and the last A of one text: gradients at each chunk's first W, the map where chunks meet."""
    q, (k, v, theta, alpha, *more), _ = rule.project(x, rule.init_state(1).convolution, Rows())
    accumulated, reads = rule.fast(1)[0], []
    for start in range(0, TOKENS, 4):
        first = [to_weights(a).detach().requires_grad_() for a in accumulated]
        within, accumulated = [w.detach() for w in first], [a.detach() for a in accumulated]
        for t in range(start, min(start + 4, TOKENS)):
            error = (rule_read(rule, first, k[:, t : t + 1]) - v[:, t : t + 1])[0, 0, 0]
            gradients = torch.autograd.grad(loss(error, more[0][0, t, 0] if more else None), first)
            keep, rate = 1 - alpha[0, t, 0], theta[0, t, 0]
            within = [keep * w - rate * g for w, g in zip(within, gradients, strict=True)]
            accumulated = [keep * a - rate * g for a, g in zip(accumulated, gradients, strict=True)]
            reads.append(rule_read(rule, within, q[:, t : t + 1]))
    return torch.cat(reads, dim=1), accumulated


def rule_read(rule: Memory, weights: list[Tensor], x: Tensor) -> Tensor:
    """x + LN(W_2 silu(W_1 x)), the norm's gain and bias those of the rule."""
    h = F.silu(torch.einsum("bhij,bthj->bthi", weights[0], x))
    f = F.layer_norm(torch.einsum("bhij,bthj->bthi", weights[1], h), (4,), eps=1e-6)
    return x + f * rule.norm_gain + rule.norm_bias


def smooth(x: Tensor, p: float) -> Tensor:
    """A function whose slope is p sign(e) |e|^(p-1), smoothed: by a constant factor, so its value means nothing."""
    return (p * torch.tanh(x / 1e-3) * (x.square() + 1e-6) ** ((p - 1) / 2)).detach() * x


LOSSES = {
    "moneta": lambda e, _: smooth(e, 3.0).sum(),
    "memora": lambda e, _: e.square().sum(),
    "yaad": lambda e, delta: e.square().sum() if e.norm() <= delta else 2 * delta * e.norm() - delta**2,
}
MAPS = {
    "moneta": lambda a: a / a.pow(4).sum((-2, -1), keepdim=True).sqrt().clamp(min=0.1),
    "memora": lambda a: a.shape[-1] ** 0.5 * a.softmax(-1),
    "yaad": lambda a: a,
}


@pytest.mark.parametrize("name", ["moneta", "memora", "yaad"])
def test_it_is_the_papers_update_with_the_map_between_chunks(name: str) -> None:
    rule, x = build(name), 3 * torch.randn(1, TOKENS, 8, dtype=torch.float64)
    reads, accumulated = loop(rule, x, LOSSES[name], MAPS[name])
    q, written, _ = rule.project(x, rule.init_state(1).convolution, Rows())
    y, (after, _) = rule.update(q, written, rule.fast(1), None, None)
    torch.testing.assert_close(y, reads, atol=1e-10, rtol=0)
    for one, other in zip(after, accumulated, strict=True):
        torch.testing.assert_close(MAPS[name](one), MAPS[name](other), atol=1e-10, rtol=0)


def test_yaad_takes_both_branches_at_the_head_width_of_a_large_model() -> None:
    rule, x = build("yaad", head_width=64), torch.randn(1, 64, 8, dtype=torch.float64)
    _, (k, v, _, _, delta), _ = rule.project(x, rule.init_state(1).convolution, Rows())
    beyond = (rule.evaluate(k, rule.fast(1)[0]) - v).norm(dim=-1) > delta
    assert beyond.any()
    assert not beyond.all()


def test_memora_keeps_positive_weights_of_one_size_per_row() -> None:
    rule = build("memora")
    with torch.no_grad():
        _, state = rule(torch.randn(2, 30, 8, dtype=torch.float64))
    for a in state.weights:
        weights = rule.weights_of(a)
        assert (weights > 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.full_like(weights[..., 0], weights.shape[-1] ** 0.5))


def test_monetas_norm_has_a_floor() -> None:
    rule, tiny = build("moneta"), torch.full((1, 1, 4, 4), 1e-3, dtype=torch.float64)
    torch.testing.assert_close(rule.weights_of(tiny), tiny / 0.1)
    assert not rule.weights_of(0 * tiny).any()


def test_omega_with_a_window_of_one_token_is_titans() -> None:
    omega, titans = build("omega", omega_window=1), build("titans")
    weights = omega.state_dict()
    gates = len(titans.gate_map.bias)  # theta, alpha, eta come first
    weights |= {name: weights[name][:gates] for name in ("gate_map.weight", "gate_map.bias")}
    titans.load_state_dict(weights)
    x = torch.randn(2, 11, 8, dtype=torch.float64)
    y, state = omega(x)
    z, other = titans(x)
    torch.testing.assert_close(y, z, atol=1e-12, rtol=0)
    for one, two in zip(state.weights, other.weights, strict=True):
        torch.testing.assert_close(one, two, atol=1e-12, rtol=0)


def test_omega_writes_what_it_read_before_the_chunk() -> None:
    """The first token of a chunk takes its step for the last tokens of the chunk before too."""
    rule, x = build("omega", omega_window=3), torch.randn(1, 4, 8, dtype=torch.float64)
    with torch.no_grad():
        _, state = rule(x)
        empty = replace(state, momentum=(*state.momentum[:-1], torch.zeros_like(state.momentum[-1])))
        more = torch.randn(1, 1, 8, dtype=torch.float64)
        assert (rule(more, state)[0] - rule(more, empty)[0]).abs().max() > 1e-6

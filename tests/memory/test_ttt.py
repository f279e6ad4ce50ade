"""TTT's two memories against the paper's own forms: the dual form of a chunk, and Titans with eta = alpha = 0."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from neuralmem import registry
from neuralmem.config import MemoryConfig
from neuralmem.memory._memory import Memory
from neuralmem.memory.titans import Titans
from neuralmem.modules.stream import Rows

CONFIG = MemoryConfig(heads=2, chunk_size=4, momentum=False, output_gate=False)


def build(rule: str, **settings: object) -> Memory:
    torch.manual_seed(0)
    config = replace(CONFIG, rule=rule, **settings)
    return registry.find("rule", rule, Memory, "memory.rule")(8, config).double()


def test_the_dual_form_of_the_paper() -> None:
    """Z = W_0 Q - 2 Delta (theta o mask(K^T Q)) for f(x) = W x, columns are tokens; here with the residual x + W x."""
    rule, x = build("ttt_linear", norm=False, theta_max=0.5), torch.randn(1, 4, 8, dtype=torch.float64)
    q, (k, v, theta), _ = rule.project(x, rule.init_state(1).convolution, Rows())
    (first,), _ = rule.fast(1)
    y, ((last,), _) = rule.update(q, (k, v, theta), rule.fast(1), None, None)
    for head in range(2):
        W, Q, K, V = first[0, head], *(u[0, :, head].T for u in (q, k, v))
        error = K + W @ K - V
        mask = torch.ones(4, 4, dtype=torch.float64).triu() * theta[0, :, head, None]
        torch.testing.assert_close(y[0, :, head].T, Q + W @ Q - 2 * error @ ((K.T @ Q) * mask), atol=1e-12, rtol=0)
        torch.testing.assert_close(last[0, head], W - 2 * (error * theta[0, :, head]) @ K.T, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("rule", "depth", "activation"), [("ttt_linear", 1, "silu"), ("ttt_mlp", 2, "gelu_tanh")])
def test_it_is_titans_that_neither_forgets_nor_has_momentum(rule: str, depth: int, activation: str) -> None:
    ttt, titans = build(rule), build("titans", depth=depth, activation=activation)
    weights = ttt.state_dict()
    with torch.no_grad():
        for name, x in titans.state_dict().items():
            own = weights[name]
            if "gate_map" not in name:
                x.copy_(own)
            else:  # theta first, then alpha, whose gate is shut
                x.zero_()[: len(own)] = own
                x[len(own) :] = -1e4 if name.endswith("bias") else 0
    assert isinstance(titans, Titans)
    x = torch.randn(2, 11, 8, dtype=torch.float64)
    y, state = ttt(x)
    z, other = titans(x)
    torch.testing.assert_close(y, z, atol=1e-12, rtol=0)
    for one, two in zip(state.weights, other.weights, strict=True):
        torch.testing.assert_close(one, two, atol=1e-12, rtol=0)


def test_the_mlp_has_the_papers_activation_and_a_normed_residual() -> None:
    rule, q = build("ttt_mlp"), torch.randn(1, 3, 2, 4, dtype=torch.float64)
    (first, second), _ = rule.fast(1)
    inner = torch.einsum("bhij,bthj->bthi", first, q)
    f = torch.einsum("bhij,bthj->bthi", second, F.gelu(inner, approximate="tanh"))
    torch.testing.assert_close(rule.evaluate(q, (first, second)), q + F.layer_norm(f, (4,), eps=1e-6))

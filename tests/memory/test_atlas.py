"""Atlas as a rule: what is left of it without powers, Newton-Schulz and a window; what it learns, how far it moves."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from neuralmem import registry
from neuralmem.config import MemoryConfig
from neuralmem.errors import UserError
from neuralmem.memory._memory import Memory
from neuralmem.modules.stream import Rows

CONFIG = MemoryConfig(heads=2, head_width=4, expansion=1.5, chunk_size=4, alpha_bias=-2.0, theta_bias=2.0)


def build(rule: str, **settings: object) -> Memory:
    torch.manual_seed(0)
    config = replace(CONFIG, rule=rule, **settings)
    return registry.find("rule", rule, Memory, "memory.rule")(8, config).double()


def same_numbers(other: Memory, atlas: Memory, gates: int) -> None:
    """Give `other` the parameters of `atlas`, whose further gates it lacks."""
    weights = {name: x for name, x in atlas.state_dict().items() if name != "coefficients"}
    other.load_state_dict(weights | {name: weights[name][:gates] for name in ("gate_map.weight", "gate_map.bias")})


@pytest.mark.parametrize("momentum", [True, False])
def test_without_powers_newton_schulz_and_window_it_is_titans(momentum: bool) -> None:
    """With momentum where theta and eta are constant, for theta stands outside."""
    settings = {"momentum": momentum}
    atlas = build("atlas", polynomial=1, muon=False, omega_window=1, **settings)
    titans = build("titans", **settings)
    if momentum:
        with torch.no_grad():
            atlas.gate_map.weight.zero_()
    same_numbers(titans, atlas, len(titans.gate_map.bias))
    x = torch.randn(2, 11, 8, dtype=torch.float64)
    (y, state), (z, other) = atlas(x), titans(x)
    torch.testing.assert_close(y, z, atol=1e-12, rtol=0)
    for one, two in zip(state.weights, other.weights, strict=True):
        torch.testing.assert_close(one, two, atol=1e-12, rtol=0)


def test_without_powers_newton_schulz_and_momentum_it_is_omega() -> None:
    settings = {"omega_window": 3, "momentum": False}
    atlas, omega = build("atlas", polynomial=1, muon=False, **settings), build("omega", **settings)
    same_numbers(omega, atlas, len(omega.gate_map.bias))
    x = torch.randn(2, 11, 8, dtype=torch.float64)
    torch.testing.assert_close(atlas(x)[0], omega(x)[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("settings", [{"polynomial": 1}, {"muon": False}, {"omega_window": 1}])
def test_each_part_changes_what_is_read(settings: dict[str, object]) -> None:
    whole, less = build("atlas"), build("atlas", **settings)
    x = torch.randn(1, 11, 8, dtype=torch.float64)
    with torch.no_grad():
        assert (whole(x)[0] - less(x)[0]).abs().max() > 1e-3


def singular_values(weights: Tensor) -> Tensor:
    return torch.linalg.svdvals(weights.detach())


def test_a_chunk_moves_no_direction_by_more_than_theta_max() -> None:
    """However loud what is read is: its first weights, kept or not, and what Newton-Schulz may add to 1."""
    rule = build("atlas", alpha_bias=-20.0, theta_max=1.6)
    q, (k, v, theta, *rest), _ = rule.project(torch.randn(1, 4, 8).double(), rule.init_state(1).convolution, Rows())
    fast = rule.fast(1)
    for loud in (1e-3, 1.0, 1e6):
        _, (after, _) = rule.update(q, (k, loud * v, theta, *rest), fast, None, None)
        for one, two in zip(fast[0], after, strict=True):
            moved = singular_values(two - one)[..., 0]
            bound = theta.sum(1)[..., None].amax()
            assert 0.3 * bound < moved.max() < 1.25 * bound < 1.25 * 1.6


def test_coefficients_start_at_one_over_the_factorial() -> None:
    rule = build("atlas", polynomial=4)
    expected = torch.tensor([1, 1 / 2, 1 / 6, 1 / 24], dtype=torch.float64).expand(2, 4)
    torch.testing.assert_close(rule.coefficients.detach(), expected, atol=1e-7, rtol=0)
    assert [list(w.shape) for w in rule.weights] == [[2, 6, 16], [2, 4, 6]]


def test_a_window_longer_than_a_chunk_is_refused() -> None:
    with pytest.raises(UserError, match=r"^memory.omega_window is 5; it must be at most memory.chunk_size, 4"):
        build("atlas", omega_window=5)
    with pytest.raises(UserError, match=r"^memory.polynomial is 0; it must be positive"):
        build("atlas", polynomial=0)

"""Self-modifying Titans as a memory: what is made of a token changes with what was read; that it stays finite."""

import pytest
import torch
from torch.nn import functional as F

from neuralmem.config import MemoryConfig
from neuralmem.errors import UserError
from neuralmem.memory import self_modifying as self_modifying_file
from neuralmem.memory._rule import MemoryRule
from neuralmem.memory._ways import Ways
from neuralmem.memory.self_modifying import MAKER_LENGTH, MEMORY_LENGTH, SelfModifying
from neuralmem.modules.stream import Rows
from neuralmem.ops.self_modifying import make_boxes, split_boxes

H, D = 2, 4


def build(width: int = 8, **settings: object) -> SelfModifying:
    torch.manual_seed(0)
    return SelfModifying(
        width, MemoryConfig(rule="self_modifying", **{"heads": H, "chunk_size": 4, **settings})
    ).double()


def draw(tokens: int, width: int = 8) -> torch.Tensor:
    return torch.randn(2, tokens, width, dtype=torch.float64)


def make(rule: SelfModifying, x: torch.Tensor, weights: tuple[torch.Tensor, ...]):
    _, inputs, _ = rule.project(x, rule.init_state(len(x)).convolution, Rows())
    boxes = make_boxes(**rule._slow, dtype=torch.float64)
    return boxes.make(*(u.transpose(1, 2) for u in inputs), split_boxes(weights))


def test_it_shares_the_ways_in_and_out_but_has_no_projected_keys() -> None:
    rule, x = build(), draw(9)
    assert isinstance(rule, Ways)
    assert not isinstance(rule, MemoryRule)
    q, (key_input, value_input), _ = rule.project(x, rule.init_state(2).convolution, Rows())
    torch.testing.assert_close(q.norm(dim=-1), torch.ones(2, 9, H, dtype=torch.float64))
    torch.testing.assert_close(F.normalize(key_input, dim=-1)[:, 1:], q[:, :-1])
    torch.testing.assert_close(value_input, F.silu(rule.value(x)).unflatten(-1, (H, D)))


def test_keys_values_and_gates_of_a_text_change_with_what_was_read() -> None:
    rule, x = build(width=32), draw(9, 32)
    with torch.no_grad():
        _, state = rule(draw(40, 32))
        before, after = (make(rule, x, s.weights) for s in (rule.init_state(2), rule.close(state)))
    for name in ("k", "v", "theta", "alpha"):
        one, two = getattr(before, name), getattr(after, name)
        assert (one - two).abs().max() > 1e-3 * one.abs().max(), name


def test_gates_are_bounded_and_start_at_their_biases() -> None:
    rule = build(theta_bias=1.0, alpha_bias=-5.0, theta_max=0.9)
    loud = make(rule, 100 * draw(30), rule.fast(2)[0])
    assert ((loud.theta >= 0) & (loud.theta <= 2 / 3 * 0.9 / 4 + 1e-12)).all()
    assert ((loud.alpha >= 0) & (loud.alpha <= 1)).all()
    with torch.no_grad():
        rule.gate_map_weight.zero_()
    made = make(rule, draw(3), rule.fast(2)[0])
    bias = torch.tensor([1.0, -5.0], dtype=torch.float64).sigmoid()
    torch.testing.assert_close(made.theta, (2 / 3 * 0.9 / 4 * bias[0]).expand(2, H, 3))
    torch.testing.assert_close(made.alpha, bias[1].expand(2, H, 3))


def test_at_the_start_the_makers_add_little_to_what_they_read() -> None:
    rule = build(induction=False)
    assert rule.norm_gain[: 4 * H].unique().item() == pytest.approx(MAKER_LENGTH / D**0.5)
    assert rule.norm_gain[4 * H :].unique().item() == pytest.approx(MEMORY_LENGTH / D**0.5)
    rule, x = build(width=64, heads=2), draw(20, 64)
    q, _, _ = rule.project(x, rule.init_state(2).convolution, Rows())
    k = make(rule, x, rule.fast(2)[0]).k.transpose(1, 2)
    likeness = (k[:, 1:] * q[:, :-1]).sum(-1)
    assert likeness.mean() > 0.8, "a key is still what the token before asks with"


def test_without_dgd_it_is_another_memory_and_still_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    rule, x = build(width=32, chunk_size=8), draw(40, 32)
    with torch.no_grad():
        y, _ = rule(x)
        monkeypatch.setattr(SelfModifying, "dgd", False)
        state, errors = rule.init_state(2), []
        for _ in range(3):
            errors.append(float(rule.recall_error(x, state)))
            z, state = rule(x, state)
    assert (y - z).abs().max() > 1e-3
    assert errors[2] < 0.7 * errors[0]


def test_the_norm_cannot_be_switched_off() -> None:
    with pytest.raises(UserError, match=r"^memory.norm is off; rule self_modifying needs it"):
        build(norm=False)


@pytest.mark.parametrize("dgd", [True, False], ids=["dgd", "gradient"])
def test_the_worst_gates_leave_8k_repeated_tokens_finite(dgd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest rate, nothing forgotten; one token repeated, two in turn, anything."""
    monkeypatch.setattr(SelfModifying, "dgd", dgd)
    rule = build(width=16, chunk_size=32, theta_bias=20.0, alpha_bias=-20.0).float()
    words, index = 4 * torch.randn(3, 16), torch.arange(8192)
    text = torch.stack([words[0].expand(8192, 16), words[index % 2], words[torch.randint(3, (8192,))]])
    with torch.inference_mode():
        y, state = rule(text)
    assert y.isfinite().all()
    for w in state.weights:
        assert w.isfinite().all()
        assert w.abs().max() < 1e3


@pytest.mark.parametrize("text", ["random", "repeated"])
def test_gradients_through_hundreds_of_chunks_stay_small(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a loss that does not depend on the length. With the usual eps of a norm they do not (the op's README)."""

    def largest(tokens: int) -> float:
        rule = build(width=64, heads=1, chunk_size=16).float()
        x = torch.randn(1, 32, 64).repeat(1, tokens // 32, 1) if text == "repeated" else torch.randn(1, tokens, 64)
        y, _ = rule(x)
        (y * torch.randn_like(y)).mean().backward()
        return max(float(p.grad.abs().max()) for p in rule.parameters() if p.grad is not None)

    assert largest(2048) < largest(128)
    monkeypatch.setattr(self_modifying_file, "NORM_EPS", 64e-6)
    assert largest(2048) > 1000 * largest(128)


@pytest.mark.parametrize("depth", [1, 3])
def test_a_memory_may_have_any_number_of_matrices(depth: int) -> None:
    rule, x = build(depth=depth), draw(9)
    assert len(rule.initial()[0]) == depth
    y, _ = rule(x)
    state, outputs = None, []
    for part in x.split([2, 5, 2], dim=1):
        z, state = rule(part, state)
        outputs.append(z)
    torch.testing.assert_close(torch.cat(outputs, dim=1), y, atol=1e-10, rtol=0)

"""LaCT as a memory: what a stream reads and when it writes, its gates, what of Titans' laws holds for a dot product."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from neuralmem import registry
from neuralmem.config import AttentionConfig, MemoryConfig, ModelConfig
from neuralmem.layers._layer import Layer
from neuralmem.memory.lact import LaCT
from neuralmem.modules.stream import Rows
from neuralmem.ops import swiglu_memory
from neuralmem.probe import recording

CONFIG = MemoryConfig(rule="lact", heads=2, chunk_size=4)
SWITCHES = pytest.mark.parametrize(
    ("muon", "momentum"), [(True, True), (True, False), (False, True), (False, False)], ids=str
)


def build(width: int = 8, **settings: object) -> LaCT:
    torch.manual_seed(0)
    return LaCT(width, replace(CONFIG, **settings)).double()


def draw(tokens: int, width: int = 8) -> torch.Tensor:
    return torch.randn(2, tokens, width, dtype=torch.float64)


@SWITCHES
def test_a_whole_text_is_one_call_of_the_op(muon: bool, momentum: bool) -> None:
    module, x = build(muon=muon, momentum=momentum), draw(11)
    q, (k, v, theta, *eta), _ = module.project(x, module.init_state(2).convolution, Rows())
    weights, past = module.fast(2)
    y, *_ = swiglu_memory(q, k, v, theta, eta[0] if eta else None, weights, past or None, muon=muon, chunk_size=4)
    gated = module.read_norm(y).flatten(2) * F.silu(module.gate(x))
    torch.testing.assert_close(module(x)[0], module.output(gated))


@SWITCHES
def test_cuts_documents_and_padding_with_every_switch(muon: bool, momentum: bool) -> None:
    module, x = build(muon=muon, momentum=momentum), draw(19)
    reset, mask = torch.zeros(2, 19, dtype=torch.bool), torch.ones(2, 19, dtype=torch.bool)
    reset[0, 6], mask[1, 3:12] = True, False
    with torch.no_grad():
        y, state = module(x, mask=mask, reset=reset)
        outputs, after = [], None
        for a, b in ((0, 1), (1, 7), (7, 8), (8, 10), (10, 19)):
            z, after = module(x[:, a:b], after, mask=mask[:, a:b], reset=reset[:, a:b])
            outputs.append(z)
        alone, own = module(x[:1, 6:])
    torch.testing.assert_close(torch.cat(outputs, dim=1), y, atol=1e-10, rtol=0)
    torch.testing.assert_close(y[:1, 6:], alone, atol=1e-10, rtol=0)
    for (_, one), (_, other), (_, last) in zip(state.items(), after.items(), own.items(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)
        torch.testing.assert_close(one[:1], last, atol=1e-10, rtol=0)


@SWITCHES
def test_every_parameter_gets_a_gradient_that_is_finite_and_not_zero(muon: bool, momentum: bool) -> None:
    module = build(muon=muon, momentum=momentum)
    (module(draw(13))[0] - draw(13)).square().mean().backward()
    for name, x in module.named_parameters():
        assert x.grad is not None, name
        assert x.grad.isfinite().all(), name
        assert x.grad.any(), name


def test_an_unfinished_chunk_is_read_at_the_weights_of_its_start() -> None:
    module, x = build(), draw(7)
    _, state = module(x[:, :6])
    q, *_ = module.project(x, module.init_state(2).convolution, Rows())
    y, _ = module(x[:, 6:], state)
    torch.testing.assert_close(y, module.leave(module.evaluate(q[:, 6:], state.weights), x[:, 6:]))


@SWITCHES
def test_reading_an_unfinished_chunk_is_the_last_row_of_an_update(muon: bool, momentum: bool) -> None:
    module, x = build(muon=muon, momentum=momentum), draw(3)
    q, written, _ = module.project(x, module.init_state(2).convolution, Rows())
    arguments = q[:, -1:], written, module.fast(2), torch.tensor([[True, True, True], [True, False, False]])
    plain = super(LaCT, module).read_unfinished(*arguments)
    torch.testing.assert_close(module.read_unfinished(*arguments), plain, atol=1e-12, rtol=0)


def test_a_later_step_of_training_changes_the_length_of_rows_in_a_stream_that_goes_on() -> None:
    module, x = build(), draw(8)
    _, state = module(x[:, :4])
    with torch.no_grad():
        for weight in module.weights:
            weight.mul_(2)
    _, after = module(x[:, 4:], state)
    for weight, first, old in zip(after.weights, module.weights, state.weights, strict=True):
        torch.testing.assert_close(weight.norm(dim=-1), first.norm(dim=-1).expand(2, -1, -1))
        torch.testing.assert_close(weight.norm(dim=-1), 2 * old.norm(dim=-1))


@pytest.mark.parametrize("momentum", [True, False])
def test_gates_stay_in_their_bounds_and_start_at_their_biases(momentum: bool) -> None:
    module = build(momentum=momentum, theta_max=1.6, theta_bias=1.0, eta_bias=-2.0)
    theta, *eta = module.gates(100 * draw(50))
    assert theta.shape == (2, 50, 2, 3)
    assert len(eta) == momentum
    assert theta.min() >= 0
    assert theta.max() <= 1.6 / 4 + 1e-12, "so that a chunk's sum is at most theta_max"
    assert (theta[..., 0] - theta[..., 1]).abs().max() > 0.1, "one per matrix"
    theta, *eta = module.gates(torch.zeros(1, 1, 8, dtype=torch.float64))
    sigmoid = lambda bias: torch.tensor(bias, dtype=torch.float64).sigmoid().item()
    assert theta.flatten().tolist() == pytest.approx([1.6 / 4 * sigmoid(1.0)] * 6)
    assert not momentum or eta[0].flatten().tolist() == pytest.approx([sigmoid(-2.0)] * 2)


@SWITCHES
@pytest.mark.parametrize("chunk_size", [8, 32])
def test_what_is_read_again_is_known_in_its_direction(muon: bool, momentum: bool, chunk_size: int) -> None:
    """Without Muon a step is as small as what f_W reads at its start, so theta_max has to be larger."""
    module = build(32, muon=muon, momentum=momentum, chunk_size=chunk_size, theta_max=1.6 if muon else 16.0)
    x, state, errors = draw(40, 32), None, []
    with torch.no_grad():
        for _ in range(3):
            errors.append(float(module.recall_error(x, state or module.init_state(2))))
            _, state = module(x, state)
    assert max(errors[1:]) < 0.9 * errors[0]
    assert 0 < errors[-1] < errors[0] < 2


def test_the_distance_to_the_value_is_not_what_a_dot_product_lowers() -> None:
    """Why recall_error and the surprise are angles: f_W points to v and grows past it, and |f_W(k) - v|^2 rises."""
    module, x = build(32, muon=False, chunk_size=8, theta_max=16.0), draw(40, 32)
    _, (k, v, *_), _ = module.project(x, module.init_state(2).convolution, Rows())
    state, angles, distances = None, [], []
    with torch.no_grad():
        for _ in range(5):
            y = module.evaluate(k, module.close(state or module.init_state(2)).weights)
            angles.append(float((1 - F.cosine_similarity(y, v, dim=-1)).mean()))
            distances.append(float((y - v).square().sum(-1).mean()))
            _, state = module(x, state)
    assert angles[-1] < 0.8 * angles[0]
    assert distances[-1] > 1.2 * distances[0]


@SWITCHES
def test_gates_at_their_worst_and_huge_vectors_leave_everything_finite(muon: bool, momentum: bool) -> None:
    """Nothing of the momentum decays, every token counts in full, and values are a thousand times a norm's."""
    module = build(muon=muon, momentum=momentum, theta_bias=20.0, eta_bias=20.0).float()
    x = 1e3 * draw(1024).float()
    x[1, 256:512] = x[1, 0]
    with torch.no_grad():
        y, state = module(x)
    assert y.isfinite().all()
    for name, value in state.items():
        assert value.isfinite().all(), name


def test_what_is_observed() -> None:
    module, x = build(), draw(12)
    with recording(module) as record, torch.no_grad():
        module(x)
    seen = record.means()
    saturated = ("theta_saturated", "eta_saturated")
    assert set(seen) == {f"/{name}" for name in ("write", "theta", "eta", "surprise", "state_norm", *saturated)}
    assert seen["/theta"] == pytest.approx(1.6 / 4 * seen["/write"], rel=1e-5)
    assert 0 < seen["/surprise"] < 2


def test_a_layer_with_a_window_over_the_chunk_sees_every_token_before() -> None:
    """The memory is blind inside a chunk, so something else has to see it; each of the last tokens changes the last."""
    torch.manual_seed(0)
    config = ModelConfig(11, width=8, depth=1, memory=CONFIG, attention=AttentionConfig(heads=2, window=4))
    layer = registry.find("layer", "titans_mag", Layer, "model.pattern")(config).double()
    x = draw(12)[:1].requires_grad_()
    y, _ = layer(x)
    (gradient,) = torch.autograd.grad(y[:, -1].square().sum(), x)
    assert gradient.abs().amax(-1).min() > 0


def test_sizes_follow_the_config() -> None:
    module = build(expansion=1.5, head_width=6, heads=3)
    weights, momentum = module.initial()
    assert [tuple(w.shape) for w in weights] == [(3, 9, 6), (3, 6, 9), (3, 9, 6)]
    assert [w.shape for w in momentum] == [w.shape for w in weights]
    assert build(momentum=False).initial()[1] == ()

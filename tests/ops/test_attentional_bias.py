"""Inner losses of a memory: with any of them every backend is the paper's loop, and each is what it is called."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralmem import probe
from neuralmem.errors import UserError
from neuralmem.ops import L2, Huber, Lp, decode_memory, evaluate_memory, neural_memory
from tests.ops.memory_cases import (
    Call,
    D,
    assert_all_close,
    check_against_the_papers_loop,
    flatten,
    make,
    outputs_and_gradients,
    relative_error,
)

# Smoothed over a tenth to a third of a typical error, so that the smoothing itself is tested.
BIASES = {"p=1": Lp(1.0, 0.1), "p=1.5": Lp(1.5, 0.01), "p=3": Lp(3.0, 0.1), "huber": Huber}
each_bias = pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
in_torch = pytest.mark.parametrize("backend", ["reference", "chunked"])


@pytest.mark.parametrize(("layers", "momentum", "norm"), list(product((1, 2), (True, False), (True, False))))
@each_bias
def test_depth_momentum_and_norm(bias: Any, layers: int, momentum: bool, norm: bool) -> None:
    check_against_the_papers_loop(make(bias=bias, layers=layers, momentum=momentum, norm=norm))


@pytest.mark.parametrize("tokens", [0, 1, 2, 5, 6, 11])
@each_bias
def test_ugly_lengths(bias: Any, tokens: int) -> None:
    check_against_the_papers_loop(make(tokens, bias=bias, mask=True), recomputed=(1, 2, 3))


@pytest.mark.parametrize(("mask", "reset"), list(product((True, False), repeat=2)))
@each_bias
def test_mask_and_reset(bias: Any, mask: bool, reset: bool) -> None:
    check_against_the_papers_loop(make(17, bias=bias, mask=mask, reset=reset, chunk_size=4), recomputed=(2,))


@each_bias
def test_two_calls_are_one(bias: Any) -> None:
    call = make(13, bias=bias)
    whole = call.run(backend="chunked")
    first, rest = (cut(call, part) for part in (slice(0, 10), slice(10, 13)))
    y, *state = first.run(backend="chunked")
    rest.tensors |= dict(zip(("weights", "momentum"), state, strict=True))
    z, *state = rest.run(backend="chunked")
    assert_all_close(flatten((torch.cat([y, z], dim=1), *state)), flatten(whole))


def cut(call: Call, part: slice) -> Call:
    """Some of a call's tokens."""
    tensors = {name: x[:, part] if isinstance(x, Tensor) else x for name, x in call.tensors.items()}
    return Call(tensors, {**call.options, "bias": call.options["bias"].map(lambda x: x[:, part])})


@in_torch
@each_bias
@pytest.mark.parametrize("mask", [True, False])
def test_decoding_is_the_last_row_of_a_chunk(bias: Any, backend: str, mask: bool) -> None:
    call = make(6, bias=bias, mask=mask, chunk_size=7)
    y = call.run(backend="chunked")[0][:, -1:]
    options = {name: value for name, value in call.options.items() if name != "chunk_size"}
    ours = decode_memory(**{**call.tensors, "q": call.tensors["q"][:, -1:]}, **options, backend=backend)
    assert_all_close([ours], [y])
    gradients = (torch.autograd.grad(x.square().sum(), call.leaves(), materialize_grads=True) for x in (ours, y))
    assert_all_close(*map(list, gradients))


@in_torch
def test_special_cases(backend: str) -> None:
    """p = 2 is |e|^2 to the bit, and so is a threshold that no error passes; one of 0 lets no token write."""
    call = make(11)
    plain = outputs_and_gradients(call.run(backend=backend), call)
    for bias in (L2(), Lp(2.0), Lp(2.0, smooth=0)):
        ours = outputs_and_gradients(call.run(backend=backend, bias=bias), call)
        assert_all_close(ours[0], plain[0], 0.0)
        assert_all_close(ours[1], plain[1], 0.0)
    delta = torch.full_like(call.tensors["theta"], 1e9)
    assert_all_close(flatten(call.run(backend=backend, bias=Huber(delta))), plain[0], 1e-12)
    silent = call.run(backend=backend, bias=Huber(0 * delta))
    still = Call({**call.tensors, "theta": 0 * delta}, call.options).run(backend=backend)
    assert_all_close(flatten(silent), flatten(still), 1e-12)


@pytest.mark.parametrize("p", [1.0, 1.3, 2.0, 2.5, 3.0, 4.0])
def test_lp_is_the_slope_of_the_lp_norm(p: float) -> None:
    """Beyond the width that is smoothed; without smoothing everywhere."""
    error = torch.tensor([-3.0, -0.5, -0.05, 0.05, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(error.abs().pow(p).sum(), error)
    torch.testing.assert_close(Lp(p).slope(error), expected, rtol=1e-3, atol=0)
    if p >= 2:
        torch.testing.assert_close(Lp(p, smooth=0).slope(error), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("bias", [Lp(1.0), Lp(1.5), Lp(2.0), Lp(3.0), Lp(2.5, smooth=0), Lp(3.0, smooth=0)])
def test_an_error_of_zero_has_a_finite_slope_and_derivative(bias: Lp) -> None:
    error = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    slope = bias.slope(error)
    (steepness,) = torch.autograd.grad(slope.sum(), error)
    assert not slope.any()
    assert steepness.isfinite().all()


def test_huber_switches_by_the_length_of_the_error() -> None:
    """Not entry by entry: a long error's small entries count as much as its large ones, as in the l1 norm."""
    error = torch.tensor([[0.3, -0.4], [0.1, -5.0]], dtype=torch.float64)
    delta = torch.full((2, 1), 0.5, dtype=torch.float64, requires_grad=True)
    slope = Huber(delta, smooth=1e-6).slope(error, delta)
    torch.testing.assert_close(slope, torch.tensor([[0.6, -0.8], [0.5, -0.5]], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(slope.square().sum(), delta)
    torch.testing.assert_close(gradient, torch.tensor([[0.0], [2.0]], dtype=torch.float64))


def test_huber_without_smoothing_is_the_slope_of_hubers_loss_of_the_length() -> None:
    """|e|^2 up to delta, 2 delta |e| - delta^2 beyond: continuous, and never longer than 2 delta."""
    error = (3 * torch.randn(64, 5, dtype=torch.float64)).requires_grad_()
    delta = torch.full((64, 1), 5.0, dtype=torch.float64)
    length = error.norm(dim=-1, keepdim=True)
    near = length <= delta
    assert near.any()
    assert not near.all()
    loss = torch.where(near, length.square(), 2 * delta * length - delta.square())
    (wanted,) = torch.autograd.grad(loss.sum(), error)
    slope = Huber(delta).slope(error, delta)
    torch.testing.assert_close(slope, wanted)
    assert (slope.norm(dim=-1, keepdim=True) <= 2 * delta + 1e-12).all()
    (zero,) = torch.autograd.grad(Huber(delta).slope(0 * error, delta).sum(), error)
    assert zero.isfinite().all()


@in_torch
def test_the_threshold_learns_from_the_tokens_beyond_it(backend: str) -> None:
    """And both branches are taken by the calls of this file."""
    call = make(9, bias=Huber, chunk_size=9)
    delta = call.options["bias"].delta
    error = evaluate_memory(call.tensors["k"], call.tensors["weights"], norm=call.options["norm"]) - call.tensors["v"]
    beyond = error.norm(dim=-1) > delta
    assert 0.2 < beyond.double().mean() < 0.8
    y, *_ = call.run(backend=backend)
    (gradient,) = torch.autograd.grad(y.square().sum(), delta)
    assert torch.equal(gradient != 0, beyond)


@in_torch
def test_what_a_masked_token_has_for_a_threshold_does_not_matter(backend: str) -> None:
    call = make(9, bias=Huber, mask=True)
    mask = call.options["write_mask"]
    expected = outputs_and_gradients(call.run(backend=backend), call)
    delta = torch.where(mask[..., None], call.options["bias"].delta.detach(), torch.nan).requires_grad_()
    other = Call(call.tensors, {**call.options, "bias": Huber(delta, 0.1)})
    ours = outputs_and_gradients(other.run(backend=backend), other)
    assert_all_close([*ours[0], *ours[1]], [*expected[0], *expected[1]], 0.0)


@each_bias
def test_the_surprise_stays_the_squared_error(bias: Any) -> None:
    call, network = make(4, bias=bias, chunk_size=4), torch.nn.Linear(1, 1)
    error = evaluate_memory(call.tensors["k"], call.tensors["weights"], norm=call.options["norm"]) - call.tensors["v"]
    with probe.recording(network) as record, probe.inside(network):
        call.run()
    assert record.means()["/surprise"] == pytest.approx(error.square().sum(-1).mean().item())


@each_bias
def test_gradcheck(bias: Any) -> None:
    call = make(5, chunk_size=2, hidden=3, bias=bias, mask=True, reset=True)

    def run(*leaves: Tensor) -> tuple[Tensor, ...]:
        rest = iter(leaves)
        return tuple(flatten(call.map(lambda _: next(rest)).run(backend="chunked")))

    assert torch.autograd.gradcheck(run, tuple(call.leaves()), fast_mode=True)


@each_bias
def test_narrow_dtypes(bias: Any) -> None:
    """Over few tokens: at the inner rates of these calls what rounding does grows from chunk to chunk."""
    call = make(6, bias=bias).map(Tensor.detach)
    exact = flatten(call.run())
    assert relative_error(flatten(call.map(Tensor.float).run()), exact) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        y, weights, _ = call.map(Tensor.float).run()
    assert y.dtype == torch.bfloat16
    assert {w.dtype for w in weights} == {torch.float32}
    assert relative_error(list(weights), exact[1:3]) < 0.02


@pytest.mark.parametrize("bias", [Lp(3.0), Huber], ids=["p=3", "huber"])
def test_it_compiles_without_a_break_in_the_graph(bias: Any) -> None:
    call = make(5, chunk_size=3, mask=True, bias=bias)
    compiled = torch.compile(neural_memory, fullgraph=True, backend="aot_eager")
    expected = outputs_and_gradients(call.run(), call)
    ours = outputs_and_gradients(compiled(**call.tensors, **call.options), call)
    assert_all_close([*ours[0], *ours[1]], [*expected[0], *expected[1]])
    torch._dynamo.reset()


def test_the_kernels_have_the_squared_error_only() -> None:
    call = make(3, bias=Lp(3.0))
    with pytest.raises(UserError, match=r"^backend is 'native', which cannot run here: .* not the bias Lp$"):
        call.run(backend="native")
    tensors = {**call.tensors, "q": call.tensors["q"][:, :1]}
    with pytest.raises(UserError, match=r"^backend is 'native', which cannot run here: .* not the bias Lp$"):
        decode_memory(**tensors, bias=Lp(3.0), backend="native")


@pytest.mark.parametrize(
    ("message", "make_bias"),
    {
        "p is 0.5; it must be at least 1": lambda: Lp(0.5),
        "smooth is 0; it must be above 0": lambda: Lp(1.5, smooth=0),
        "smooth is -1; it must be at least 0": lambda: Lp(3.0, smooth=-1),
        "smooth is 0.0; it must be above 0": lambda: Huber(torch.zeros(2, 3, 2), 0.0),
        "bias is 'l1'; it must be None, L2(), Lp(p) or Huber(delta)": lambda: "l1",
        "bias delta has shape [2, 3, 4]; it must be [2, 3, 2]": lambda: Huber(torch.zeros(2, 3, D)),
        "bias delta has dtype torch.int64; it must be a floating-point tensor": lambda: Huber(
            torch.zeros(2, 3, 2, dtype=torch.long)
        ),
        "bias delta is on meta; it must be on cpu like q": lambda: Huber(torch.zeros(2, 3, 2, device="meta")),
    }.items(),
)
def test_what_does_not_fit_is_refused(message: str, make_bias: Any) -> None:
    with pytest.raises(UserError) as error:
        make(3).run(bias=make_bias())
    assert str(error.value) == message

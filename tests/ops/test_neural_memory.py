"""`neural_memory`: every backend is the paper's loop, to 1e-10 in float64, outputs, state and every gradient."""

import importlib
from itertools import product

import pytest
import torch
from torch import Tensor

from neuralmem.ops import evaluate_memory, neural_memory
from neuralmem.ops.decay import decay_products
from neuralmem.ops.neural_memory.native import CPU_ERROR
from tests.ops.memory_cases import (
    ACTIVATION,
    NATIVE,
    Call,
    assert_all_close,
    check_against_the_papers_loop,
    each_backend,
    flatten,
    make,
    outputs_and_gradients,
    relative_error,
)

# What is written in torch shares the loop's results; the kernels, where they are built, are tests of their own.
in_torch_and_native = pytest.mark.parametrize(
    "backends",
    [pytest.param(("reference", "chunked"), id="torch"), pytest.param(("native",), marks=NATIVE.marks, id="native")],
)


@pytest.mark.parametrize(("layers", "norm", "residual"), list(product((1, 2, 3), (True, False), (True, False))))
@in_torch_and_native
def test_depth_norm_and_residual(layers: int, norm: bool, residual: bool, backends: tuple[str, ...]) -> None:
    check_against_the_papers_loop(make(layers=layers, norm=norm, residual=residual), backends)


@pytest.mark.parametrize("tokens", [0, 1, 2, 4, 5, 6, 11, 17])
@in_torch_and_native
def test_ugly_lengths(tokens: int, backends: tuple[str, ...]) -> None:
    check_against_the_papers_loop(make(tokens, mask=True), backends, recomputed=(1, 2, 3))


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 12, 13, 64])
@in_torch_and_native
def test_chunk_sizes(chunk_size: int, backends: tuple[str, ...]) -> None:
    check_against_the_papers_loop(make(chunk_size=chunk_size), backends, recomputed=(2,))


@pytest.mark.parametrize("activation", ACTIVATION)
@pytest.mark.parametrize("norm", [True, False])
@in_torch_and_native
def test_activations(activation: str, norm: bool, backends: tuple[str, ...]) -> None:
    check_against_the_papers_loop(make(activation=activation, norm=norm, layers=3), backends)


@pytest.mark.parametrize(("momentum", "mask", "reset"), list(product((True, False), repeat=3)))
@pytest.mark.parametrize("norm", [True, False])
@in_torch_and_native
def test_momentum_mask_and_reset(
    momentum: bool, mask: bool, reset: bool, norm: bool, backends: tuple[str, ...]
) -> None:
    call = make(17, momentum=momentum, mask=mask, reset=reset, norm=norm, chunk_size=4)
    check_against_the_papers_loop(call, backends, recomputed=(1, 2, 3, 9))


def with_gate(call: Call, gate: str, value: float, every: int = 1) -> Call:
    """One gate set to a value at every so-manieth token."""
    tensor = call.tensors[gate].detach().clone()
    tensor[:, ::every] = value
    return Call({**call.tensors, gate: tensor.requires_grad_()}, call.options)


@pytest.mark.parametrize(
    ("gate", "value"), [("theta", 0.0), ("eta", 0.0), ("eta", 1.0), ("alpha", 0.0), ("alpha", 1.0)]
)
@pytest.mark.parametrize("every", [1, 3])
@in_torch_and_native
def test_gates_of_exactly_zero_and_one(gate: str, value: float, every: int, backends: tuple[str, ...]) -> None:
    check_against_the_papers_loop(with_gate(make(mask=True), gate, value, every), backends)


@in_torch_and_native
def test_all_gates_at_their_edges_at_once(backends: tuple[str, ...]) -> None:
    call = make()
    for gate, value in (("theta", 0.0), ("eta", 1.0), ("alpha", 1.0)):
        call = with_gate(call, gate, value, 2)
    check_against_the_papers_loop(call, backends)


@each_backend
def test_the_initial_momentum_of_a_reset_is_zero_if_not_given(backend: str) -> None:
    call = make(reset=True)
    weights, momentum = call.options["initial"]
    zero = tuple(torch.zeros_like(s) for s in momentum)
    assert_all_close(
        flatten(call.run(backend=backend, initial=(weights, None))),
        flatten(call.run(backend=backend, initial=(weights, zero))),
    )


@pytest.mark.parametrize("backend", ["chunked", NATIVE])
def test_a_masked_token_is_an_exact_no_op_wherever_it_stands(backend: str) -> None:
    """A chunk of masked tokens changes no bit, though momentum is not zero."""
    call = make(10, chunk_size=5, write_mask=torch.arange(10).expand(2, 10) < 5)
    _, weights, momentum = call.run(backend=backend)
    short = Call({k: v[:, :5] if isinstance(v, Tensor) else v for k, v in call.tensors.items()}, dict(call.options))
    short.options["write_mask"] = None
    _, expected, pushed = short.run(backend=backend)
    assert all(torch.equal(a, b) for a, b in zip((*weights, *momentum), (*expected, *pushed), strict=True))


@pytest.mark.parametrize("backend", ["chunked", NATIVE])
@pytest.mark.parametrize("layers", [1, 2])
def test_gradcheck(layers: int, backend: str) -> None:
    call = make(5, chunk_size=2, layers=layers, hidden=3, mask=True, reset=True)

    def run(*leaves: Tensor) -> tuple[Tensor, ...]:
        rest = iter(leaves)
        return tuple(flatten(call.map(lambda _: next(rest)).run(backend=backend)))

    leaves = tuple(call.leaves())
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    if backend != "native":
        assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True, atol=1e-4)


@each_backend
def test_float32_is_close_to_float64(backend: str) -> None:
    call = make(23, mask=True)
    exact = outputs_and_gradients(call.run(backend="chunked"), call)
    narrow = call.map(lambda x: x.detach().float().requires_grad_())
    ours = outputs_and_gradients(narrow.run(backend=backend), narrow)
    exact = [x.detach() for x in exact[0]], exact[1]
    ours = [x.detach() for x in ours[0]], ours[1]
    assert relative_error(ours[0], exact[0]) < 1e-5
    assert relative_error(ours[1], exact[1]) < 1e-4


@each_backend
def test_float32_stays_finite_when_products_of_gates_underflow(backend: str) -> None:
    call = make(96, chunk_size=96).map(lambda x: x.detach().float().requires_grad_())
    call.tensors["alpha"] = torch.full_like(call.tensors["alpha"], 0.9).requires_grad_()
    call.tensors["eta"] = torch.full_like(call.tensors["eta"], 1e-3).requires_grad_()
    parts, gradients = outputs_and_gradients(call.run(backend=backend), call)
    assert all(x.isfinite().all() for x in (*parts, *gradients))


def rounded(call: Call, dtype: torch.dtype) -> tuple[Call, list[Tensor]]:
    """Queries, keys and values in a narrow dtype, gates and state in float32; and the exact result for just those."""
    wide = call.map(lambda x: x.detach().float())
    narrow = {k: v.to(dtype) if k in "qkv" else v for k, v in wide.tensors.items()}
    call = Call(narrow, wide.options)
    return call, flatten(call.map(lambda x: x.double()).run(backend="reference"))


# With the norm on, four features a head make rounding of the products grow; the state's dtype is the same.
@pytest.mark.parametrize(
    ("backend", "norm", "tolerance"),
    [
        ("reference", True, 0.005),
        ("chunked", False, 0.01),
        pytest.param("native", False, 0.01, marks=NATIVE.marks),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_inputs_keep_a_float32_state(backend: str, norm: bool, tolerance: float, dtype: torch.dtype) -> None:
    call, exact = rounded(make(23, norm=norm), dtype)
    y, weights, momentum = call.run(backend=backend)
    assert y.dtype == dtype
    assert {x.dtype for x in (*weights, *momentum)} == {torch.float32}
    assert relative_error([y, *weights], exact[:3]) < tolerance


def test_a_state_in_bfloat16_is_widened() -> None:
    call = make(3).map(lambda x: x.detach().bfloat16())
    y, weights, momentum = call.run()
    assert y.dtype == torch.bfloat16
    assert {x.dtype for x in (*weights, *momentum)} == {torch.float32}


@pytest.mark.parametrize("backend", ["chunked", NATIVE])
def test_autocast_narrows_the_products_and_not_the_state(backend: str) -> None:
    _, exact = rounded(make(23, norm=False), torch.bfloat16)
    call = make(23, norm=False).map(lambda x: x.detach())
    with torch.autocast("cpu", torch.bfloat16):
        y, weights, momentum = call.map(torch.Tensor.float).run(backend=backend)
        double, *_ = call.run(backend=backend)
    assert y.dtype == torch.bfloat16
    assert {x.dtype for x in (*weights, *momentum)} == {torch.float32}
    assert relative_error([y, *weights], exact[:3]) < 0.01
    assert double.dtype == torch.float64


@pytest.mark.parametrize("backend", ["chunked", NATIVE])
def test_it_compiles_without_a_break_in_the_graph(backend: str) -> None:
    call = make(5, chunk_size=3, mask=True).map(lambda x: x.detach().float().requires_grad_())
    compiled = torch.compile(neural_memory, fullgraph=True, backend="aot_eager")
    expected = outputs_and_gradients(call.run(backend="chunked"), call)
    ours = outputs_and_gradients(compiled(**call.tensors, **call.options, backend=backend), call)
    assert_all_close(ours[0], expected[0], 1e-5)
    assert_all_close(ours[1], expected[1], 1e-4)
    torch._dynamo.reset()


@pytest.mark.soak
@pytest.mark.parametrize("backend", ["chunked", NATIVE])
def test_inductor_computes_the_same(backend: str) -> None:
    """With torch's code generator, which takes a minute to compile."""
    call = make(40, chunk_size=16, mask=True).map(lambda x: x.detach().float())
    compiled = torch.compile(neural_memory, fullgraph=True)
    expected = flatten(call.run(backend="reference"))
    assert_all_close(flatten(compiled(**call.tensors, **call.options, backend=backend)), expected, 1e-4)
    torch._dynamo.reset()


def test_the_environment_chooses_what_auto_means(monkeypatch: pytest.MonkeyPatch) -> None:
    call, used = make(3), []
    backends = importlib.import_module("neuralmem.ops.neural_memory").BACKENDS
    for name, run in list(backends.items()):
        monkeypatch.setitem(backends, name, lambda call, name=name, run=run: used.append(name) or run(call))
    call.run()
    monkeypatch.setenv("NEURALMEM_BACKEND", "reference")
    call.run()
    call.run(backend="chunked")
    assert used == ["chunked" if CPU_ERROR else "native", "reference", "chunked"]


def test_decay_products_are_products_over_ranges() -> None:
    x = torch.rand(3, 7, dtype=torch.float64)
    x[0, 2] = 0
    expected = torch.zeros(3, 7, 7, dtype=torch.float64)
    for t, s in product(range(7), range(7)):
        if s <= t:
            expected[:, t, s] = x[:, s + 1 : t + 1].prod(-1)
    torch.testing.assert_close(decay_products(x), expected, atol=1e-15, rtol=0)


# Identities that need no reference at all (law 11); S_0 is zero.


def identity_call(**gates: float) -> Call:
    call = make(9, chunk_size=4)
    tensors = {**call.tensors, "momentum": tuple(torch.zeros_like(s) for s in call.tensors["momentum"])}
    for gate, value in gates.items():
        tensors[gate] = torch.full_like(tensors[gate], value)
    return Call(tensors, call.options)


@each_backend
class TestIdentities:
    def test_no_learning_and_no_forgetting_is_a_frozen_memory(self, backend: str) -> None:
        call = identity_call(theta=0.0, alpha=0.0)
        y, weights, momentum = call.run(backend=backend)
        assert_all_close(list(weights), list(call.tensors["weights"]), 0.0)
        assert not any(s.any() for s in momentum)
        frozen = evaluate_memory(call.tensors["q"], call.tensors["weights"], norm=call.options["norm"])
        assert_all_close([y], [frozen])

    def test_no_learning_scales_the_weights_by_what_is_kept(self, backend: str) -> None:
        call = identity_call(theta=0.0)
        _, weights, _ = call.run(backend=backend)
        kept = (1 - call.tensors["alpha"]).prod(1)[..., None, None]
        assert_all_close(list(weights), [kept * w for w in call.tensors["weights"]])

    def test_forgetting_all_without_momentum_leaves_the_last_step(self, backend: str) -> None:
        call = identity_call(alpha=1.0, eta=0.0)
        _, weights, momentum = call.run(backend=backend)
        assert_all_close(list(weights), list(momentum))
        anchored = Call({k: v[:, :8] if isinstance(v, Tensor) else v for k, v in call.tensors.items()}, call.options)
        anchor = tuple(w.detach().requires_grad_() for w in anchored.run(backend=backend)[1])
        last = evaluate_memory(call.tensors["k"][:, 8:], anchor, norm=call.options["norm"])
        loss = (last - call.tensors["v"][:, 8:]).square().sum((1, 3))
        step = torch.autograd.grad((call.tensors["theta"][:, 8] * loss).sum(), anchor)
        assert_all_close(list(weights), [-g for g in step])

    def test_decay_of_zero_is_no_momentum(self, backend: str) -> None:
        call = identity_call(eta=0.0)
        y, weights, _ = call.run(backend=backend)
        z, same, none = Call({**call.tensors, "eta": None, "momentum": None}, call.options).run(backend=backend)
        assert none is None
        assert_all_close([y, *weights], [z, *same])

    def test_linear_attention_is_a_special_case(self, backend: str) -> None:
        """One matrix, W_0 = 0, theta = 1/2, no gates, one chunk: y_t = sum over s up to t of v_s (k_s . q_t)."""
        call = make(9, layers=1, chunk_size=9, momentum=False, norm=False, residual=False)
        a = call.tensors
        a |= {"theta": torch.full_like(a["theta"], 0.5), "alpha": torch.zeros_like(a["alpha"])}
        a["weights"] = (torch.zeros_like(a["weights"][0]),)
        y, _, _ = call.run(backend=backend)
        scores = torch.einsum("bthd,bshd->bhts", a["q"], a["k"]).tril()
        assert_all_close([y], [torch.einsum("bhts,bshd->bthd", scores, a["v"])])

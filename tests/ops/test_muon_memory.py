"""Atlas: every backend is the paper's loop with a window, powers and Newton-Schulz; what it is without each of them."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralmem.errors import UserError
from neuralmem.ops import (
    History,
    decode_muon,
    evaluate_memory,
    evaluate_polynomial,
    muon_memory,
    omega_memory,
)
from tests.ops.memory_cases import (
    B,
    Call,
    D,
    H,
    assert_all_close,
    flatten,
    outputs_and_gradients,
    relative_error,
)
from tests.ops.muon_cases import case, check, run

in_torch = pytest.mark.parametrize("backend", ["reference", "chunked"])


@pytest.mark.parametrize(("window", "momentum", "norm"), list(product((1, 2, 4), (True, False), (True, False))))
def test_windows_momentum_and_norm(window: int, momentum: bool, norm: bool) -> None:
    check(case(window=window, momentum=momentum, norm=norm))


@pytest.mark.parametrize("powers", [0, 1, 3])
@pytest.mark.parametrize("layers", [1, 2])
def test_powers_and_depth(powers: int, layers: int) -> None:
    check(case(5, powers=powers, layers=layers))


@pytest.mark.parametrize("options", [{"residual": False}, {"muon": False}, {"layers": 3}])
def test_other_forms(options: dict[str, Any]) -> None:
    check(case(6, **options))


@pytest.mark.parametrize("tokens", [0, 1, 4, 7])
def test_ugly_lengths(tokens: int) -> None:
    check(case(tokens), recomputed=(1, 2))


@pytest.mark.parametrize("chunk_size", [3, 8, 9, 64])
def test_chunk_sizes(chunk_size: int) -> None:
    check(case(chunk_size=chunk_size))


@pytest.mark.parametrize(("mask", "reset", "momentum"), list(product((True, False), repeat=3)))
def test_masks_anywhere_and_resets(mask: bool, reset: bool, momentum: bool) -> None:
    check(case(11, mask=mask, reset=reset, momentum=momentum, chunk_size=3), recomputed=(2,))


def test_a_reset_to_weights_alone_forgets_the_momentum() -> None:
    call = case(9, reset=True)
    call.options["initial"] = call.options["initial"][0], None
    check(call)


def test_without_a_history() -> None:
    call = case(6)
    call.tensors["history"] = None
    check(call)


@in_torch
@pytest.mark.parametrize("momentum", [True, False])
def test_without_newton_schulz_it_is_the_omega_rule_with_theta_outside(backend: str, momentum: bool) -> None:
    """Where theta is constant or S has no past; then Omega's momentum is -theta times this one's."""
    call = case(11, powers=0, momentum=momentum, mask=True, reset=True)
    if momentum:
        theta = torch.full_like(call.tensors["theta"], 0.03).requires_grad_()
        call.tensors["theta"] = theta
    y, weights, surprise, history = run(call, muon=False, backend=backend)
    scaled = dict(call.tensors)
    first, start = call.options["initial"]
    if momentum:
        scaled["momentum"] = tuple(-0.03 * s for s in scaled["momentum"])
        start = tuple(-0.03 * s for s in start)
    z, same, other, after = omega_memory(**scaled, **{**call.options, "initial": (first, start)})
    assert_all_close([y, *weights, *history[:2]], [z, *same, *after[:2]])
    if momentum:
        assert_all_close([-0.03 * s for s in surprise], list(other))


@in_torch
def test_powers_without_weight_are_a_memory_of_the_input_itself(backend: str) -> None:
    plain, call = case(powers=0), case(powers=2)
    call.tensors["coefficients"] = torch.tensor([[1.0, 0.0]] * H, dtype=torch.float64)
    first, *rest = call.tensors["momentum"]
    call.tensors["momentum"] = (torch.cat([first[..., :D], 0 * first[..., D:]], dim=-1), *rest)
    ours, expected = run(call, backend=backend), run(plain, backend=backend)
    first, *rest = ours[1]
    assert_all_close([ours[0], first[..., :D], *rest], [expected[0], *expected[1]])


@in_torch
def test_how_long_a_surprise_is_changes_nothing(backend: str) -> None:
    call = case(momentum=False)
    louder = replace(call, tensors={**call.tensors, "omega": 1000 * call.tensors["omega"]})
    assert_all_close(flatten(run(call, backend=backend)), flatten(run(louder, backend=backend)), 1e-9)


@in_torch
@pytest.mark.parametrize("momentum", [True, False])
def test_no_surprise_is_no_step_and_has_finite_gradients(backend: str, momentum: bool) -> None:
    call = case(momentum=momentum)
    call.tensors["omega"] = torch.zeros_like(call.tensors["omega"]).requires_grad_()
    if momentum:
        call.tensors["momentum"] = tuple(torch.zeros_like(s).requires_grad_() for s in call.tensors["momentum"])
    parts, gradients = outputs_and_gradients(run(call, backend=backend), call)
    kept = (1 - call.tensors["alpha"]).prod(1)[..., None, None]
    assert_all_close(parts[1:3], [kept * w for w in call.tensors["weights"]])
    assert all(x.isfinite().all() for x in gradients)


@in_torch
@pytest.mark.parametrize(("momentum", "reset"), list(product((True, False), repeat=2)))
def test_calls_cut_at_chunk_boundaries_are_one(backend: str, momentum: bool, reset: bool) -> None:
    call = case(13, window=4, momentum=momentum, reset=reset, mask=True)
    whole = outputs_and_gradients(run(call, backend=backend), call)
    outputs, state = [], {}
    for part in (slice(0, 4), slice(4, 12), slice(12, 13)):
        tensors, options = (
            {
                name: x[:, part] if isinstance(x, Tensor) and x.ndim > 1 and x.shape[1] == 13 else x
                for name, x in d.items()
            }
            for d in (call.tensors, call.options)
        )
        y, *after = run(Call({**tensors, **state}, options), backend=backend)
        outputs.append(y)
        state = dict(zip(("weights", "momentum", "history"), after, strict=True))
    ours = outputs_and_gradients((torch.cat(outputs, dim=1), *after), call)
    assert_all_close([*ours[0], *ours[1]], [*whole[0], *whole[1]])


@in_torch
def test_a_call_of_masked_tokens_leaves_the_state_to_the_bit(backend: str) -> None:
    call = case(6)
    _, weights, momentum, _ = run(call, write_mask=torch.zeros(B, 6, dtype=torch.bool), backend=backend)
    assert_all_close([*weights, *momentum], [*call.tensors["weights"], *call.tensors["momentum"]], 0.0)


@pytest.mark.parametrize("every", [None, 1])
def test_a_state_keeps_no_other_tokens_weights(every: int | None) -> None:
    """As a view of the last chunk's it would be chunk_size times as large, at every kept boundary."""
    _, weights, momentum, _ = run(case(), checkpoint_every=every)
    for x in (*weights, *momentum):
        assert x.untyped_storage().nbytes() == x.numel() * x.element_size()


@in_torch
def test_what_does_not_count_may_hold_anything(backend: str) -> None:
    """Masked tokens and places of the history that are not valid."""
    call = case(mask=True, window=4)
    mask, (k, v, valid, _) = call.options["write_mask"], call.tensors["history"]
    expected = outputs_and_gradients(run(call, backend=backend), call)

    def spoiled(x: Tensor, real: Tensor) -> Tensor:
        return torch.where(real.view(*real.shape, *[1] * (x.ndim - 2)), x.detach(), torch.nan).requires_grad_()

    tensors = {**call.tensors, **{name: spoiled(call.tensors[name], mask) for name in ("k", "v", "omega")}}
    tensors["history"] = History(spoiled(k, valid), spoiled(v, valid), valid)
    other = Call(tensors, call.options)
    ours = outputs_and_gradients(run(other, backend=backend), other)
    assert_all_close([*ours[0], *ours[1]], [*expected[0], *expected[1]], 0.0)


def decoded(call: Call, **options: Any) -> Tensor:
    arguments = {**call.tensors, **call.options, "q": call.tensors["q"][:, -1:], **options}
    del arguments["chunk_size"]
    return decode_muon(**arguments)


@in_torch
@pytest.mark.parametrize(("tokens", "powers"), [(1, 0), (1, 2), (3, 2), (5, 3)])
@pytest.mark.parametrize(("mask", "momentum"), list(product((True, False), repeat=2)))
def test_decoding_is_the_last_row_of_a_chunk(
    backend: str, tokens: int, powers: int, mask: bool, momentum: bool
) -> None:
    call = case(tokens, powers=powers, mask=mask, momentum=momentum, chunk_size=7)
    y, ours = run(call)[0][:, -1:], decoded(call, backend=backend)
    assert_all_close([ours], [y])
    gradients = (torch.autograd.grad(x.square().sum(), call.leaves(), materialize_grads=True) for x in (ours, y))
    assert_all_close(*map(list, gradients))


@in_torch
def test_decoding_without_a_token_reads_the_first_weights(backend: str) -> None:
    call, query = case(0), torch.randn(B, 1, H, D, dtype=torch.float64)
    powers, norm = call.tensors["coefficients"], call.options["norm"]
    y = decode_muon(**{**call.tensors, "q": query}, norm=norm, backend=backend)
    assert_all_close([y], [evaluate_polynomial(query, call.tensors["weights"], powers, norm=norm)])


def test_evaluating_one_power_is_evaluating_a_memory() -> None:
    call, x = case(powers=1), torch.randn(B, 3, H, D, dtype=torch.float64)
    weights, ones = call.tensors["weights"], torch.ones(H, 1, dtype=torch.float64)
    assert_all_close([evaluate_polynomial(x, weights, ones)], [evaluate_memory(x, weights)], 0.0)


def test_gradcheck_twice() -> None:
    call = case(5, chunk_size=2, hidden=3, window=2, mask=True, reset=True)

    def of(*leaves: Tensor) -> tuple[Tensor, ...]:
        rest = iter(leaves)
        return tuple(flatten(run(call.map(lambda _: next(rest)))))

    leaves = tuple(call.leaves())
    assert torch.autograd.gradcheck(of, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(of, leaves, fast_mode=True, atol=1e-4)


def test_narrow_dtypes() -> None:
    """Over one chunk, where what rounding does to gradients is lifted by Newton-Schulz."""
    call = case(4, window=3).map(Tensor.detach)
    exact = flatten(run(call))
    assert relative_error(flatten(run(call.map(Tensor.float)))[:-1], exact[:-1]) < 1e-4
    with torch.autocast("cpu", torch.bfloat16):
        y, weights, _, history = run(call.map(Tensor.float))
    assert {x.dtype for x in (y, history.k, history.v)} == {torch.bfloat16}
    assert {w.dtype for w in weights} == {torch.float32}
    assert relative_error(list(weights), exact[1:3]) < 0.02


def test_it_compiles_without_a_break_in_the_graph() -> None:
    call = case(6, chunk_size=3, mask=True, reset=True)
    compiled = torch.compile(muon_memory, fullgraph=True, backend="aot_eager")
    expected = outputs_and_gradients(run(call), call)
    ours = outputs_and_gradients(compiled(**call.tensors, **call.options), call)
    assert_all_close([*ours[0], *ours[1]], [*expected[0], *expected[1]])
    torch._dynamo.reset()


def zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


CASES = {
    "coefficients has shape [2]; it must be [2, 'p'] with p at least 1": {"coefficients": zeros(H)},
    "coefficients has shape [3, 2]; it must be [2, 'p'] with p at least 1": {"coefficients": zeros(3, 2)},
    "coefficients has shape [2, 0]; it must be [2, 'p'] with p at least 1": {"coefficients": zeros(H, 0)},
    "coefficients is on meta; it must be on cpu like q": {"coefficients": zeros(H, 2).to("meta")},
    "weights[0] has shape [2, 2, 6, 8]; it must be [2, 2, 'D_out', 12]": {"coefficients": zeros(H, 3)},
    "weights[0] has shape [2, 2, 6, 8]; it must be [2, 2, 'D_out', 4]": {"coefficients": None},
    "weights[1] has shape [2, 2, 4, 5]; it must be [2, 2, 4, 6]": {"weights": (zeros(B, H, 6, 8), zeros(B, H, 4, 5))},
    "momentum[0] has shape [2, 2, 6, 4]; it must be [2, 2, 6, 8]": {
        "momentum": (zeros(B, H, 6, 4), zeros(B, H, 4, 6)),
    },
    "eta and momentum belong together: give both, or None for both": {"momentum": None},
    "omega has a window of 6 tokens; it must be at most chunk_size=4": {"omega": zeros(B, 6, H, 6)},
    "omega has shape [2, 6, 2]; it must be [2, 6, 2, 'c'] with c at least 1": {"omega": zeros(B, 6, H)},
    "k has shape [2, 5, 2, 4]; it must be [2, 6, 2, 4]": {"k": zeros(B, 5, H, D)},
    "q has shape [2, 6, 2]; it must be [B, T, H, D]": {"q": zeros(B, 6, H)},
    "backend is 'native', which cannot run here: muon_memory has no compiled kernels": {"backend": "native"},
}


@pytest.mark.parametrize("message", CASES)
def test_what_does_not_fit_is_refused(message: str) -> None:
    call = case(6)
    with pytest.raises(UserError) as error:
        muon_memory(**{**call.tensors, **call.options, **CASES[message]})
    assert str(error.value) == message


def test_the_others_refuse_the_same() -> None:
    with pytest.raises(UserError, match=r"^backend is 'native', which cannot run here"):
        decoded(case(3), backend="native")
    with pytest.raises(UserError, match=r"^coefficients has shape \[1, 2\]"):
        evaluate_polynomial(zeros(B, 1, H, D), case().tensors["weights"], zeros(1, 2))
    with pytest.raises(UserError, match=r"^x has shape"):
        evaluate_polynomial(zeros(1, H, D), case().tensors["weights"], zeros(H, 2))

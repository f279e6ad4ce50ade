"""The arguments of `omega_memory`, checked and cast, where the first matrix may be wider: over powers of the input."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from neuralmem.errors import UserError
from neuralmem.ops.checks import check_floating, check_shape
from neuralmem.ops.muon_memory.polynomial import PolynomialForm
from neuralmem.ops.neural_memory.call import Call, State
from neuralmem.ops.neural_memory.mlp import MemoryForm
from neuralmem.typing import Tensor, Tensors


def prepare(
    make: Callable[..., Call],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    eta: Tensor | None,
    alpha: Tensor,
    weights: Tensors,
    momentum: Tensors | None,
    coefficients: Tensor | None,
    *,
    initial: State | None = None,
    **options: Any,
) -> Call:
    """Check what a user passed and cast it: `make` is `prepare` or `prepare_decode` of neural_memory.

    Raises:
        UserError: a shape, dtype, device or value that does not fit, naming the argument.
    """
    if coefficients is None:
        return make(q, k, v, theta, eta, alpha, weights, momentum, initial=initial, **options)
    _check_widths(q, weights, momentum, initial, coefficients)
    first, start = initial or ((), None)
    width = q.shape[-1]
    begin = None if initial is None else (narrow(first, width), None if start is None else narrow(start, width))
    slow = None if momentum is None else narrow(momentum, width)
    call = make(q, k, v, theta, eta, alpha, narrow(weights, width), slow, initial=begin, **options)
    dtype = call.theta.dtype
    states = [tuple(x.to(dtype) for x in state or ()) for state in (weights, momentum, first, start)]
    if momentum is not None and start is None:
        states[3] = tuple(map(torch.zeros_like, states[2]))
    return dataclasses.replace(
        call,
        weights=states[0],
        momentum=states[1],
        first_weights=states[2],
        first_momentum=states[3],
        form=over_powers(call.form, coefficients, dtype),
    )


def narrow(state: Tensors, width: int) -> Tensors:
    """The state as a memory without powers has it, whose checks then hold for all but the first width."""
    return (state[0][..., :width], *state[1:]) if isinstance(state, (tuple, list)) and state else state


def over_powers(form: MemoryForm, coefficients: Tensor, dtype: torch.dtype) -> MemoryForm:
    """The same memory over powers of its input. coefficients: [H, p]."""
    powers = coefficients.to(dtype).T[..., None, None]
    return PolynomialForm(form.activation, form.residual, form.gain, form.bias, form.eps, powers)


def check_coefficients(name: str, x: Tensor, coefficients: Tensor) -> None:
    """Refuse coefficients that are not [H, p] for x [B, T, H, D], which is called `name`."""
    if coefficients.ndim != 2 or len(coefficients) != x.shape[2] or not coefficients.shape[1]:
        shape = list(coefficients.shape)
        raise UserError(f"coefficients has shape {shape}; it must be {[x.shape[2], 'p']} with p at least 1")
    check_floating(**{name: x, "coefficients": coefficients})


def check_first_width(x: Tensor, weights: Tensors, coefficients: Tensor) -> None:
    """Refuse a first matrix that does not take the features of x [B, T, H, D]."""
    if not isinstance(weights, (tuple, list)) or not weights or weights[0].ndim != 4:
        return
    features = coefficients.shape[1] * x.shape[3]
    if weights[0].shape[3] != features:
        B, _, H, _ = x.shape
        shape = list(weights[0].shape)
        raise UserError(f"weights[0] has shape {shape}; it must be {[B, H, 'D_out', features]}")


def _check_widths(
    q: Tensor, weights: Tensors, momentum: Tensors | None, initial: State | None, coefficients: Tensor
) -> None:
    if q.ndim != 4:
        return
    check_coefficients("q", q, coefficients)
    check_first_width(q, weights, coefficients)
    first, start = initial or (None, None)
    for name, state in (("momentum", momentum), ("initial weights", first), ("initial momentum", start)):
        if state and weights:
            check_shape(f"{name}[0]", state[0], weights[0].shape)

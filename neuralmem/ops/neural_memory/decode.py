"""One query read at the weights that an unfinished chunk would leave, without forming them: what decoding costs.

The last row of a chunk (README.md, "Reading"), in plain torch; `read_after` is the definition it is measured against.
"""

import dataclasses
from typing import Any

from neuralmem.errors import UserError
from neuralmem.ops.autocast import to_autocast
from neuralmem.ops.checks import check_floating, check_same_dtype
from neuralmem.ops.neural_memory.call import Call, prepare
from neuralmem.ops.neural_memory.chunked import chunk_coefficients, gradient_factors, read
from neuralmem.ops.neural_memory.reference import reference
from neuralmem.ops.neural_memory.window import members
from neuralmem.typing import Tensor


def prepare_decode(q: Tensor, k: Tensor, v: Tensor, *gates_and_state: Any, **options: Any) -> Call:
    """`prepare` for one query [B, 1, H, D] and the n tokens [B, n, H, D] of an unfinished chunk."""
    q, k, v = to_autocast(q, k, v)
    if q.ndim != 4 or q.shape[1] != 1:
        raise UserError(f"q has shape {list(q.shape)}; it must be [B, 1, H, D]")
    if k.ndim != 4 or (len(k), *k.shape[2:]) != (len(q), *q.shape[2:]):
        raise UserError(f"k has shape {list(k.shape)}; it must be {[len(q), 'n', *q.shape[2:]]}")
    check_floating(q=q, k=k)
    check_same_dtype("k", k, q)
    call = prepare(k, k, v, *gates_and_state, chunk_size=max(k.shape[1], 1), **options)
    return dataclasses.replace(call, q=q)


def decode(call: Call) -> Tensor:
    """y [B, 1, H, D] in the state's dtype. call.q: [B, 1, H, D]; k and v: one chunk's [B, n, H, D]."""
    q = call.queries().transpose(1, 2)
    if call.k.shape[1] == 0:
        return call.form.evaluate(call.weights, q).transpose(1, 2)
    (coefficients,), ((written, window),) = chunk_coefficients(call), members(call)
    inputs, deltas = gradient_factors(written, call.weights, call)
    row = coefficients.last().over(window)
    return read(q, row, inputs, deltas, call.weights, call.momentum, call).transpose(1, 2)


def read_after(call: Call) -> Tensor:
    """The same by the definition: write every token, then read at what that left."""
    _, weights, _ = reference(dataclasses.replace(call, q=call.k))
    return call.form.evaluate(weights, call.queries().transpose(1, 2)).transpose(1, 2)

"""One query read at the weights that an unfinished chunk would leave, without forming them: what decoding costs.

The last row of a chunk (README.md, "Reading"), in plain torch; `read_after` is the definition it is measured against.
"""

import dataclasses

from neuralmem.ops.neural_memory.call import Call
from neuralmem.ops.neural_memory.chunked import chunk_coefficients, gradient_factors, read
from neuralmem.ops.neural_memory.reference import reference
from neuralmem.typing import Tensor


def decode(call: Call) -> Tensor:
    """y [B, 1, H, D] in the state's dtype. call.q: [B, 1, H, D]; k and v: one chunk's [B, n, H, D]."""
    q, k, v = (x.transpose(1, 2) for x in call.tokens())
    if k.shape[2] == 0:
        return call.form.evaluate(call.weights, q).transpose(1, 2)
    (coefficients,) = chunk_coefficients(call)
    inputs, deltas = gradient_factors(k, v, call.weights, call)
    return read(q, coefficients.last(), inputs, deltas, call.weights, call.momentum, call).transpose(1, 2)


def read_after(call: Call) -> Tensor:
    """The same by the definition: write every token, then read at what that left."""
    _, weights, _ = reference(dataclasses.replace(call, q=call.k))
    q, _, _ = call.tokens()
    return call.form.evaluate(weights, q.transpose(1, 2)).transpose(1, 2)

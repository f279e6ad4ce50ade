"""The LaCT update a chunk at a time, with gradients by hand: nothing but large matrix products. Derivation: README.md.

Special: a chunk is read at the weights that it starts with, so its tokens do not see what it writes, and reading and
writing are each one product over all of its tokens.
"""

import torch
from torch.nn import functional as F

from neuralmem import probe
from neuralmem.ops.chunk_loop import Stepped, run_chunks
from neuralmem.ops.neural_memory.call import where_rows
from neuralmem.ops.newton_schulz import newton_schulz
from neuralmem.ops.swiglu_memory.call import SHORTEST_ROW, Call
from neuralmem.typing import Tensor, Tensors


def chunked(call: Call) -> tuple[Tensor, Tensors, Tensors]:
    """The update in chunks: y [B, T, H, D], weights and momentum after the last token."""
    total, size = call.q.shape[1], call.chunk_size
    if total == 0:
        return torch.empty_like(call.q), call.weights, call.momentum
    # Split once, [B, H, C, ...] each: the gradient of a slice is as long as what it was cut from.
    tokens = [x.transpose(1, 2).split(size, dim=2) for x in (call.q, call.k, call.v, call.theta)]
    decays = _decays(call)
    lengths = tuple(weight.norm(dim=-1, keepdim=True) for weight in call.first)
    # Asked here, not in a step: where a step is computed again for backward, nobody is recording.
    watched, attached = probe.active("surprise"), probe.active("surprise", attached=True)

    def step(start: int, stop: int, state: Tensors) -> Stepped:
        weights, momentum = call.restart(start, state[:3], state[3:])
        q, k, v, theta = (x[start // size] for x in tokens)
        y = swiglu(q, weights)
        if watched:
            with torch.set_grad_enabled(torch.is_grad_enabled() and attached):
                seen = misdirection(swiglu(k, weights), v).transpose(1, 2)
                real = None if call.write_mask is None else call.write_mask[:, start:stop]
                every = real is None or bool(real.all())
                probe.observe("surprise", seen if every else seen[real], tokens=1 if every else None)
        change = gradients(k, v, theta, weights)
        if momentum:
            decay = decays[start // size][..., None, None]
            change = after = tuple(decay * u + g for u, g in zip(momentum, change, strict=True))
        else:
            after = ()
        if call.muon:
            change = tuple(newton_schulz(g, coefficients="five") for g in change)
        written = tuple(map(_write, weights, change, lengths))
        if call.write_mask is not None:
            real = call.write_mask[:, start:stop].any(1)
            written, after = where_rows(real, written, weights), where_rows(real, after, momentum)
        return y, (*written, *after)

    y, state = run_chunks(step, (*call.weights, *call.momentum), total, size, call.checkpoint_every)
    return y.transpose(1, 2), state[:3], state[3:]


def swiglu(x: Tensor, weights: Tensors) -> Tensor:
    """f_W(x) in the state's dtype. x: [B, H, C, D], to whose dtype factors are rounded."""
    first, second, third = weights
    return product(F.silu(product(x, first.mT, x.dtype)) * product(x, third.mT, x.dtype), second.mT, x.dtype)


def gradients(k: Tensor, v: Tensor, theta: Tensor, weights: Tensors) -> Tensors:
    """The gradient of -sum_i theta_i f_W(k_i) . v_i, for every matrix with its own theta. k, v: [B, H, C, D]."""
    first, second, third = weights
    operand = k.dtype
    gate, hidden = product(k, first.mT, operand), product(k, third.mT, operand)
    slope = torch.sigmoid(gate)
    opened = gate * slope  # silu(gate), whose derivative is slope + opened (1 - slope)
    back = product(v, second, operand)
    one, two, three = theta.split(1, dim=-1)
    return (
        -product((one * back * hidden * (slope + opened * (1 - slope))).mT, k, operand),
        -product((two * v).mT, opened * hidden, operand),
        -product((three * back * opened).mT, k, operand),
    )


def product(a: Tensor, b: Tensor, operand: torch.dtype) -> Tensor:
    """a @ b of factors rounded to `operand`, in the state's dtype."""
    return (a.to(operand) @ b.to(operand)).to(torch.promote_types(operand, torch.float32))


def misdirection(y: Tensor, v: Tensor) -> Tensor:
    """1 - cos(y, v) over the last axis: 0 if y points where v does, 1 if it says nothing of it, 2 if the other way."""
    return 1 - F.cosine_similarity(y, v, dim=-1)


def _write(weight: Tensor, change: Tensor, length: Tensor) -> Tensor:
    """weight - change, each row as long as `length` [B, H, D_out, 1] says."""
    row = weight - change
    return row * (length * row.square().sum(-1, keepdim=True).clamp(min=SHORTEST_ROW**2).rsqrt())


def _decays(call: Call) -> list[Tensor]:
    """What every chunk keeps of the momentum: [B, H] each, the mean of eta over its tokens that write."""
    if call.eta is None:
        return []
    sums = [eta.sum(1) for eta in call.eta.split(call.chunk_size, dim=1)]
    if call.write_mask is None:
        counts = [min(call.chunk_size, call.eta.shape[1] - i * call.chunk_size) for i in range(len(sums))]
        return [total / count for total, count in zip(sums, counts, strict=True)]
    real = [mask.sum(1).clamp(min=1)[:, None] for mask in call.write_mask.split(call.chunk_size, dim=1)]
    return [total / count for total, count in zip(sums, real, strict=True)]

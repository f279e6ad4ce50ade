"""One call of the op with its arguments checked and cast: what every backend receives."""

from dataclasses import dataclass

import torch

from neuralmem.errors import UserError
from neuralmem.ops.autocast import to_autocast
from neuralmem.ops.checks import (
    check_count,
    check_floating,
    check_mask,
    check_reset,
    check_shape,
    check_tokens,
    unless_masked,
)
from neuralmem.ops.neural_memory.call import where_rows
from neuralmem.typing import Tensor, Tensors

SHORTEST_ROW = 1e-5
"""A row that an update made shorter than this is lengthened as if it were this long: no division by zero."""


@dataclass(frozen=True)
class Call:
    """Arguments as in `swiglu_memory`, tensors in the state's dtype, but for q, k and v.

    Args:
        q, k, v: [B, T, H, D] in the caller's dtype, or in autocast's; k and v are 0 at tokens that write nothing
        theta: [B, T, H, 3]
        eta: [B, T, H], or None without momentum
        weights: W_1 and W_3 [B, H, D_h, D], W_2 [B, H, D, D_h], in the order 1, 2, 3
        momentum: like weights; empty without momentum
        first: the initial weights: their rows have the length that every update restores, and a reset goes back to them
        reset: Bool [B, T] or None
        write_mask: Bool [B, T] or None
        muon: whether what a chunk writes is orthogonalised
        chunk_size: tokens per update
        checkpoint_every: chunks per recomputed group, or None
    """

    q: Tensor
    k: Tensor
    v: Tensor
    theta: Tensor
    eta: Tensor | None
    weights: Tensors
    momentum: Tensors
    first: Tensors
    reset: Tensor | None
    write_mask: Tensor | None
    muon: bool
    chunk_size: int
    checkpoint_every: int | None

    def tokens(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v in the state's dtype."""
        dtype = self.theta.dtype
        return self.q.to(dtype), self.k.to(dtype), self.v.to(dtype)

    def restart(self, start: int, weights: Tensors, momentum: Tensors) -> tuple[Tensors, Tensors]:
        """The state before token `start`, the first of a chunk: the initial one where a document starts there."""
        if self.reset is None:
            return weights, momentum
        rows = self.reset[:, start]
        return where_rows(rows, self.first, weights), where_rows(rows, tuple(map(torch.zeros_like, momentum)), momentum)


def check_weights(q: Tensor, name: str, weights: Tensors) -> None:
    """Refuse anything but W_1 and W_3 [B, H, D_h, D] and W_2 [B, H, D, D_h], of q's device."""
    if len(weights) != 3:
        raise UserError(f"{name} has {len(weights)} tensors; it must have 3")
    B, _, H, D = q.shape
    if weights[0].ndim != 4:
        raise UserError(f"{name}[0] has shape {list(weights[0].shape)}; it must be [{B}, {H}, D_h, {D}]")
    hidden = weights[0].shape[2]
    for i, (weight, shape) in enumerate(zip(weights, ((hidden, D), (D, hidden), (hidden, D)), strict=True)):
        check_shape(f"{name}[{i}]", weight, (B, H, *shape))
    check_floating(q=q, **{f"{name}[{i}]": weight for i, weight in enumerate(weights)})


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    eta: Tensor | None,
    weights: Tensors,
    momentum: Tensors | None,
    *,
    muon: bool,
    chunk_size: int,
    write_mask: Tensor | None,
    initial: Tensors | None,
    reset: Tensor | None,
    checkpoint_every: int | None,
) -> Call:
    """Check what a user passed and cast it.

    Raises:
        UserError: a shape, dtype, device or value that does not fit, naming the argument.
    """
    q, k, v = to_autocast(q, k, v)
    check_count("chunk_size", chunk_size)
    check_count("checkpoint_every", checkpoint_every)
    check_tokens(q, k, v, **({} if eta is None else {"eta": eta}))
    check_shape("theta", theta, (*q.shape[:3], 3))
    check_floating(q=q, theta=theta)
    check_mask("write_mask", write_mask, q.shape[:2], q.device)
    check_mask("reset", reset, q.shape[:2], q.device)
    if (eta is None) != (momentum is None):
        raise UserError("eta and momentum belong together: give both, or None for both")
    states = {"weights": weights, "momentum": momentum, "initial": initial}
    for name, state in states.items():
        if state is not None:
            check_weights(q, name, state)
            check_shape(f"{name}[0]", state[0], weights[0].shape)
    if reset is not None and initial is None:
        raise UserError("reset is given without initial, the state to go back to")
    check_reset(reset, chunk_size)
    dtype = torch.promote_types(q.dtype, torch.float32)
    cast = lambda state: tuple(x.to(dtype) for x in state or ())
    if eta is not None:
        eta = unless_masked(eta.to(dtype)[..., None], write_mask)[..., 0]
    return Call(
        q=q,
        k=unless_masked(k, write_mask),
        v=unless_masked(v, write_mask),
        theta=unless_masked(theta.to(dtype), write_mask),
        eta=eta,
        weights=cast(weights),
        momentum=cast(momentum),
        first=cast(weights if initial is None else initial),
        reset=reset,
        write_mask=write_mask,
        muon=muon,
        chunk_size=chunk_size,
        checkpoint_every=checkpoint_every,
    )

"""One call of the op with its arguments checked and cast: what both backends receive."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from neuralmem.errors import UserError
from neuralmem.ops.checks import (
    check_count,
    check_floating,
    check_mask,
    check_reset,
    check_same_dtype,
    check_shape,
    unless_masked,
)
from neuralmem.ops.neural_memory.call import make_form
from neuralmem.ops.neural_memory.mlp import NORM_EPS
from neuralmem.ops.self_modifying.boxes import BOXES, Boxes, split_boxes
from neuralmem.typing import Tensor, Tensors


@dataclass(frozen=True)
class Call:
    """Arguments as in `self_modifying`, in the state's dtype, with the boxes on an axis of their own.

    Args:
        q, key_input, x: [B, H, T, D]; the last two are 0 at tokens that write nothing
        weights, first_weights: L tensors [B, 5, H, D_out, D_in]; the latter empty without resets
        boxes: what reading does not change
        write_mask, reset: Bool [B, T] or None
        dgd: whether the transition is that of delta gradient descent
    """

    q: Tensor
    key_input: Tensor
    x: Tensor
    weights: Tensors
    first_weights: Tensors
    boxes: Boxes
    write_mask: Tensor | None
    reset: Tensor | None
    chunk_size: int
    checkpoint_every: int | None
    dgd: bool

    def restart(self, start: int, weights: Tensors) -> Tensors:
        """The state before token `start`, the first of a chunk: the initial one where a document starts there."""
        return weights if self.reset is None else choose_rows(self.reset[:, start], self.first_weights, weights)


def choose_rows(rows: Tensor, yes: Tensors, no: Tensors) -> Tensors:
    """Per sample one of two states [B, 5, H, D_out, D_in]. rows: Bool [B]."""
    return tuple(torch.where(rows[:, None, None, None, None], a, b) for a, b in zip(yes, no, strict=True))


def make_boxes(
    gates: tuple[Tensor, Tensor],
    theta_max: float,
    activation: str,
    residual: bool,
    norm: tuple[Tensor, Tensor] | None,
    dtype: torch.dtype,
    norm_eps: float = NORM_EPS,
) -> Boxes:
    """The slow side from what a caller gives: gates [2, H, D] and [2, H]; norm two [5 H, D]."""
    form = make_form(activation, residual, norm, dtype, norm_eps)
    if form.gain is not None and form.bias is not None:
        gain, bias = (x.unflatten(0, (len(BOXES), -1)) for x in (form.gain, form.bias))
        form = replace(form, gain=gain, bias=bias)
    return Boxes(form, gates[0].to(dtype), gates[1].to(dtype), theta_max)


def prepare(
    q: Tensor,
    key_input: Tensor,
    x: Tensor,
    weights: Tensors,
    gates: tuple[Tensor, Tensor],
    *,
    theta_max: float,
    chunk_size: int,
    activation: str,
    residual: bool,
    norm: tuple[Tensor, Tensor] | None,
    norm_eps: float,
    dgd: bool,
    write_mask: Tensor | None,
    initial: Tensors | None,
    reset: Tensor | None,
    checkpoint_every: int | None,
) -> Call:
    """Check what a user passed and cast it.

    Raises:
        UserError: a shape, dtype, device or value that does not fit, naming the argument.
    """
    if q.ndim != 4:
        raise UserError(f"q has shape {list(q.shape)}; it must be [B, T, H, D]")
    B, T, H, D = q.shape
    check_floating(q=q, key_input=key_input, x=x)
    for name, tokens in (("key_input", key_input), ("x", x)):
        check_shape(name, tokens, q.shape)
        check_same_dtype(name, tokens, q)
    check_shape("gates[0]", gates[0], (2, H, D))
    check_shape("gates[1]", gates[1], (2, H))
    for name, slow in zip(("norm gain", "norm bias"), norm or (), strict=False):
        check_shape(name, slow, (len(BOXES) * H, D))
    _check_weights("weights", weights, q)
    check_count("chunk_size", chunk_size)
    check_count("checkpoint_every", checkpoint_every)
    check_mask("write_mask", write_mask, (B, T), q.device)
    check_mask("reset", reset, (B, T), q.device)
    if reset is not None and initial is None:
        raise UserError("reset is given without initial, the state to go back to")
    if initial is not None:
        _check_weights("initial", initial, q)
    check_reset(reset, chunk_size)
    wide = torch.promote_types(q.dtype, torch.float32)

    def tokens_of(u: Tensor, mask: Tensor | None) -> Tensor:
        return unless_masked(u, mask).to(wide).transpose(1, 2)

    return Call(
        q=tokens_of(q, None),
        key_input=tokens_of(key_input, write_mask),
        x=tokens_of(x, write_mask),
        weights=split_boxes(tuple(w.to(wide) for w in weights)),
        first_weights=split_boxes(tuple(w.to(wide) for w in initial or ())),
        boxes=make_boxes(gates, theta_max, activation, residual, norm, wide, norm_eps),
        write_mask=write_mask,
        reset=reset,
        chunk_size=chunk_size,
        checkpoint_every=checkpoint_every,
        dgd=dgd,
    )


def _check_weights(name: str, weights: Sequence[Tensor], q: Tensor) -> None:
    B, _, H, D = q.shape
    if not isinstance(weights, (tuple, list)) or not weights:
        raise UserError(f"{name} must be a tuple of at least one tensor [B, 5 H, D_out, D_in]")
    into = D
    for i, w in enumerate(weights):
        out = D if i == len(weights) - 1 else (w.shape[2] if w.ndim == 4 else "D_out")
        if tuple(w.shape) != (B, len(BOXES) * H, out, into):
            raise UserError(f"{name}[{i}] has shape {list(w.shape)}; it must be {[B, len(BOXES) * H, out, into]}")
        check_floating(q=q, **{f"{name}[{i}]": w})
        into = w.shape[2]

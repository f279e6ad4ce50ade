"""One call of the op with its arguments checked and cast: what every backend receives."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from neuralmem.errors import UserError, nearest
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
from neuralmem.ops.neural_memory.attentional_bias import L2, AttentionalBias
from neuralmem.ops.neural_memory.mlp import ACTIVATIONS, NORM_EPS, MemoryForm
from neuralmem.typing import Tensor, Tensors

Norm = tuple[Tensor, Tensor]
State = tuple[Tensors, Tensors | None]


class History(NamedTuple):
    """The last c - 1 tokens written before a call or after it, which a window of c tokens still reaches.

    Args:
        k, v: [B, c - 1, H, D]
        valid: Bool [B, c - 1]; False places count as nothing, whatever they hold and wherever they stand
        delta: [B, c - 1, H], with and only with the bias `Huber`
    """

    k: Tensor
    v: Tensor
    valid: Tensor
    delta: Tensor | None = None


@dataclass(frozen=True)
class Call:
    """Arguments as in `neural_memory`, tensors in the state's dtype, but for q, k and v.

    Args:
        q, k, v: [B, T, H, D] in the caller's dtype, or in autocast's; a decode has one query only; k and v are 0 at
            tokens that write nothing
        theta, alpha: [B, T, H]
        eta: [B, T, H], or None without momentum
        weights: L tensors [B, H, D_out, D_in]
        momentum: like weights; empty without momentum
        first_weights, first_momentum: what a reset goes back to; empty without resets
        reset: Bool [B, T] or None
        write_mask: Bool [B, T] or None
        form: activation, residual and norm of the MLP
        chunk_size: tokens per gradient anchor
        checkpoint_every: chunks per recomputed group, or None
        bias: the inner loss, its settings [B, T, H] 0 at tokens that write nothing
        omega: [B, T, H, c], or None for steps of one gradient each; 0 at tokens that write nothing
        history: what stands before the first token, 0 where not valid; None without omega
    """

    q: Tensor
    k: Tensor
    v: Tensor
    theta: Tensor
    eta: Tensor | None
    alpha: Tensor
    weights: Tensors
    momentum: Tensors
    first_weights: Tensors
    first_momentum: Tensors
    reset: Tensor | None
    write_mask: Tensor | None
    form: MemoryForm
    chunk_size: int
    checkpoint_every: int | None
    bias: AttentionalBias = field(default_factory=L2)
    omega: Tensor | None = None
    history: History | None = None

    @property
    def operand(self) -> torch.dtype:
        """Dtype of the factors of matrix products."""
        return self.q.dtype

    @property
    def reach(self) -> int:
        """Tokens before a chunk that its windows may reach: c - 1."""
        return 0 if self.omega is None else self.omega.shape[3] - 1

    def queries(self) -> Tensor:
        """q in the state's dtype."""
        return self.q.to(self.theta.dtype)

    def written(self) -> Tensors:
        """What a gradient is of: k, v [B, T, H, D] and the bias's settings [B, T, H, 1], in the state's dtype."""
        return self._wide(self.k, self.v, *self.bias.settings)

    def past(self) -> Tensors:
        """The same of the history, [B, c - 1, H, ...]."""
        assert self.history is not None
        k, v, _, delta = self.history
        return self._wide(k, v, *(() if delta is None else (delta,)))

    def _wide(self, k: Tensor, v: Tensor, *settings: Tensor) -> Tensors:
        dtype = self.theta.dtype
        return k.to(dtype), v.to(dtype), *(x.to(dtype)[..., None] for x in settings)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """a @ b of rounded factors, in the state's dtype."""
        return (a.to(self.operand) @ b.to(self.operand)).to(self.theta.dtype)

    def restart(self, start: int, weights: Tensors, momentum: Tensors) -> tuple[Tensors, Tensors]:
        """The state before token `start`, the first of a chunk: the initial one where a document starts there."""
        if self.reset is None:
            return weights, momentum
        rows = self.reset[:, start]
        return where_rows(rows, self.first_weights, weights), where_rows(rows, self.first_momentum, momentum)


def where_rows(rows: Tensor, yes: Tensors, no: Tensors) -> Tensors:
    """Per sample one of two states. rows: Bool [B]; states [B, H, D_out, D_in]."""
    return tuple(torch.where(rows[:, None, None, None], a, b) for a, b in zip(yes, no, strict=True))


def make_form(
    activation: str, residual: bool, norm: Norm | None, dtype: torch.dtype, norm_eps: float = NORM_EPS
) -> MemoryForm:
    """The MLP's form, its slow parameters [H, D] ready for [B, H, T, D]."""
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UserError(f"activation is {activation!r}; it must be one of {known}{nearest(activation, ACTIVATIONS)}")
    gain, bias = (None, None) if norm is None else (x.to(dtype)[:, None, :] for x in norm)  # [H, 1, D]
    return MemoryForm(activation, residual, gain, bias, norm_eps)


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    eta: Tensor | None,
    alpha: Tensor,
    weights: Tensors,
    momentum: Tensors | None,
    *,
    chunk_size: int,
    activation: str,
    residual: bool,
    norm: Norm | None,
    write_mask: Tensor | None,
    initial: State | None = None,
    reset: Tensor | None = None,
    checkpoint_every: int | None = None,
    bias: AttentionalBias | None = None,
    omega: Tensor | None = None,
    history: History | None = None,
) -> Call:
    """Check what a user passed and cast it.

    Raises:
        UserError: a shape, dtype, device or value that does not fit, naming the argument.
    """
    q, k, v = to_autocast(q, k, v)
    check_count("chunk_size", chunk_size)
    check_count("checkpoint_every", checkpoint_every)
    check_tokens(q, k, v, theta=theta, alpha=alpha, **({} if eta is None else {"eta": eta}))
    for name, x in zip(("norm gain", "norm bias"), norm or (), strict=False):
        check_shape(name, x, q.shape[2:])
        check_floating(q=q, **{name: x})
    check_mask("write_mask", write_mask, q.shape[:2], q.device)
    check_mask("reset", reset, q.shape[:2], q.device)
    _check_states(q, eta, weights, momentum, initial)
    if reset is not None and initial is None:
        raise UserError("reset is given without initial, the state to go back to")
    check_reset(reset, chunk_size)
    bias = L2() if bias is None else bias
    _check_bias(q, bias)
    if omega is not None:
        history = _complete_history(q, omega, len(bias.settings), history)
    dtype = torch.promote_types(q.dtype, torch.float32)
    first_weights, first_momentum = (_cast(x, dtype) for x in initial or ((), ()))
    if momentum is not None and not first_momentum:
        first_momentum = tuple(map(torch.zeros_like, first_weights))
    return Call(
        q=q,
        k=unless_masked(k, write_mask),
        v=unless_masked(v, write_mask),
        theta=theta.to(dtype),
        eta=None if eta is None else eta.to(dtype),
        alpha=alpha.to(dtype),
        weights=_cast(weights, dtype),
        momentum=_cast(momentum, dtype),
        first_weights=first_weights,
        first_momentum=first_momentum,
        reset=reset,
        write_mask=write_mask,
        form=make_form(activation, residual, norm, dtype),
        chunk_size=chunk_size,
        checkpoint_every=checkpoint_every,
        bias=bias.map(lambda x: unless_masked(x.to(dtype)[..., None], write_mask)[..., 0]),
        omega=None if omega is None else unless_masked(omega.to(dtype), write_mask),
        history=history,
    )


def _cast(state: Tensors | None, dtype: torch.dtype) -> Tensors:
    return tuple(x.to(dtype) for x in state or ())


def _check_states(
    q: Tensor, eta: Tensor | None, weights: Tensors, momentum: Tensors | None, initial: State | None
) -> None:
    if (eta is None) != (momentum is None):
        raise UserError("eta and momentum belong together: give both, or None for both")
    check_weights("q", q, weights)
    first, start = initial or (None, None)
    if start is not None and momentum is None:
        raise UserError("initial has momentum, but momentum is None: give None for both")
    for name, state in (("momentum", momentum), ("initial weights", first), ("initial momentum", start)):
        if state is None:
            continue
        if len(state) != len(weights):
            raise UserError(f"{name} has {len(state)} tensors; it must have {len(weights)} like weights")
        for i, (x, w) in enumerate(zip(state, weights, strict=True)):
            check_shape(f"{name}[{i}]", x, w.shape)
            check_floating(q=q, **{f"{name}[{i}]": x})


def _check_bias(q: Tensor, bias: AttentionalBias) -> None:
    if not isinstance(bias, AttentionalBias):
        raise UserError(f"bias is {bias!r}; it must be None, L2(), Lp(p) or Huber(delta)")
    for x in bias.settings:
        check_shape("bias delta", x, q.shape[:3])
        check_floating(q=q, **{"bias delta": x})


def _complete_history(q: Tensor, omega: Tensor, settings: int, history: History | None) -> History:
    """The history checked, 0 where not valid, what is valid last; nothing valid where none is given."""
    B, T, H, D = q.shape
    check_floating(q=q, omega=omega)
    if omega.ndim != 4 or omega.shape[:3] != q.shape[:3] or not omega.shape[3]:
        raise UserError(f"omega has shape {list(omega.shape)}; it must be {[B, T, H, 'c']} with c at least 1")
    reach = omega.shape[3] - 1
    if history is None:
        none = q.new_zeros(B, reach, H, D)
        delta = none.new_zeros(B, reach, H, dtype=omega.dtype) if settings else None
        return History(none, none, torch.zeros(B, reach, dtype=torch.bool, device=q.device), delta)
    k, v, valid, delta = history
    check_mask("history valid", valid, (B, reach), q.device)
    if (delta is not None) != bool(settings):
        raise UserError(f"history delta is {'missing' if settings else 'given'}; it belongs to the bias Huber")
    for name, x, shape in (("k", k, (B, reach, H, D)), ("v", v, (B, reach, H, D)), ("delta", delta, (B, reach, H))):
        if x is not None:
            check_shape(f"history {name}", x, shape)
            check_floating(q=q, **{f"history {name}": x})
    rows, order = torch.arange(B, device=q.device)[:, None], valid.long().argsort(dim=1, stable=True)
    delta = None if delta is None else unless_masked(delta[..., None], valid)[rows, order, ..., 0]
    k, v = (unless_masked(x, valid)[rows, order].to(q.dtype) for x in (k, v))
    return History(k, v, valid[rows, order], delta)


def check_weights(name: str, x: Tensor, weights: Tensors) -> None:
    """Refuse weights that are no MLP from D to D with the batch and heads of x [B, T, H, D], which is called `name`."""
    B, _, H, D = x.shape
    if not isinstance(weights, (tuple, list)) or not weights:
        raise UserError("weights must be a tuple of at least one tensor [B, H, D_out, D_in]")
    into = D
    for i, w in enumerate(weights):
        last = i == len(weights) - 1
        if w.ndim != 4 or w.shape[:2] != (B, H) or w.shape[3] != into or (last and w.shape[2] != D):
            expected = [B, H, D if last else "D_out", into]
            raise UserError(f"weights[{i}] has shape {list(w.shape)}; it must be {expected}")
        check_floating(**{name: x, f"weights[{i}]": w})
        into = w.shape[2]

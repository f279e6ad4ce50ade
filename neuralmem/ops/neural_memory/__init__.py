"""The update of a neural memory: read a text, write it into the weights of a small MLP, read it back at every token.

Titans (2501.00663) Eq. 8-18, with the gradient anchor at each chunk's first weights. Backends: `reference.py` is the
paper's loop, `chunked.py` the same function a chunk at a time. README.md derives one from the other.
"""

import torch

from neuralmem.errors import UserError, nearest
from neuralmem.ops.checks import check_floating, check_mask, check_reset, check_shape, choose_backend
from neuralmem.ops.neural_memory.chunked import chunked
from neuralmem.ops.neural_memory.mlp import ACTIVATIONS, MemoryForm
from neuralmem.ops.neural_memory.reference import reference
from neuralmem.typing import Tensor, Tensors

Norm = tuple[Tensor, Tensor]
State = tuple[Tensors, Tensors | None]

UNAVAILABLE = {"native": "the native kernels are not part of this version"}


def neural_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    eta: Tensor | None,
    alpha: Tensor,
    weights: Tensors,
    momentum: Tensors | None,
    *,
    chunk_size: int = 64,
    activation: str = "silu",
    residual: bool = True,
    norm: Norm | None = None,
    write_mask: Tensor | None = None,
    initial: State | None = None,
    reset: Tensor | None = None,
    checkpoint_every: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensors, Tensors | None]:
    """Read tokens into a memory MLP and read it back at every token.

    With M(x) = x + f(x), f(x) = W_L act(... act(W_1 x)), and every gradient of a chunk taken at the chunk's first weights:

        S_t = eta_t S_{t-1} - theta_t grad |M(k_t) - v_t|^2
        W_t = (1 - alpha_t) W_{t-1} + S_t
        y_t = M_{W_t}(q_t)

    State, gates and norm are computed in promote_types(dtype, float32). Differentiable in every tensor.

    Args:
        q, k, v: [B, T, H, D], of one dtype; under autocast they are cast to its dtype
        theta: [B, T, H], inner learning rate
        eta: [B, T, H], surprise decay in [0, 1]; None together with `momentum` for a memory without momentum
        alpha: [B, T, H], forget fraction in [0, 1]
        weights: L tensors [B, H, D_out, D_in], the state before the first token
        momentum: like `weights`, or None
        chunk_size: tokens that share one gradient anchor, counted from the start of the call
        activation: "silu", "gelu" (exact), "gelu_tanh" or "identity"
        residual: M(x) = x + f(x), else f(x)
        norm: None, or (gain, bias) [H, D]: f becomes LN(f) * gain + bias; the inner loop never changes them
        write_mask: Bool [B, T]; False tokens are read but write nothing, decay nothing, move no momentum
        initial: (weights, momentum) that a reset goes back to; its momentum may be None for zero
        reset: Bool [B, T], True only at multiples of chunk_size: there the state becomes `initial` before the token
        checkpoint_every: chunks between boundary states that backward keeps; it recomputes what lies between
        backend: "auto", "reference", "chunked" or "native"; NEURALMEM_BACKEND overrides "auto"

    Returns:
        y [B, T, H, D] in q's dtype, and weights and momentum after the last token.

    Raises:
        UserError: a shape, dtype, device or value that does not fit, naming the argument.

    Example:
        >>> x = torch.nn.functional.normalize(torch.randn(1, 96, 2, 8), dim=-1)
        >>> gate = torch.full((1, 96, 2), 0.01)
        >>> weights = (torch.randn(1, 2, 16, 8) / 8**0.5, torch.randn(1, 2, 8, 16) / 16)
        >>> y, after, momentum = neural_memory(x, x, -x, gate, None, 0 * gate, weights, None, chunk_size=32)
        >>> bool((y[:, -32:] + x[:, -32:]).norm() < (y[:, :32] + x[:, :32]).norm())
        True
    """
    q, k, v = _autocast(q, k, v)
    _check(q, k, v, theta, eta, alpha, weights, momentum, chunk_size, activation, norm, write_mask, initial, reset)
    if checkpoint_every is not None and checkpoint_every < 1:
        raise UserError(f"checkpoint_every is {checkpoint_every}; it must be at least 1 or None")
    chosen = choose_backend(backend, ("chunked", "reference"), UNAVAILABLE)
    wide = torch.promote_types(q.dtype, torch.float32)
    operand = {} if chosen == "reference" else {"operand": q.dtype}
    with torch.autocast(q.device.type, enabled=False):
        y, weights, momentum = (reference if chosen == "reference" else chunked)(
            *_to(wide, q, k, v, theta, eta, alpha, weights, momentum),
            form=_form(activation, residual, norm, wide),
            chunk_size=chunk_size,
            write_mask=write_mask,
            initial=_initial(initial, momentum, wide),
            reset=reset,
            checkpoint_every=checkpoint_every,
            **operand,
        )
    return y.to(q.dtype), weights, momentum


def evaluate_memory(
    x: Tensor, weights: Tensors, *, activation: str = "silu", residual: bool = True, norm: Norm | None = None
) -> Tensor:
    """M(x) at fixed weights: a read that writes nothing.

    Args:
        x: [B, T, H, D]
        weights: L tensors [B, H, D_out, D_in]
        activation, residual, norm: as in `neural_memory`

    Returns:
        [B, T, H, D] in x's dtype.

    Example:
        >>> weights = (torch.zeros(1, 2, 16, 8), torch.zeros(1, 2, 8, 16))
        >>> x = torch.randn(1, 5, 2, 8)
        >>> torch.equal(evaluate_memory(x, weights), x)
        True
    """
    (x,) = _autocast(x)
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        form = _form(activation, residual, norm, wide)
        wide_x, weights = _to(wide, x, weights)
        y = form.evaluate(weights, wide_x.transpose(1, 2)).transpose(1, 2)
    return y.to(x.dtype)


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast, what autocast would have made of a matrix product's operands."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(x if x.dtype == torch.float64 else x.to(torch.get_autocast_dtype(kind)) for x in tensors)


def _to(dtype: torch.dtype, *values):
    """Cast tensors and tuples of tensors, leaving None."""
    return [
        None if x is None else tuple(w.to(dtype) for w in x) if isinstance(x, (tuple, list)) else x.to(dtype)
        for x in values
    ]


def _form(activation: str, residual: bool, norm: Norm | None, dtype: torch.dtype) -> MemoryForm:
    gain, bias = (None, None) if norm is None else (x.to(dtype)[:, None, :] for x in norm)  # [H, 1, D]
    return MemoryForm(activation, residual, gain, bias)


def _initial(initial: State | None, momentum: Tensors | None, dtype: torch.dtype) -> State | None:
    if initial is None:
        return None
    weights, start = _to(dtype, *initial)
    if momentum is not None and start is None:
        start = tuple(map(torch.zeros_like, weights))
    return weights, start


def _check(q, k, v, theta, eta, alpha, weights, momentum, chunk_size, activation, norm, write_mask, initial, reset):
    if q.ndim != 4:
        raise UserError(f"q has shape {list(q.shape)}; it must be [B, T, H, D]")
    B, T, H, D = q.shape
    check_floating(q=q, k=k, v=v, theta=theta, alpha=alpha, **({} if eta is None else {"eta": eta}))
    for name, x in (("k", k), ("v", v)):
        check_shape(name, x, q.shape)
        if x.dtype != q.dtype:
            raise UserError(f"{name} has dtype {x.dtype}; it must be {q.dtype} like q")
    for name, x in (("theta", theta), ("eta", eta), ("alpha", alpha)):
        if x is not None:
            check_shape(name, x, (B, T, H))
    if (eta is None) != (momentum is None):
        raise UserError("eta and momentum belong together: give both, or None for both")
    if chunk_size < 1:
        raise UserError(f"chunk_size is {chunk_size}; it must be at least 1")
    if activation not in ACTIVATIONS:
        raise UserError(
            f"activation is {activation!r}; it must be one of {', '.join(ACTIVATIONS)}{nearest(activation, ACTIVATIONS)}"
        )
    if norm is not None:
        for name, x in zip(("norm gain", "norm bias"), norm, strict=True):
            check_shape(name, x, (H, D))
    _check_weights("weights", weights, (B, H, D))
    states = [("momentum", momentum)]
    if initial is not None:
        states += [("initial weights", initial[0]), ("initial momentum", initial[1])]
    for name, state in states:
        if state is None:
            continue
        if len(state) != len(weights):
            raise UserError(f"{name} has {len(state)} tensors; it must have {len(weights)} like weights")
        for i, (x, w) in enumerate(zip(state, weights, strict=True)):
            check_shape(f"{name}[{i}]", x, w.shape)
    check_mask("write_mask", write_mask, (B, T))
    check_mask("reset", reset, (B, T))
    if reset is not None and initial is None:
        raise UserError("reset is given without initial, the state to go back to")
    check_reset(reset, chunk_size)


def _check_weights(name: str, weights: Tensors, size: tuple[int, int, int]) -> None:
    B, H, D = size
    if not isinstance(weights, (tuple, list)) or not weights:
        raise UserError(f"{name} must be a tuple of at least one tensor [B, H, D_out, D_in]")
    width = D
    for i, w in enumerate(weights):
        out = D if i == len(weights) - 1 else (w.shape[-2] if w.ndim == 4 else "D_out")
        check_shape(f"{name}[{i}]", w, (B, H, out, width))
        width = w.shape[-2]

"""What torch has to know of torch.ops.neuralmem: shapes without numbers, and derivatives.

Special: torch.compile, checkpointing, autocast and DDP see three opaque ops. Every function here takes the arguments of
a schema in cuda/bindings.cpp, in its order: 0-5 q, k, v, theta, eta, alpha; 6-9 lists of states (a decode: two); then
gain, bias, write_mask, reset (a decode has none); then the settings.
"""

from typing import Any

import torch

from neuralmem.errors import UserError
from neuralmem.ops.autocast import without_autocast
from neuralmem.ops.neural_memory.call import Call
from neuralmem.ops.neural_memory.decode import decode
from neuralmem.ops.neural_memory.mlp import ACTIVATIONS, MemoryForm
from neuralmem.typing import Tensor


def _shapes(*arguments: Any) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """Forward without numbers."""
    q, _, _, _, eta, _, weights, momentum, *_, chunk_size, _, _, keep_every = arguments
    B, T, H, _ = q.shape
    groups = -(-T // (chunk_size * keep_every)) if keep_every else 0
    numbers = sum(w.shape[2] * w.shape[3] for w in weights) * (1 if eta is None else 2)
    after = ([torch.empty_like(x) for x in state] for state in (weights, momentum))
    return torch.empty_like(q), *after, weights[0].new_empty(groups, B, H, numbers)


def _gradient_shapes(boundaries: Tensor, dy: Tensor, dweights: Any, dmomentum: Any, *arguments: Any) -> tuple[Any, ...]:
    """Backward without numbers: an empty tensor for what does not exist, gain and bias not yet summed over B."""
    q, k, v, theta, eta, alpha, *states, gain, bias = arguments[:12]

    def like(x: Tensor | None) -> Tensor:
        return theta.new_empty(0) if x is None else torch.empty_like(x)

    slow = (theta.new_empty(0 if x is None else (len(q), *x.shape)) for x in (gain, bias))
    return *map(like, (q, k, v, theta, eta, alpha)), *([like(x) for x in state] for state in states), *slow


def _decode_shapes(q: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(q)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    """Keep the inputs and the boundary states: all that backward needs."""
    boundaries = output[3]
    ctx.set_materialize_grads(False)  # there is none for the boundaries, and zeros would double them
    ctx.mark_non_differentiable(boundaries)
    ctx.states = [len(state) for state in inputs[6:10]]
    ctx.settings = inputs[14:]
    ctx.save_for_backward(boundaries, *inputs[:6], *(x for state in inputs[6:10] for x in state), *inputs[10:14])


def _differentiate(ctx: Any, dy: Tensor | None, dweights: Any, dmomentum: Any, _: None) -> tuple[Any, ...]:
    """Gradients of everything that went in, from those of y, weights and momentum."""
    if not ctx.settings[-1]:
        raise RuntimeError("native ran without keeping states, because nothing that it was given required a gradient")
    boundaries, *saved = ctx.saved_tensors
    states, slow = _lists(saved[6:], ctx.states)
    weights, momentum = states[:2]

    def given(gradients: Any, like: list[Tensor]) -> list[Tensor]:
        return [torch.zeros_like(x) if g is None else g.contiguous() for g, x in zip(gradients, like, strict=True)]

    (dy,) = given([dy], saved[:1])
    if dy.device.type == "cpu" and all(g is None for g in (*dweights, *dmomentum)):
        ends: tuple[list[Tensor], ...] = [], []  # a loss of y alone: the kernels leave out what would be zero
    else:
        ends = given(dweights, weights), given(dmomentum, momentum)
    results = torch.ops.neuralmem.neural_memory_backward(
        boundaries, dy, *ends, *saved[:6], *states, *slow, *ctx.settings
    )
    *inputs, dgain, dbias = results
    inputs[4] = None if saved[4] is None else inputs[4]
    over_samples = (None if slow[0] is None else x.sum(0) for x in (dgain, dbias))
    return *inputs, *over_samples, *[None] * 6


def _save_decode(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.states = [len(state) for state in inputs[6:8]]
    ctx.settings = inputs[11:]
    ctx.save_for_backward(*inputs[:6], *(x for state in inputs[6:8] for x in state), *inputs[8:11])


def _differentiate_decode(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    """Through the plain decode, on views of what went in: any number of derivatives."""
    again = torch.is_grad_enabled()
    with torch.enable_grad(), without_autocast(dy.device.type):
        saved = [None if x is None else x.view_as(x) for x in ctx.saved_tensors]
        y = decode(_decode_call(saved, ctx.states, *ctx.settings)).to(dy.dtype)
    wanted = [x for x in saved if x is not None and x.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=again, allow_unused=True))
    gradients = [next(found) if x is not None and x.requires_grad else None for x in saved]
    states, rest = _lists(gradients[6:], ctx.states)
    return *gradients[:6], *states, *rest, None, None


def _decode_call(tensors: list[Any], counts: list[int], activation: int, residual: bool) -> Call:
    """The call that the saved inputs of a decode were made from."""
    (weights, momentum), (gain, bias, write_mask) = _lists(tensors[6:], counts)
    gain, bias = (None if x is None else x[:, None] for x in (gain, bias))
    form = MemoryForm(list(ACTIVATIONS)[activation], residual, gain, bias)
    q, k, v, theta, eta, alpha = tensors[:6]
    state = tuple(weights), tuple(momentum), (), ()
    return Call(q, k, v, theta, eta, alpha, *state, None, write_mask, form, max(k.shape[1], 1), None)


def _lists(tensors: list[Any], counts: list[int]) -> tuple[list[list[Any]], list[Any]]:
    """Tensors cut into lists of so many, and the rest."""
    rest = iter(tensors)
    return [[next(rest) for _ in range(count)] for count in counts], list(rest)


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    pass


def _refuse_second_derivative(ctx: Any, *gradients: Any) -> None:
    raise UserError("native is differentiable once; for second derivatives use backend='chunked'")


def register() -> None:
    """Tell torch; once, after the library was loaded."""
    torch.library.register_fake("neuralmem::neural_memory", _shapes)
    torch.library.register_fake("neuralmem::neural_memory_backward", _gradient_shapes)
    torch.library.register_fake("neuralmem::neural_memory_decode", _decode_shapes)
    torch.library.register_autograd("neuralmem::neural_memory", _differentiate, setup_context=_save)
    torch.library.register_autograd(
        "neuralmem::neural_memory_decode", _differentiate_decode, setup_context=_save_decode
    )
    torch.library.register_autograd(
        "neuralmem::neural_memory_backward", _refuse_second_derivative, setup_context=_save_nothing
    )

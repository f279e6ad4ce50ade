"""What the tests of `neural_memory` share: random calls, and the paper's loop written once more.

The loop knows nothing of the package: plain torch, gradients by autograd, one sample and one head at a time.
"""

from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from neuralmem.ops import AttentionalBias, History, Huber, Lp, neural_memory, omega_memory
from neuralmem.ops.neural_memory.native import CPU_ERROR

B, H, D = 2, 2, 4
ACTIVATION = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "identity": lambda z: z,
}

needs_native = pytest.mark.skipif(bool(CPU_ERROR), reason=f"no native library: {CPU_ERROR}")
NATIVE = pytest.param("native", marks=needs_native)
each_backend = pytest.mark.parametrize("backend", ["reference", "chunked", NATIVE])


@dataclass
class Call:
    """Arguments of neural_memory, or of omega_memory if omega is one, in the signature's order, and options."""

    tensors: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, **options: Any) -> tuple[Any, ...]:
        op = omega_memory if "omega" in self.tensors else neural_memory
        return op(**self.tensors, **{**self.options, **options})

    def leaves(self) -> list[Tensor]:
        """Every tensor that a gradient may be asked for."""
        flat: list[Tensor] = []
        self.map(lambda x: flat.append(x) or x)
        return flat

    def map(self, change: Any) -> "Call":
        """The same call with `change` applied to every floating-point tensor."""

        def apply(value: Any) -> Any:
            if isinstance(value, Tensor):
                return change(value) if value.is_floating_point() else value
            if isinstance(value, AttentionalBias):
                return value.map(change)
            if isinstance(value, History):
                return History(*map(apply, value))
            return tuple(map(apply, value)) if isinstance(value, tuple) else value

        both = ({k: apply(v) for k, v in part.items()} for part in (self.tensors, self.options))
        return Call(*both)


def random_state(layers: int, hidden: int, random: torch.Generator, scale: float = 1.0) -> tuple[Tensor, ...]:
    widths = [D, *[hidden] * (layers - 1), D]
    shapes = [(B, H, out, into) for into, out in pairwise(widths)]
    return tuple(
        (torch.randn(s, generator=random, dtype=torch.float64) * scale / s[-1] ** 0.5).requires_grad_() for s in shapes
    )


def make(
    tokens: int = 13,
    *,
    layers: int = 2,
    chunk_size: int = 5,
    momentum: bool = True,
    norm: bool = True,
    mask: bool = False,
    reset: bool = False,
    hidden: int = 6,
    seed: int = 0,
    window: int = 0,
    **options: Any,
) -> Call:
    """A random call in float64: two samples, two heads of width 4, momentum that is not zero.

    With a `window` it is one of omega_memory, whose history has a gap. `bias` may be the class Huber.
    """
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).requires_grad_()

    def gate(scale: float) -> Tensor:
        return (scale * torch.rand(B, tokens, H, generator=random, dtype=torch.float64)).requires_grad_()

    q, k, v = (draw(B, tokens, H, D) for _ in range(3))
    theta, eta, alpha = gate(0.05), gate(1.0), gate(0.3)
    weights, surprise = random_state(layers, hidden, random), random_state(layers, hidden, random, 0.1)
    tensors = {
        "q": q,
        "k": k,
        "v": v,
        "theta": theta,
        "eta": eta if momentum else None,
        "alpha": alpha,
        "weights": weights,
        "momentum": surprise if momentum else None,
    }
    options = {"chunk_size": chunk_size, "norm": (draw(H, D), draw(H, D)) if norm else None, **options}
    if mask:
        options["write_mask"] = torch.rand(B, tokens, generator=random) > 0.3
    if reset:
        starts = torch.zeros(B, tokens, dtype=torch.bool)
        starts[0, ::chunk_size] = True
        starts[1, chunk_size :: 2 * chunk_size] = True
        first = random_state(layers, hidden, random, 0.1) if momentum else None
        options |= {"reset": starts, "initial": (random_state(layers, hidden, random), first)}
    if options.get("bias") is Huber:
        options["bias"] = Huber(gate(3 * D**0.5), smooth=0.1)  # about half of the errors are longer
    if window:
        tensors["omega"] = draw(B, tokens, H, window)
        valid = torch.arange(window - 1) % 3 != torch.tensor([[0], [1]])
        delta = (3 * D**0.5 * draw(B, window - 1, H).abs().detach()).requires_grad_()
        reach = (B, window - 1, H, D)
        huber = isinstance(options.get("bias"), Huber)
        tensors["history"] = History(draw(*reach), draw(*reach), valid, delta if huber else None)
    return Call(tensors, options)


def papers_loop(call: Call) -> tuple[Any, ...]:
    """neural_memory, or omega_memory if the call has an omega, by the book."""
    a, options = call.tensors, call.options
    samples = [[_one(a, options, b, h) for h in range(H)] for b in range(B)]

    def stack(pick: Any) -> Tensor:
        return torch.stack([torch.stack([pick(one) for one in row]) for row in samples])

    y = stack(lambda one: one[0]).transpose(1, 2)
    count = len(a["weights"])
    weights = tuple(stack(lambda one, i=i: one[1][i]) for i in range(count))
    momentum = None if a["momentum"] is None else tuple(stack(lambda one, i=i: one[2][i]) for i in range(count))
    if "omega" not in a:
        return y, weights, momentum
    fields = 3 if isinstance(options.get("bias"), Huber) else 2
    written = [[one[3] for one in row] for row in samples]
    return y, weights, momentum, _history(written, a["omega"].shape[-1] - 1, fields)


Token = tuple[Tensor, Tensor, Tensor | None]
"""k, v [D] and delta."""


def _history(written: list[list[list[Token]]], reach: int, fields: int) -> History:
    """The last tokens of every sample and head, zeros in front of them."""

    def of(field: int) -> Tensor:
        blank = torch.zeros(() if field == 2 else D, dtype=torch.float64)
        places = torch.empty(B, reach, H, *blank.shape, dtype=torch.float64)
        for b, h, p in product(range(B), range(H), range(reach)):
            age, tokens = reach - p, written[b][h]
            places[b, p, h] = tokens[-age][field] if age <= len(tokens) else blank
        return places

    valid = torch.tensor([[p >= reach - len(row[0]) for p in range(reach)] for row in written], dtype=torch.bool)
    k, v, *delta = (of(field) for field in range(fields))
    return History(k, v, valid.view(B, reach), *delta)


def slope(bias: AttentionalBias | None, error: Tensor, delta: Tensor | None) -> Tensor:
    """The inner loss's gradient with respect to M(k)."""
    if isinstance(bias, Lp):
        return bias.p * torch.tanh(error / bias.smooth**0.5) * torch.sqrt(error**2 + bias.smooth) ** (bias.p - 1)
    assert isinstance(bias, Huber)
    far = delta * torch.tanh(error / bias.smooth**0.5)
    return 2 * error if torch.linalg.vector_norm(error) <= delta else far


def _one(
    a: dict[str, Any], options: dict[str, Any], b: int, h: int
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Token]]:
    """One sample and head: outputs [T, D], weights, momentum, the tokens written since the last reset."""
    act, residual = ACTIVATION[options.get("activation", "silu")], options.get("residual", True)
    gain, bias = (x[h] for x in options["norm"]) if options.get("norm") else (None, None)
    mask, reset = options.get("write_mask"), options.get("reset")

    def memory(weights: list[Tensor], x: Tensor) -> Tensor:
        z = x
        for i, weight in enumerate(weights):
            z = weight @ (act(z) if i else z)
        if gain is not None:
            z = (z - z.mean()) / torch.sqrt(((z - z.mean()) ** 2).mean() + 1e-6) * gain + bias
        return x + z if residual else z

    def gradient(weights: list[Tensor], key: Tensor, value: Tensor, delta: Tensor | None) -> tuple[Tensor, ...]:
        error = memory(weights, key) - value
        if loss is None:
            return torch.autograd.grad((error**2).sum(), weights, create_graph=True)
        return torch.autograd.grad(error, weights, slope(loss, error, delta), create_graph=True)

    loss, omega = options.get("bias"), a.get("omega")
    deltas = loss.delta[b, :, h] if isinstance(loss, Huber) else [None] * a["q"].shape[1]
    written: list[Token] = []
    if a.get("history") is not None:
        k, v, valid, delta = a["history"]
        places = [p for p in range(valid.shape[1]) if valid[b, p]]
        written = [(k[b, p, h], v[b, p, h], None if delta is None else delta[b, p, h]) for p in places]
    weights = [w[b, h] for w in a["weights"]]
    surprise = [s[b, h] for s in a["momentum"]] if a["momentum"] else [torch.zeros_like(w) for w in weights]
    outputs = []
    for t in range(a["q"].shape[1]):
        if t % options["chunk_size"] == 0:
            if reset is not None and reset[b, t]:
                written = []
                first, start = options["initial"]
                weights = [w[b, h] for w in first]
                surprise = [s[b, h] for s in start] if start else [torch.zeros_like(w) for w in weights]
            anchor = weights
        if mask is None or mask[b, t]:
            written = [*written, (a["k"][b, t, h], a["v"][b, t, h], deltas[t])]
            gammas = omega[b, t, h] if omega is not None else [1.0]
            each = [
                [gamma * g for g in gradient(anchor, *token)]
                for gamma, token in zip(gammas, written[::-1], strict=False)
            ]
            gradients = [sum(of_layer) for of_layer in zip(*each, strict=True)]
            eta = a["eta"][b, t, h] if a["eta"] is not None else 0.0
            surprise = [eta * s - a["theta"][b, t, h] * g for s, g in zip(surprise, gradients, strict=True)]
            weights = [(1 - a["alpha"][b, t, h]) * w + s for w, s in zip(weights, surprise, strict=True)]
        outputs.append(memory(weights, a["q"][b, t, h]))
    y = torch.stack(outputs) if outputs else a["q"][b, :, h]
    return y, list(weights), surprise, written


def flatten(result: tuple[Any, ...]) -> list[Tensor]:
    y, weights, momentum, *history = result
    return [y, *weights, *(momentum or ()), *(x.to(y.dtype) for x in (history[0] if history else ()) if x is not None)]


def outputs_and_gradients(result: tuple[Any, ...], call: Call) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and state, and every input's gradient under a fixed weighting of all of them."""
    parts = flatten(result)
    weighted = [(x * torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype).view_as(x)).sum() for x in parts]
    gradients = torch.autograd.grad(sum(weighted), call.leaves(), allow_unused=True, materialize_grads=True)
    return parts, list(gradients)


def check_against_the_papers_loop(
    call: Call, backends: tuple[str, ...] = ("reference", "chunked"), *, recomputed: tuple[int, ...] = ()
) -> None:
    """Outputs, state and every gradient, also with recomputation in groups of so many chunks."""
    expected = outputs_and_gradients(papers_loop(call), call)
    options = [{"backend": backend} for backend in backends]
    options += [{"backend": backends[-1], "checkpoint_every": every} for every in recomputed]
    for chosen in options:
        ours = outputs_and_gradients(call.run(**chosen), call)
        assert_all_close(ours[0], expected[0])
        assert_all_close(ours[1], expected[1])


def assert_all_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-10) -> None:
    """Close, relative to each tensor's largest entry where that is above one."""
    for one, other in zip(ours, theirs, strict=True):
        size = max(1.0, other.detach().abs().max().item()) if other.numel() else 1.0
        torch.testing.assert_close(one, other, atol=tolerance * size, rtol=0)


def relative_error(ours: list[Tensor], exact: list[Tensor]) -> float:
    """The largest over the tensors of |ours - exact| / |exact|."""
    return max(((a.double() - b).norm() / b.norm()).item() for a, b in zip(ours, exact, strict=True))

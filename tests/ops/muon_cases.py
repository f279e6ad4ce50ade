"""What the tests of `muon_memory` share: random calls, and the paper's loop, plain torch but for Newton-Schulz."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from neuralmem.ops import History, muon_memory, newton_schulz
from tests.ops.memory_cases import B, Call, D, H, assert_all_close, make, outputs_and_gradients

State = tuple[Tensor, ...]


def case(tokens: int = 9, *, powers: int = 2, window: int = 3, chunk_size: int = 4, **options: Any) -> Call:
    """A random call in float64, its first matrices as wide as the powers. powers = 0: without coefficients."""
    call = make(tokens, window=window, chunk_size=chunk_size, **options)
    random = torch.Generator().manual_seed(7)

    def draw(x: Tensor, scale: float) -> Tensor:
        return scale * torch.randn(x.shape, generator=random, dtype=x.dtype)

    def widen(state: State | None) -> State | None:
        if not state:
            return state
        first = torch.cat([state[0].detach(), *(draw(state[0], 0.5) for _ in range(powers - 1))], dim=-1)
        return (first.requires_grad_(), *state[1:])

    call.tensors |= {name: widen(call.tensors[name]) for name in ("weights", "momentum")}
    if "initial" in call.options:
        call.options["initial"] = tuple(map(widen, call.options["initial"]))
    if powers:
        call.tensors["coefficients"] = (1 + draw(torch.empty(H, powers, dtype=torch.float64), 0.3)).requires_grad_()
    return call


def run(call: Call, **options: Any) -> tuple[Any, ...]:
    return muon_memory(**call.tensors, **{**call.options, **options})


def papers_loop(call: Call) -> tuple[Any, ...]:
    """Plain torch, one sample and head at a time; of the package, Newton-Schulz only."""
    a, options = call.tensors, call.options
    every = [[_one(a, options, b, h) for h in range(H)] for b in range(B)]

    def stack(pick: Any) -> Tensor:
        return torch.stack([torch.stack([pick(one) for one in row]) for row in every])

    layers, reach = range(len(a["weights"])), a["omega"].shape[-1] - 1
    blank = torch.zeros(D, dtype=torch.float64)

    def last(one: Any, of: int) -> Tensor:
        tokens = [token[of] for token in one[3]][-reach:] if reach else []
        return torch.stack([blank] * (reach - len(tokens)) + tokens) if reach else torch.zeros(0, D).double()

    count = torch.tensor([len(row[0][3]) for row in every])
    valid = torch.arange(reach) >= reach - count[:, None]
    history = History(*(stack(lambda one, of=of: last(one, of)).transpose(1, 2) for of in (0, 1)), valid)
    y, weights = stack(lambda one: one[0]).transpose(1, 2), tuple(stack(lambda one, i=i: one[1][i]) for i in layers)
    return y, weights, tuple(stack(lambda one, i=i: one[2][i]) for i in layers) if a["momentum"] else None, history


def _one(a: dict[str, Any], options: dict[str, Any], b: int, h: int) -> tuple[Any, ...]:
    """Outputs [T, D], weights, surprise, the tokens written since the last reset."""
    powers = a["coefficients"][h] if "coefficients" in a else [1.0]
    mask, reset, muon = options.get("write_mask"), options.get("reset"), options.get("muon", True)

    def memory(weights: list[Tensor], x: Tensor) -> Tensor:
        z = torch.cat([c * x ** (i + 1) for i, c in enumerate(powers)])
        for i, weight in enumerate(weights):
            z = weight @ (F.silu(z) if i else z)
        if options["norm"]:
            gain, bias = (n[h] for n in options["norm"])
            z = F.layer_norm(z, (D,), gain, bias, 1e-6)
        return x + z if options.get("residual", True) else z

    def of(state: State | None) -> list[Tensor]:
        return [x[b, h] for x in state] if state else [torch.zeros_like(w[b, h]) for w in a["weights"]]

    k, v, valid, _ = a["history"] or (*[torch.zeros(B, 0, H, D)] * 2, torch.zeros(B, 0), None)
    written = [(k[b, p, h], v[b, p, h]) for p in range(valid.shape[1]) if valid[b, p]]
    weights, surprise, outputs = of(a["weights"]), of(a["momentum"]), []
    for t in range(a["q"].shape[1]):
        if t % options["chunk_size"] == 0:
            if reset is not None and reset[b, t]:
                weights, surprise, written = of(options["initial"][0]), of(options["initial"][1]), []
            anchor = weights
        if mask is None or mask[b, t]:
            written = [*written, (a["k"][b, t, h], a["v"][b, t, h])]
            window = zip(a["omega"][b, t, h], written[::-1], strict=False)
            loss = sum(gamma * ((memory(anchor, key) - value) ** 2).sum() for gamma, (key, value) in window)
            gradients = torch.autograd.grad(loss, anchor, create_graph=True)
            eta = a["eta"][b, t, h] if a["eta"] is not None else 0.0
            surprise = [eta * s + g for s, g in zip(surprise, gradients, strict=True)]
            steps = [newton_schulz(s) for s in surprise] if muon else surprise
            keep, theta = 1 - a["alpha"][b, t, h], a["theta"][b, t, h]
            weights = [keep * w - theta * s for w, s in zip(weights, steps, strict=True)]
        outputs.append(memory(weights, a["q"][b, t, h]))
    return torch.stack(outputs) if outputs else a["q"][b, :, h], weights, surprise, written


def check(call: Call, recomputed: tuple[int, ...] = ()) -> None:
    """Outputs, state, history and every gradient."""
    expected = outputs_and_gradients(papers_loop(call), call)
    options = [{"backend": backend} for backend in ("reference", "chunked")]
    for chosen in [*options, *({"checkpoint_every": every} for every in recomputed)]:
        ours = outputs_and_gradients(run(call, **chosen), call)
        assert_all_close([*ours[0], *ours[1]], [*expected[0], *expected[1]])

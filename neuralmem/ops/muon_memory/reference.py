"""The update of Atlas as the paper writes it: one sample, one token at a time, gradients by autograd, no speed.

S_t = eta_t S_{t-1} + grad sum_j Gamma_{t,t-j} |M(phi(k_{t-j})) - v_{t-j}|^2     ATLAS (2505.23735) 6.3, gradient at
W_t = (1 - alpha_t) W_{t-1} - theta_t NS(S_t)                                    the first weights of t's chunk
y_t = M_{W_t}(phi(q_t))
"""

import torch
from torch.func import grad

from neuralmem.ops.muon_memory.direction import direction
from neuralmem.ops.neural_memory.call import Call
from neuralmem.typing import Tensor, Tensors

Token = tuple[Tensor, Tensor]
"""k and v, [1, H, 1, D]."""


def reference(call: Call, muon: bool) -> tuple[Tensor, Tensors, Tensors]:
    """The token loop: y [B, T, H, D], weights and momentum after the last token."""
    y, weights, surprise = zip(*(_sample(call, b, muon) for b in range(len(call.q))), strict=True)
    join = [tuple(map(torch.cat, zip(*state, strict=True))) for state in (weights, surprise)]
    return torch.cat(y), join[0], join[1] if call.momentum else ()


def _sample(call: Call, b: int, muon: bool) -> tuple[Tensor, Tensors, Tensors]:
    """Sample b as a batch of one."""
    weights, momentum, first, start = (
        tuple(x[b : b + 1] for x in state)
        for state in (call.weights, call.momentum, call.first_weights, call.first_momentum)
    )
    zeros = tuple(map(torch.zeros_like, weights))
    surprise, window, outputs, anchor = momentum or zeros, _history(call, b), [], weights
    tokens = [x[b : b + 1, :, :, None] for x in (call.queries(), *call.written())]
    for t in range(call.q.shape[1]):
        q, k, v = (x[:, t] for x in tokens)
        if t % call.chunk_size == 0:
            if call.reset is not None and call.reset[b, t]:
                weights, surprise, window = first, start or zeros, []
            anchor = weights
        if call.write_mask is None or call.write_mask[b, t]:
            window = [*window, (k, v)][-call.reach - 1 :]
            theta, alpha = _gate(call.theta[b, t]), _gate(call.alpha[b, t])
            eta = 0.0 if call.eta is None else _gate(call.eta[b, t])
            gradient = _gradient(call, anchor, window, b, t)
            surprise = tuple(eta * s + g for s, g in zip(surprise, gradient, strict=True))
            weights = tuple(
                (1 - alpha) * w - theta * direction(s, muon) for w, s in zip(weights, surprise, strict=True)
            )
        outputs.append(call.form.evaluate(weights, q)[:, :, 0])  # [1, H, D]
    y = torch.stack(outputs, dim=1) if outputs else torch.empty_like(call.queries()[b : b + 1])
    return y, weights, surprise


def _gate(x: Tensor) -> Tensor:
    return x[:, None, None]  # [H] -> [H, 1, 1]


def _history(call: Call, b: int) -> list[Token]:
    """The tokens of the history, oldest first."""
    assert call.history is not None
    k, v = (x[b : b + 1, :, :, None] for x in call.past())
    return [(k[:, i], v[:, i]) for i, valid in enumerate(call.history.valid[b]) if valid]


def _gradient(call: Call, anchor: Tensors, window: list[Token], b: int, t: int) -> Tensors:
    """The gradient of the weighted losses of a window at the anchor."""
    assert call.omega is not None
    gammas = call.omega[b, t].unbind(-1)  # [H] each, newest first

    def loss(weights: Tensors) -> Tensor:
        each = [
            (gamma * (call.form.evaluate(weights, k) - v).square().sum((-2, -1))).sum()
            for gamma, (k, v) in zip(gammas, window[::-1], strict=False)
        ]
        return torch.stack(each).sum()  # heads are independent, so the gradient of their sum is that of each

    return grad(loss)(anchor)

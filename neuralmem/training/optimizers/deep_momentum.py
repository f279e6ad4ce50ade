"""Deep momentum gradient descent: the momentum is a small MLP that learns by itself (Nested Learning, section 4).

Printed, with u the gradient and an inner objective L2, such as the dot product <m(u^T), 1>:

    W <- W + m(u),   m <- eta m - theta grad L2(m; u, 1)

A linear m, with which this is momentum, has W's shape itself; m(u^T) has it for square W only, and the MLP is not
described. Here, for u [D_out, D_in] with rows u_r, their unit vectors e_r = u_r / |u_r|, and M with u's sign:

    memory      M_r(u) = S_r + |u_r| f(e_r),   f(e) = B tanh(A e) / sqrt(h)           A [h, D_in], B [D_in, h]
    objective   L2 = -sum_r <S_r, u_r> - mean_r <f(e_r), e_r>
    learning    S <- eta S - (1 - eta) dL2/dS,   the same for B and for A - A_0
    step        W <- W - lr M(u), with S, A and B after learning

- S is the part without a key: alone (h = 0, a linear memory with identity keys) it is plain momentum.
- f is one MLP for all rows, a memory from gradients to gradients: it makes steps longer along what the rows share, now
  and in the past.
- Keys and values of f have length one, as 7.1's DGD assumes. With |tanh| <= 1 then |B| <= 1, |A - A_0| <= 1 and
  |f| <= 1 whatever the gradients are: M is finite and at most |S_r| + |u_r| long.
- A decays to a random A_0 and not to zero, where tanh has no features and A and B no gradient.
- u is P g with Adam's diagonal P, a "gradient-like signal" in the paper's words, so that AdamW's learning rates serve.
"""

from collections.abc import Iterable
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from neuralmem.training.optimizers._matrix import MatrixOptimizer, preconditioned


class DeepMomentum(MatrixOptimizer):
    """W <- W - lr M(u), where M is momentum and an MLP over the rows of the gradient.

    It keeps 2 D_out D_in + 3 width D_in numbers for a matrix [D_out, D_in], AdamW 2 D_out D_in.

    Args:
        params: matrices [D_out, D_in], or groups of them
        lr: learning rate, comparable with AdamW's
        momentum: share of the memory that a step keeps
        width: h, the MLP's hidden width; 0 is plain momentum
        square_decay: share of V that a step keeps; None is P = 1, and lr then is comparable with SGD's
        eps: added to sqrt(V), and the least length that a row is divided by
        weight_decay: decoupled, in units of lr

    Example:
        >>> matrix = torch.nn.Parameter(torch.zeros(3, 4))
        >>> matrix.grad = torch.ones(3, 4)
        >>> DeepMomentum([matrix], lr=1.0, momentum=0.9, width=0).step()
        >>> matrix.detach()[0]
        tensor([-0.1000, -0.1000, -0.1000, -0.1000])
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        width: int = 16,
        square_decay: float | None = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            width=width,
            square_decay=square_decay,
            eps=eps,
            weight_decay=weight_decay,
        )

    def direction(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        u, theta = preconditioned(grad, state, group), 1 - group["momentum"]
        if "momentum" not in state:
            state |= _first(grad, group["width"])
        state["momentum"].lerp_(u, theta)
        if not group["width"]:
            return state["momentum"]
        length = u.norm(dim=1, keepdim=True)
        unit = u / length.clamp(min=group["eps"])
        grad_into, grad_out = _descent(unit, state["into"], state["out"])
        state["into"].lerp_(state["first_into"] + grad_into, theta)  # eta (A - A_0) + theta step, added to A_0
        state["out"].lerp_(grad_out, theta)
        return torch.addcmul(state["momentum"], length, _recall(unit, state["into"], state["out"]))


def _first(grad: Tensor, width: int) -> dict[str, Tensor]:
    """The state before the first step. A_0 is the same in every run: what it is random for is to differ by row."""
    rows = torch.randn(width, grad.shape[1], generator=torch.Generator().manual_seed(0)).to(grad)
    memory = {"into": rows, "first_into": rows.clone(), "out": grad.new_zeros(grad.shape[1], width)} if width else {}
    return {"momentum": torch.zeros_like(grad), **memory}


def _recall(e: Tensor, into: Tensor, out: Tensor) -> Tensor:
    """f(e): [R, D_in] for unit rows e [R, D_in]."""
    return torch.tanh(e @ into.T) @ out.T / sqrt(len(into))


def _descent(e: Tensor, into: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """-dL2/dA [h, D_in] and -dL2/dB [D_in, h] for unit rows e [R, D_in]."""
    features = torch.tanh(e @ into.T)
    scale = len(e) * sqrt(len(into))
    return ((e @ out) * (1 - features.square())).T @ e / scale, e.T @ features / scale

"""Delta momentum: momentum that overwrites where it writes, as the delta rule does (Nested Learning, section 4).

Momentum is a memory to which every gradient is added. With an l_2 loss in place of the dot product it first removes
what it holds for the key at hand. Printed for W [D_out, D_in], its gradient g, and W <- W + m:

    m <- m (eta - g^T g) - theta P g

Different here, and why:

- g^T g is the matrix [D_in, D_in] and eta is eta I: the keys are the rows of g, and m (g^T g) is what m holds along
  them. As a number, |g|^2, it would shrink the whole momentum instead.
- In it g is divided by its Frobenius norm. The factor's eigenvalues are then in [eta - delta, eta], so that m is
  bounded for 0 <= eta < 1 and 0 <= delta <= 1: |m| is at most the largest |P g| if delta <= 2 eta. Without it
  a gradient longer than sqrt(1 + eta) makes m explode. One shorter than eps is divided by eps.
- P, which the paper leaves open, is Adam's diagonal 1 / (sqrt(V) + eps), so that AdamW's learning rates serve.
- m has the sign of the gradient, theta is 1 - eta and lr multiplies when m is used: W <- W - lr m. With a constant lr
  that is the printed m with theta = lr (1 - eta); with a schedule, lr acts at once.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from neuralmem.training.optimizers._matrix import MatrixOptimizer, preconditioned


class DeltaMomentum(MatrixOptimizer):
    """M <- M (momentum I - delta g^T g / |g|^2) + (1 - momentum) P g,   W <- W - lr M.

    Args:
        params: matrices [D_out, D_in], or groups of them
        lr: learning rate, comparable with AdamW's
        momentum: share of the momentum that a step keeps where the gradient has no part
        delta: how much of what the momentum holds along the gradient is removed: this share if the gradient has rank
            one, and the less the more directions it has; 0 is plain momentum, 1 as printed
        square_decay: share of V that a step keeps; None is P = 1, and lr then is comparable with SGD's
        eps: added to sqrt(V), and the least length that a gradient is divided by
        weight_decay: decoupled, in units of lr

    Example:
        >>> matrix = torch.nn.Parameter(torch.zeros(1, 2))
        >>> optimizer = DeltaMomentum([matrix], lr=1.0, momentum=0.5, square_decay=None)
        >>> matrix.grad = torch.tensor([[3.0, 4.0]])
        >>> for _ in range(2): optimizer.step()
        >>> optimizer.state[matrix]["momentum"]  # (1/2 - 1) [1.5, 2] + 1/2 [3, 4]
        tensor([[0.7500, 1.0000]])
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        delta: float = 1.0,
        square_decay: float | None = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            delta=delta,
            square_decay=square_decay,
            eps=eps,
            weight_decay=weight_decay,
        )

    def direction(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        value = preconditioned(grad, state, group)
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(grad)
        momentum, eta = state["momentum"], group["momentum"]
        key = grad / grad.norm().clamp(min=group["eps"])
        few = len(key) <= key.shape[1]  # the smaller of the two Gram matrices
        held = (momentum @ key.T) @ key if few else momentum @ (key.T @ key)
        momentum.mul_(eta).sub_(held, alpha=group["delta"]).add_(value, alpha=1 - eta)
        return momentum

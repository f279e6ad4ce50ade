"""M3, multi-scale momentum Muon: a fast and a slow momentum, both made orthogonal (Nested Learning, algorithm 1).

As printed, with lr for its eta and rho for its alpha (which are other things here):

    every f steps:   M2 <- M2 + beta_3 sum of the last f gradients,   O2 = NS(M2)
    every step:      M1 <- M1 + beta_1 g,   V <- V + beta_2 g^2,   O1 = NS(M1)
                     W <- W - lr (O1 + rho O2) / (sqrt(V) + eps)

Different here, and why:

- All three are running means, M <- beta M + (1 - beta) g. The printed sums never forget, and their steps die out like
  Adagrad's.
- The quotient is scaled to a root mean square of 0.2. Division by sqrt(V) undoes what Newton-Schulz made orthogonal,
  and its size is anything. 0.2 is that of AdamW's steps, as in Muon's `match_rms_adamw`: its learning rates serve.
- V forgets more slowly than M2. A row that has no gradient any more would otherwise lose its V before its slow
  momentum, and the quotient, once scaled, would consist of that row alone.
- eps stands outside the root and V is corrected for its start at zero, as in Adam. Betas, rho, f and the number of
  Newton-Schulz iterations are not given in the paper: the defaults are ours. They run in float32, torch's Muon's in
  bfloat16.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from neuralmem.ops.newton_schulz import newton_schulz
from neuralmem.training.optimizers._matrix import MatrixOptimizer, root_mean_square

RMS = 0.2  # of a step before lr, about that of AdamW
EPS, TINY = 1e-15, 1e-30


class M3(MatrixOptimizer):
    """Muon with a second, slower momentum. Keeps four numbers for every parameter, AdamW two.

    Args:
        params: matrices [D_out, D_in], or groups of them
        lr: learning rate, comparable with AdamW's
        momentum: share of the fast momentum that a step keeps
        slow_momentum: share of the slow momentum that one of its updates keeps
        slow_every: f, steps between updates of the slow momentum, which averages the gradients between them
        slow_weight: rho, the slow momentum's share of a step; 0 is Muon with V
        square_decay: share of V that a step keeps
        eps: added to sqrt(V)
        newton_schulz_steps: iterations of Newton-Schulz
        weight_decay: decoupled, in units of lr

    Example:
        >>> matrix = torch.nn.Parameter(torch.zeros(2, 3))
        >>> matrix.grad = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
        >>> M3([matrix], lr=1.0).step()
        >>> round(float(matrix.detach().square().mean().sqrt()), 3)
        0.2
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        slow_momentum: float = 0.9,
        slow_every: int = 10,
        slow_weight: float = 0.5,
        square_decay: float = 0.999,
        eps: float = 1e-8,
        newton_schulz_steps: int = 5,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            slow_momentum=slow_momentum,
            slow_every=slow_every,
            slow_weight=slow_weight,
            square_decay=square_decay,
            eps=eps,
            newton_schulz_steps=newton_schulz_steps,
            weight_decay=weight_decay,
        )

    def direction(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        root = root_mean_square(grad, state, group["square_decay"], group["eps"])
        if "fast" not in state:
            state |= {name: torch.zeros_like(grad) for name in ("fast", "slow", "slow_direction")}
        fast, slow, keep, steps = state["fast"], state["slow"], group["slow_momentum"], group["newton_schulz_steps"]
        fast.lerp_(grad, 1 - group["momentum"])
        slow.add_(grad, alpha=(1 - keep) / group["slow_every"])
        update = (_orthogonal(fast, steps) + group["slow_weight"] * state["slow_direction"]).div_(root)
        if state["step"] % group["slow_every"] == 0:
            state["slow_direction"] = _orthogonal(slow, steps)
            # Its decay comes with the first of the next f gradients, so that they need no sum of their own.
            slow.mul_(keep)
        return update.mul_(RMS / update.square().mean().sqrt_().clamp_(min=TINY))


def _orthogonal(x: Tensor, steps: int) -> Tensor:
    """Newton-Schulz; at its default eps a matrix with gradients of 1e-5 would have no slow momentum."""
    return newton_schulz(x, steps=steps, eps=EPS)

"""What the optimizers of matrices share: the loop over parameters, decoupled weight decay, Adam's preconditioner.

Special: they take matrices [D_out, D_in] only; what is no matrix of a linear map is AdamW's
(`neuralmem.training.optim.parameter_groups`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from neuralmem.errors import UserError


class MatrixOptimizer(Optimizer, ABC):
    """W <- (1 - lr weight_decay) W - lr U, where a subclass says what U is.

    Args:
        params: matrices [D_out, D_in], or groups of them
        defaults: what a group may set, lr and weight_decay among it

    Raises:
        UserError: a parameter is no matrix.
    """

    def __init__(self, params: Iterable, **defaults: Any) -> None:
        super().__init__(params, defaults)
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.ndim != 2:
                raise UserError(f"params has a parameter of shape {list(p.shape)}; it must be a matrix [D_out, D_in]")

    @abstractmethod
    def direction(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """U [D_out, D_in] for a parameter's gradient, after writing the gradient to the parameter's `state`."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; closure, where there is one, computes the loss and the gradients before it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    update = self.direction(p.grad, self.state[p], group)
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
        return loss


def root_mean_square(grad: Tensor, state: dict[str, Any], decay: float, eps: float) -> Tensor:
    """Adam's denominator, sqrt(V) + eps, with V corrected for its start at zero; counts the steps.

    Args:
        grad: Float [D_out, D_in]
        state: of the parameter; holds `step` and `square`, V before the correction
        decay: share of V that a step keeps
        eps: added outside the root, as in Adam
    """
    if "square" not in state:
        state["step"], state["square"] = 0, torch.zeros_like(grad)
    state["step"] += 1
    state["square"].mul_(decay).addcmul_(grad, grad, value=1 - decay)
    return (state["square"] / (1 - decay ** state["step"])).sqrt_().add_(eps)


def preconditioned(grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """P g: the gradient over Adam's denominator, so that AdamW's learning rates serve; `square_decay` None: P = 1."""
    if group["square_decay"] is None:
        return grad
    return grad / root_mean_square(grad, state, group["square_decay"], group["eps"])

"""What is minimised: the cross entropy of every target token, as much as its weight counts."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from neuralmem.data.batch import NO_LOSS


def token_loss(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted mean of the cross entropy over the targets that count.

    Args:
        logits: Float [..., V]
        targets: Int [...]; -100 is no target
        weights: Float [...] or None; a target's share of the mean

    Returns:
        A scalar in float32 or better, in nats per token; 0 where there is no target at all.

    Example:
        >>> token_loss(torch.zeros(1, 2, 8), torch.tensor([[3, -100]])).exp()
        tensor(8.)
    """
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    each = F.cross_entropy(precise.flatten(0, -2), targets.flatten(), ignore_index=NO_LOSS, reduction="none")
    counted = (targets.flatten() != NO_LOSS).to(each.dtype)
    if weights is not None:
        counted = counted * weights.flatten().to(each.dtype)
    total = counted.sum()
    return (each * counted).sum() / torch.where(total > 0, total, 1)


def write_price(gates: Tensor, floor: float | None = None) -> Tensor:
    """What open gates cost, each: 0 where nothing is written, 1 where a gate is open.

    The gate itself lets go of small gates, for its slope along the logit is g (1 - g), and a small write at each of a
    hundred thousand tokens is a large one. The logarithm's is 1 - g down to the floor, times a constant.

    Args:
        gates: Float [...], 0 to 1
        floor: from where on a gate costs its logarithm; None: the gate itself

    Example:
        >>> gates = torch.tensor([0.0, 1e-4, 1e-2, 1.0])
        >>> write_price(gates, floor=1e-4)
        tensor([0.0000, 0.0753, 0.5011, 1.0000])
    """
    return gates if floor is None else torch.log1p(gates / floor) / math.log1p(1 / floor)

"""The gates of a memory: from a layer's input to one number in (0, 1) per token, head and gate.

Special: computed in fp32 or wider, under autocast too, since products over thousands of tokens are built of these.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from neuralmem.ops.autocast import without_autocast
from neuralmem.typing import Tensor, Tensors


class GateMap(nn.Linear):
    """sigmoid(W x + b), split into gates. Weights start at a tenth of the usual, so that gates start near their biases.

    Args:
        width: of the input
        heads: of the memory
        biases: one start per gate, before the sigmoid

    Example:
        >>> theta, alpha = GateMap(16, heads=2, biases=[0.0, -6.0])(torch.zeros(1, 5, 16))
        >>> theta.shape, theta[0, 0, 0].item()
        (torch.Size([1, 5, 2]), 0.5)
    """

    def __init__(self, width: int, heads: int, biases: Sequence[float]) -> None:
        super().__init__(width, len(biases) * heads)
        self.heads = heads
        with torch.no_grad():
            self.weight.mul_(0.1)
            self.bias.copy_(torch.tensor(biases).repeat_interleave(heads))

    def forward(self, x: Tensor) -> Tensors:  # type: ignore[override]
        """x: [B, T, width] -> one [B, T, H] per gate, in promote_types(the weights' dtype, float32)."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        with without_autocast(x.device.type):
            gates = F.linear(x.to(wide), self.weight.to(wide), self.bias.to(wide)).sigmoid()
        return rearrange(gates, "b t (g h) -> g b t h", h=self.heads).unbind(0)

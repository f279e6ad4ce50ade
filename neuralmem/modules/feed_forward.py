"""The SwiGLU feed-forward (2002.05202): W_down (silu(W_gate x) * W_up x), token by token."""

from torch import nn
from torch.nn import functional as F

from neuralmem.modules.init import start_small
from neuralmem.typing import Tensor


class FeedForward(nn.Module):
    """[..., width] -> [..., width].

    Args:
        width: of the residual stream
        hidden: width in between
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = start_small(nn.Linear(hidden, width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)

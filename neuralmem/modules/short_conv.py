"""Causal depthwise convolution over the last few tokens, with its tail as state (Titans 4.4).

Special: it is a sum of shifted products, one per tap, so that taps can stop at a document's first token and the code is
the same in a stream, in training and under double backward.
"""

import math

import torch
from torch import nn

from neuralmem.modules.stream import Rows
from neuralmem.typing import Tensor


class ShortConv(nn.Module):
    """y_t = sum_j weight_j * x_{t-j}, per channel, j = 0 .. taps - 1.

    Its state is the last taps - 1 inputs, [B, taps - 1, width]; zeros before the first token.

    Args:
        width: channels
        taps: tokens it sees, the current one included
    """

    def __init__(self, width: int, taps: int) -> None:
        super().__init__()
        self.taps = taps
        bound = 1 / math.sqrt(taps)
        self.weight = nn.Parameter(torch.empty(taps, width).uniform_(-bound, bound))

    def init_state(self, batch_size: int) -> Tensor:
        return self.weight.new_zeros(batch_size, self.taps - 1, self.weight.shape[1])

    def forward(self, x: Tensor, tail: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """x: [B, T, width], tail: [B, taps - 1, width] -> y [B, T, width], new tail."""
        past, total = self.taps - 1, x.shape[1]
        joined = torch.cat([tail.to(x.dtype), x], dim=1)
        document = None if rows.document is None else nn.functional.pad(rows.document, (past, 0))
        y = torch.zeros_like(x)
        for j in range(self.taps):
            earlier = joined[:, past - j : past - j + total]
            if document is not None and j:
                same = document[:, past - j : past - j + total] == document[:, past:]
                earlier = earlier.masked_fill(~same[..., None], 0)
            y = y + self.weight[j] * earlier
        tail = rows.last(tail, x)
        if rows.reset is not None:
            began = rows.carried(rows.reset.new_full((len(x),), past, dtype=torch.long), total, past)
            tail = tail.masked_fill((torch.arange(past, device=x.device) < past - began[:, None])[..., None], 0)
        return y, tail

"""Q-K projection a chunk at a time: linear attention whose values are the keys, beside a carried matrix."""

import torch

from neuralmem.ops.chunk_loop import Stepped, run_chunks
from neuralmem.typing import Tensor, Tensors


def chunked(
    q: Tensor,
    u: Tensor,
    carry: Tensor,
    *,
    chunk_size: int,
    initial: Tensor,
    reset: Tensor | None,
    checkpoint_every: int | None,
) -> tuple[Tensor, Tensor]:
    """The sums in chunks. Arguments as in `reference`."""
    if q.shape[1] == 0:
        return torch.empty_like(q), carry
    parts = [x.transpose(1, 2).split(chunk_size, dim=2) for x in (q, u)]  # [B, H, C, D] each

    def step(start: int, stop: int, state: Tensors) -> Stepped:
        (carry,) = state
        if reset is not None:
            carry = torch.where(reset[:, start, None, None, None], initial, carry)
        q, u = (x[start // chunk_size] for x in parts)
        y = q @ carry.mT + (q @ u.mT).tril() @ u
        return y, (carry + u.mT @ u,)

    y, (carry,) = run_chunks(step, (carry,), q.shape[1], chunk_size, checkpoint_every)
    return y.transpose(1, 2), carry

"""Q-K projection as it is written: one token at a time.

Pi_t = Pi_{t-1} + u_t u_t^T,   y_t = Pi_t q_t,   u_t = k_t / |k_t|
"""

import torch

from neuralmem.typing import Tensor


def reference(
    q: Tensor,
    u: Tensor,
    carry: Tensor,
    *,
    chunk_size: int,
    initial: Tensor,
    reset: Tensor | None,
    checkpoint_every: int | None,
) -> tuple[Tensor, Tensor]:
    """The token loop. Arguments as in `query_projection`; u: unit keys, zero where masked; all in the carry's dtype."""
    outputs = []
    for t in range(q.shape[1]):
        if reset is not None:
            carry = torch.where(reset[:, t, None, None, None], initial, carry)
        carry = carry + torch.einsum("bhi,bhj->bhij", u[:, t], u[:, t])
        outputs.append(torch.einsum("bhij,bhj->bhi", carry, q[:, t]))
    return torch.stack(outputs, dim=1) if outputs else torch.empty_like(q), carry

"""The delta rule with forgetting as it is written: one token at a time.

M_t = (1 - alpha_t) M_{t-1} - theta_t (M_{t-1} k_t - v_t) k_t^T,   y_t = M_t q_t or M_{t-1} q_t
"""

import torch

from neuralmem.typing import Tensor


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    alpha: Tensor,
    weights: Tensor,
    *,
    chunk_size: int,
    write_mask: Tensor | None,
    initial: Tensor | None,
    reset: Tensor | None,
    checkpoint_every: int | None,
    read: str,
) -> tuple[Tensor, Tensor]:
    """The token loop. Arguments as in `delta_descent`; all tensors already in the state's dtype."""
    outputs = []
    for t in range(q.shape[1]):
        if reset is not None and initial is not None:
            weights = torch.where(reset[:, t, None, None, None], initial, weights)
        error = torch.einsum("bhij,bhj->bhi", weights, k[:, t]) - v[:, t]
        step = theta[:, t, :, None, None] * torch.einsum("bhi,bhj->bhij", error, k[:, t])
        before = weights
        written = (1 - alpha[:, t, :, None, None]) * weights - step
        weights = written if write_mask is None else torch.where(write_mask[:, t, None, None, None], written, weights)
        outputs.append(torch.einsum("bhij,bhj->bhi", before if read == "before" else weights, q[:, t]))
    return torch.stack(outputs, dim=1) if outputs else torch.empty_like(v), weights

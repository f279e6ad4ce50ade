"""The delta rule with forgetting a chunk at a time, exact: one unit lower-triangular solve per chunk.

The rank-one corrections of a chunk depend on each other only through k_s . k_t, which is a triangular system (the UT
transform of DeltaNet, 2406.06484, with forgetting). Derivation: README.md.
"""

import torch

from neuralmem import probe
from neuralmem.ops.chunk_loop import Stepped, run_chunks
from neuralmem.ops.decay import decay_products
from neuralmem.typing import Tensor, Tensors


def chunked(
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
    """The update in chunks. Arguments as in `delta_descent`; all tensors already in the state's dtype."""
    if q.shape[1] == 0:
        return torch.empty_like(v), weights
    keep = 1 - alpha
    if write_mask is not None:
        theta, keep = torch.where(write_mask[..., None], theta, 0), torch.where(write_mask[..., None], keep, 1)
    total = q.shape[1]
    # Split once, [B, H, C, ...] each: the gradient of a slice is as long as what it was cut from.
    parts = [x.transpose(1, 2).split(chunk_size, dim=2) for x in (q, k, v, theta, keep)]

    def step(start: int, stop: int, state: Tensors) -> Stepped:
        (weights,) = state
        if reset is not None and initial is not None:
            weights = torch.where(reset[:, start, None, None, None], initial, weights)
        q, k, v, theta, keep = (x[start // chunk_size] for x in parts)
        y, weights = _chunk(q, k, v, theta, keep, weights, read)
        return y, (weights,)

    y, (weights,) = run_chunks(step, (weights,), total, chunk_size, checkpoint_every)
    return y.transpose(1, 2), weights


def _chunk(
    q: Tensor, k: Tensor, v: Tensor, theta: Tensor, keep: Tensor, weights: Tensor, read: str
) -> tuple[Tensor, Tensor]:
    """q, k: [B, H, C, D_in]; v [B, H, C, D_out]; theta, keep: [B, H, C]; weights [B, H, D_out, D_in] -> y, weights."""
    kept = decay_products(keep) * theta[..., None, :]  # [t, s]: what token t keeps of what token s wrote
    beta = keep.cumprod(-1)[..., None]
    before = torch.cat([torch.ones_like(beta[..., :1, :]), beta[..., :-1, :]], dim=-2)
    kept_before = torch.nn.functional.pad(kept[..., :-1, :], (0, 0, 1, 0))  # the same one token earlier
    system = (kept_before * (k @ k.mT)).tril(-1)
    right = before * (k @ weights.mT) - v
    error = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)  # M_{t-1} k_t - v_t
    probe.observe(
        "surprise", error.square().sum(-1), tokens=2
    )  # always: a checkpoint compares what forward and backward save
    first, written = (before, kept_before) if read == "before" else (beta, kept)
    y = first * (q @ weights.mT) - (written * (q @ k.mT)) @ error
    last = kept[..., -1, :, None]
    return y, beta[..., -1:, :] * weights - (last * error).mT @ k

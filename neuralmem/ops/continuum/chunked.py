"""Continuum memory a chunk at a time: within a chunk no weight changes, so reads and gradients are matrix products.

The gradients of a level add up until its period ends; a chunk is the fastest period, whose sum is never kept.
"""

import torch

from neuralmem import probe
from neuralmem.ops.chunk_loop import Stepped, run_chunks
from neuralmem.ops.continuum.levels import Form, Pair, step
from neuralmem.typing import Tensor, Tensors

Sums = tuple[Tensor, Tensor, Tensor]
"""Of a level since its last update: gradients of up and of down, [B, H, 1, 4] of tokens, forgetting, two curvatures."""


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    alpha: Tensor,
    weights: Tensors,
    sums: Tensors,
    form: Form,
    *,
    chunk_size: int,
    write_mask: Tensor | None,
    initial: Tensors,
    reset: Tensor | None,
    checkpoint_every: int | None,
) -> tuple[Tensor, Tensors, Tensors]:
    """The update in chunks. Arguments as in `continuum_memory`; all tensors already in the state's dtype."""
    if q.shape[1] == 0:
        return torch.empty_like(q), weights, sums
    written = torch.ones_like(q[:, :, 0, 0]) if write_mask is None else write_mask.to(q.dtype)
    parts = [x.transpose(1, 2).split(chunk_size, dim=2) for x in (q, k, v, theta, alpha)]
    counts = written.split(chunk_size, dim=1)
    count = len(weights)

    def chunk(start: int, stop: int, state: Tensors) -> Stepped:
        if reset is not None:
            rows = reset[:, start, None, None, None]
            state = tuple(torch.where(rows, a, b) for a, b in zip(initial, state, strict=True))
        at = start // chunk_size
        return _chunk(form, chunk_size, [x[at] for x in parts], counts[at].sum(1), state[:count], state[count:])

    y, after = run_chunks(chunk, (*weights, *sums), q.shape[1], chunk_size, checkpoint_every)
    return y.transpose(1, 2), after[:count], after[count:]


def _chunk(form: Form, size: int, tokens: list[Tensor], count: Tensor, weights: Tensors, sums: Tensors) -> Stepped:
    """tokens: q, k, v [B, H, C, D], theta and alpha [B, H, C, learning levels]; count [B], how many are written."""
    q, k, v, theta, alpha = tokens
    pairs = form.pairs(weights)
    learning = [i for i, period in enumerate(form.periods) if period is not None]
    kept, added, gathered = _split(form, size, sums), [], dict[int, Sums]()
    for i, p in enumerate(form.passes(k, pairs)):
        added.append(p.added)
        if i in learning:
            at = learning.index(i)
            error = form.clipped((k + p.added if form.residual else p.added) - v)
            up, down, curvature = form.gradient(p, error, theta[..., at])
            parts = [count[:, None].expand_as(curvature[..., 0]), alpha[..., at].sum(-1), *curvature.unbind(-1)]
            tally = torch.stack(parts, dim=-1)[..., None, :]
            gathered[i] = (up, down, tally) if i not in kept else _add(kept[i], (up, down, tally))
    surprise = (form.gather(k, added) - v).square().sum(-1)
    probe.observe("surprise", surprise, tokens=2)  # always: a checkpoint compares what forward and backward save
    y = form.read(q, pairs)
    return y, _settle(form, size, pairs, gathered)


def _settle(form: Form, size: int, pairs: list[Pair], gathered: dict[int, Sums]) -> Tensors:
    """The state after a chunk: levels whose period has no room for another chunk update, the slowest first."""
    weights: list[Tensor] = []
    sums: list[Tensor] = []
    slower, late = form.first[-1], form.late(size)
    anew = pairs[0][0].new_zeros(1, 1, 1, 1, dtype=torch.bool)  # whether the next slower level has updated
    for i in reversed(range(len(form.periods))):
        base = slower if form.nested else form.first[i]
        period = form.periods[i]
        if period is None:
            slower = base
            continue
        up, down, tally = gathered[i]
        tokens, forget = tally[..., :1], tally[..., 1:2]
        due = (tokens > 0) & (tokens + size > period)
        stepped = step(pairs[i], base, (up, down), forget, tally[..., 2:])
        if form.nested:
            stepped = (torch.where(anew, base[0], stepped[0]), torch.where(anew, base[1], stepped[1]))
            due = due | anew
            anew = due
        slower = (torch.where(due, stepped[0], pairs[i][0]), torch.where(due, stepped[1], pairs[i][1]))
        weights[:0] = slower
        if i in late:
            sums[:0] = [torch.where(due, 0, x) for x in (up, down, tally)]
    return (*weights, *sums)


def _split(form: Form, size: int, sums: Tensors) -> dict[int, Sums]:
    return {i: (sums[3 * n], sums[3 * n + 1], sums[3 * n + 2]) for n, i in enumerate(form.late(size))}


def _add(a: Sums, b: Sums) -> Sums:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]

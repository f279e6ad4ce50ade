"""Two parts of TNT (2511.07343): when its memories start and update, and the global one, read where its chunk began.

Special: the gradients of a global chunk are all taken at the same weights, so they add up, in any order and in any
groups; a stream keeps their sum instead of the chunk's tokens.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from neuralmem.memory._chunks import Fast
from neuralmem.ops import where_rows
from neuralmem.ops.autocast import without_autocast
from neuralmem.ops.neural_memory.call import Call
from neuralmem.ops.neural_memory.chunked import gradient_factors
from neuralmem.typing import Tensor, Tensors


class Schedule(NamedTuple):
    """What happens at each of the n chunks of a call, per row; a chunk in which nothing is written is none.

    Args:
        begins: Bool [B, n], a document starts before the chunk
        shards: Bool [B, n], the local memories start anew before it, as with a document
        ends: Bool [B, n], a global chunk ends with it
        total: Float [B], chunks since the document's start, after the call
    """

    begins: Tensor
    shards: Tensor
    ends: Tensor
    total: Tensor


def schedule(
    count: Tensor, write_mask: Tensor | None, reset: Tensor | None, tokens: int, unit: int, shard: int, span: int
) -> Schedule:
    """Count chunks.

    Args:
        count: Float [B], chunks since the document's start, before the call
        write_mask, reset: as the ops take them, Bool [B, T] or None
        tokens: T
        unit: tokens of a chunk; the call's last may be shorter
        shard, span: chunks of a shard and of a global chunk

    Example:
        >>> plan = schedule(torch.tensor([1.0]), None, None, tokens=10, unit=4, shard=2, span=3)
        >>> plan.shards.tolist(), plan.ends.tolist(), plan.total.tolist()
        ([[False, True, False]], [[False, True, False]], [4.0])
    """
    n = -(-tokens // unit)
    if write_mask is None:
        written = torch.ones(len(count), n, dtype=torch.bool, device=count.device)
    else:
        written = F.pad(write_mask, (0, n * unit - tokens)).unflatten(1, (n, unit)).any(2)
    begins = torch.zeros_like(written) if reset is None else reset[:, ::unit]
    total = written.cumsum(1)
    before = total - written.long()
    begun = torch.where(begins, before, -1).cummax(1).values  # -1 before any document starts in this call
    offset = torch.where(begun < 0, count[:, None], -begun.to(count.dtype))
    ends = written & ((total + offset) % span == 0)
    shards = begins | (written & ((before + offset) % shard == 0))
    return Schedule(begins, shards, ends, total[:, -1] + offset[:, -1])


def at_tokens(chunks: Tensor, tokens: int, unit: int) -> Tensor:
    """Bool [B, n] of chunks as Bool [B, T], True at their first tokens only."""
    return F.pad(chunks[..., None], (0, unit - 1)).flatten(1)[:, :tokens]


def read_and_gather(call: Call, fast: Fast, initial: Fast, plan: Schedule) -> tuple[Tensor, Fast]:
    """The global memory: every token reads the weights its chunk began with; gradients add up until the chunk ends.

    Runs of chunks between which no row updates or starts anew are one product each.

    Args:
        call: q, k, v, theta, form; chunk_size is that of the schedule
        fast: the weights as of the global chunk's start, and the sum of theta times gradient since
        initial: what both are where a document starts
        plan: the schedule

    Returns:
        What was read, [B, T, H, D] in the state's dtype, and weights and sum after the last token.
    """
    q, k, v = (x.transpose(1, 2) for x in (call.queries(), *call.written()))
    theta = call.theta if call.write_mask is None else torch.where(call.write_mask[..., None], call.theta, 0)
    theta = theta.transpose(1, 2)  # [B, H, T]

    def run(start: int, stop: int, weights: Tensors, gathered: Tensors) -> tuple[Tensor, Tensors]:
        here = slice(start, stop)
        y = call.form.evaluate(weights, q[:, :, here])
        inputs, deltas = gradient_factors((k[:, :, here], v[:, :, here]), weights, call)
        steps = (call.matmul((theta[:, :, here, None] * d).mT, h) for d, h in zip(deltas, inputs, strict=True))
        return y, tuple(g + s for g, s in zip(gathered, steps, strict=True))

    (weights, gathered), outputs = fast, []
    with without_autocast(q.device.type):
        for first, last in _runs(plan):
            weights = where_rows(plan.begins[:, first], initial[0], weights)
            gathered = where_rows(plan.begins[:, first], initial[1], gathered)
            arguments = first * call.chunk_size, min(last * call.chunk_size, q.shape[2]), weights, gathered
            if call.checkpoint_every is None or not torch.is_grad_enabled():
                y, gathered = run(*arguments)
            else:
                y, gathered = checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=False)
            outputs.append(y)
            done = plan.ends[:, last - 1]
            updated = tuple(w - g for w, g in zip(weights, gathered, strict=True))
            weights = where_rows(done, updated, weights)
            gathered = where_rows(done, tuple(map(torch.zeros_like, gathered)), gathered)
    return torch.cat(outputs, dim=2).transpose(1, 2), (weights, gathered)


def _runs(plan: Schedule) -> Iterator[tuple[int, int]]:
    """First chunk and one past the last of every run, for all rows together. Asks the device once."""
    cuts = (plan.ends[:, :-1] | plan.begins[:, 1:]).any(0).tolist()
    return pairwise([0, *(i + 1 for i, cut in enumerate(cuts) if cut), plan.ends.shape[1]])

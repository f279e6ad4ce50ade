"""The loop over chunks that every chunked op runs, with recomputation in backward."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from neuralmem import probe
from neuralmem.typing import Tensor, Tensors

Stepped = tuple[Tensor, Tensors]  # has a name because torch.compile cannot evaluate it inside a function
Step = Callable[[int, int, Tensors], Stepped]


def run_chunks(
    step: Step, state: Tensors, total: int, chunk_size: int, checkpoint_every: int | None
) -> tuple[Tensor, Tensors]:
    """Run `step` over chunks in order and join what it returns along dim 2, the token axis [B, H, T, D].

    With `checkpoint_every` = g, backward keeps the state at every g-th boundary and recomputes between: total / (g
    chunk_size) states plus the g of one group, least at g = sqrt(number of chunks).

    Args:
        step: (first token, one past the last, state) -> (output [B, H, tokens, D], state)
        state: tensors before the first token
        total: tokens, at least 1
        chunk_size: tokens of a chunk; the last may be shorter
        checkpoint_every: chunks per recomputed group, or None to keep everything
    """

    def group(start: int, stop: int, *state: Tensor) -> Tensors:
        outputs = []
        for at in range(start, stop, chunk_size):
            y, state = step(at, min(at + chunk_size, total), state)
            outputs.append(y)
        return (torch.cat(outputs, dim=2), *state)

    if checkpoint_every is None or not torch.is_grad_enabled():
        y, *after = group(0, total, *state)
        return y, tuple(after)
    outputs, span = [], chunk_size * checkpoint_every
    # Nothing in a step is random, so the generators' state need not be kept.
    how: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if probe.active(attached=True):  # not always: torch.compile takes no such context
        how["context_fn"] = probe.twice
    for start in range(0, total, span):
        y, *after = checkpoint(group, start, min(start + span, total), *state, **how)
        outputs.append(y)
        state = tuple(after)
    return torch.cat(outputs, dim=2), state

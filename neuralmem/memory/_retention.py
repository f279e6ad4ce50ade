"""What Moneta and Memora share: weights that are a map of what was accumulated (Miras 2504.13173).

    A_t = (1 - alpha_t) A_{t-1} - theta_t grad,   W_t = map(A_t)

Special: as in the paper's parallel form the map, which is not linear, is applied at chunk boundaries only. Within a
chunk reads see W_t = beta_t W_0 - sum_s c_ts g_s from W_0 = map(A_0), which is `neural_memory`, and A_C is what that
leaves plus beta_C (A_0 - W_0). So the chunk size is part of the function. The state keeps A.
"""

from abc import abstractmethod
from dataclasses import replace

import torch

from neuralmem.config import MemoryConfig
from neuralmem.memory._chunks import Fast
from neuralmem.memory.titans import Titans
from neuralmem.ops import neural_memory, where_rows
from neuralmem.ops.chunk_loop import Stepped, run_chunks
from neuralmem.typing import Tensor, Tensors


class Retention(Titans):
    """memory.momentum and depth do not apply."""

    uses = frozenset({"expansion", "activation", "residual", "norm", "theta_max", "alpha_bias"})

    rate = 1.0  # of theta, beside memory.theta_max

    def __init__(self, width: int, config: MemoryConfig) -> None:
        super().__init__(width, replace(config, momentum=False, depth=2))
        self.theta_max *= self.rate

    @abstractmethod
    def weights_of(self, accumulated: Tensor) -> Tensor:
        """A [B, H, D_out, D_in] to W, in the same shape."""

    def accumulated(self, x: Tensor) -> Tensor:
        """Another A with the same weights, where there is one that stays in range; else x."""
        return x

    def update(
        self, q: Tensor, written: Tensors, fast: Fast, write_mask: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, Fast]:
        total, size = q.shape[1], self.config.chunk_size
        if not total:
            return torch.empty_like(q), fast
        first = self.fast(len(q))[0]

        def step(start: int, stop: int, state: Tensors) -> Stepped:
            if reset is not None:
                state = where_rows(reset[:, start], first, state)
            mask = None if write_mask is None else write_mask[:, start:stop]
            y, state = self._chunk(q[:, start:stop], tuple(w[:, start:stop] for w in written), state, mask)
            return y.transpose(1, 2), state

        y, weights = run_chunks(step, fast[0], total, size, self.config.checkpoint_every)
        return y.transpose(1, 2), (weights, ())

    def _chunk(self, q: Tensor, written: Tensors, before: Tensors, write_mask: Tensor | None) -> tuple[Tensor, Tensors]:
        """One chunk, from A to A."""
        weights = tuple(map(self.weights_of, before))
        arguments = self._arguments(q, written, (weights, ()))
        y, after, _ = neural_memory(*arguments, chunk_size=q.shape[1], write_mask=write_mask, **self._options(written))
        keep = 1 - arguments[5]  # [B, T, H]
        if write_mask is not None:
            keep = torch.where(write_mask[..., None], keep, 1)
        beta = keep.prod(1)[..., None, None].to(after[0].dtype)
        ends = (w + beta * (a - w0) for w, a, w0 in zip(after, before, weights, strict=True))
        if write_mask is None:
            return y, tuple(map(self.accumulated, ends))
        # A chunk without a token leaves A as it was, to the bit.
        return y, where_rows(write_mask.any(1), tuple(map(self.accumulated, ends)), before)

    def read_unfinished(self, q: Tensor, written: Tensors, fast: Fast, write_mask: Tensor) -> Tensor:
        return super().read_unfinished(q, written, (tuple(map(self.weights_of, fast[0])), ()), write_mask)

    def _observe(self, weights: Tensors) -> None:
        super()._observe(tuple(map(self.weights_of, weights)))

    def evaluate(self, q: Tensor, weights: Tensors) -> Tensor:
        return super().evaluate(q, tuple(map(self.weights_of, weights)))

"""OmegaNet: a memory that takes every step for the last few tokens, not for the newest alone (ATLAS 2505.23735).

S <- eta S - theta_t sum_j Gamma_{t,t-j} grad |M(k_{t-j}) - v_{t-j}|^2 over c tokens,  W <- (1 - alpha) W + S.
Special: Gamma depends on the input at t and sums to one over the window, so that a window of one token is Titans and a
longer one writes no more (less at a document's start, where there is less to write). The window reaches back over chunk
boundaries; the state keeps the c - 1 tokens before.
"""

from collections.abc import Callable
from typing import Any

import torch

from neuralmem.config import MemoryConfig
from neuralmem.errors import UserError
from neuralmem.memory._chunks import Fast
from neuralmem.memory.titans import Titans
from neuralmem.ops import History, decode_omega, omega_memory
from neuralmem.typing import Tensor, Tensors

WINDOW = 4


class Omega(Titans):
    """memory.omega_window is c, at most memory.chunk_size; ATLAS does not state its own."""

    uses = Titans.uses | {"omega_window"}

    op: Callable[..., Any] = staticmethod(omega_memory)
    decode_op: Callable[..., Any] = staticmethod(decode_omega)

    def __init__(self, width: int, config: MemoryConfig) -> None:
        self.window = config.omega_window or min(WINDOW, config.chunk_size)
        if self.window > config.chunk_size:
            raise UserError(
                f"memory.omega_window is {self.window}; it must be at most memory.chunk_size, {config.chunk_size}"
            )
        self.more_gates = (2.0,) + (0.0,) * (self.window - 1)
        super().__init__(width, config)

    def initial(self) -> Fast:
        weights, momentum = super().initial()
        before, H, D = self.window - 1, self.heads, self.head_width
        tokens = (weights[0].new_zeros(before, H, D), weights[0].new_zeros(before, H, D))
        return weights, (*momentum, *tokens, weights[0].new_zeros(before, 1, 1))

    def gates(self, x: Tensor) -> Tensors:
        every = super().gates(x)
        gates, window = every[: len(self.gate_names)], torch.stack(every[len(self.gate_names) :], dim=-1)
        return *gates, window / window.sum(-1, keepdim=True).clamp(min=1e-6)  # all shut: 0 / 0

    def update(
        self, q: Tensor, written: Tensors, fast: Fast, write_mask: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, Fast]:
        weights, momentum, history = self._parts(fast, q.dtype)
        initial = None
        if reset is not None:
            first, start, _ = self._parts(self.fast(len(q)), q.dtype)
            initial = first, start or None
        y, weights, surprise, history = self.op(
            *(*self._arguments(q, written, (weights, momentum)), written[-1], history),
            chunk_size=self.config.chunk_size,
            write_mask=write_mask,
            initial=initial,
            reset=reset,
            checkpoint_every=self.config.checkpoint_every,
            **self._options(written),
        )
        dtype = weights[0].dtype
        kept = history.k.to(dtype), history.v.to(dtype), history.valid[..., None, None].to(dtype)
        return y, (weights, (*(surprise or ()), *kept))

    def read_unfinished(self, q: Tensor, written: Tensors, fast: Fast, write_mask: Tensor) -> Tensor:
        weights, momentum, history = self._parts(fast, q.dtype)
        arguments = (*self._arguments(q, written, (weights, momentum)), written[-1], history)
        return self.decode_op(*arguments, write_mask=write_mask, **self._options(written))

    def _parts(self, fast: Fast, dtype: torch.dtype) -> tuple[Tensors, Tensors, Any]:
        """Weights, momentum, and the tokens before the chunk."""
        weights, (*momentum, k, v, valid) = fast
        return weights, tuple(momentum), History(k.to(dtype), v.to(dtype), valid[..., 0, 0] > 0.5)

"""Self-modifying Titans (2512.24695): keys, values, learning rate and forgetting are made by memories that learn too.

Special: five memories per head, one of which is read; every memory is written with the key and the gates that the
others made, and with a target of its own making. Choices where the paper is open: ops/self_modifying/README.md.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import nn

from neuralmem.config import MemoryConfig
from neuralmem.errors import UserError
from neuralmem.memory._chunks import Fast
from neuralmem.memory._memory import MemoryState
from neuralmem.memory._ways import Ways
from neuralmem.modules.stream import Rows
from neuralmem.ops import evaluate_memory
from neuralmem.ops.self_modifying import BOXES, make_boxes, self_modifying, split_boxes
from neuralmem.ops.unit import unit
from neuralmem.typing import Tensor, Tensors

# Lengths of what a memory adds to its input at the start; keys have length one.
MAKER_LENGTH = 0.4  # for the four that make keys, values and gates
MEMORY_LENGTH = 1.2  # and the one that is read: its target M(v) is then mostly v, not what it adds at random
NORM_EPS = 1 / 32  # over D; first weights give keys a variance of about 1 / (4 D). README of the op: what it prevents
OF_THETA_MAX = 2 / 3  # DGD's transition is 1 - alpha - 3 theta where a gradient step's is 1 - alpha - 2 theta


class SelfModifying(Ways):
    """W <- W ((1 - alpha) I - theta h h^T) - theta delta h^T in five memories, read M_memory(q).

    What the memories read is the way in of MemoryRule: the memory of keys that of keys, the others that of values.
    memory.momentum and eta_bias do not apply.
    """

    uses = frozenset({"depth", "expansion", "activation", "residual", "norm", "theta_max", "alpha_bias"})

    dgd = True  # delta gradient descent; False is gradient descent with forgetting, the paper's "w/o DGD"

    def __init__(self, width: int, config: MemoryConfig) -> None:
        super().__init__(width, config)
        if not config.norm:
            raise UserError("memory.norm is off; rule self_modifying needs it: its targets are its own answers")
        H, D, count = self.heads, self.head_width, len(BOXES)
        hidden = max(1, round(config.expansion * D))
        widths = [D, *[hidden] * (config.depth - 1), D]
        self.weights = nn.ParameterList(torch.randn(count * H, out, into) / into**0.5 for into, out in pairwise(widths))
        gain = torch.full((count * H, D), MAKER_LENGTH / D**0.5)
        gain[-H:] = MEMORY_LENGTH / D**0.5
        self.norm_gain = nn.Parameter(gain)
        self.norm_bias = nn.Parameter(torch.zeros(count * H, D))
        self.gate_map_weight = nn.Parameter(0.1 * torch.randn(2, H, D) / D**0.5)
        self.gate_map_bias = nn.Parameter(torch.tensor([[config.theta_bias], [config.alpha_bias]]).repeat(1, H))

    @property
    def _slow(self) -> dict[str, Any]:
        scale = OF_THETA_MAX if self.dgd else 1.0
        return {
            "gates": (self.gate_map_weight, self.gate_map_bias),
            "theta_max": scale * self.config.theta_max / self.config.chunk_size,
            "activation": self.config.activation,
            "residual": self.config.residual,
            "norm": (self.norm_gain, self.norm_bias),
            "norm_eps": NORM_EPS / self.head_width,
        }

    def initial(self) -> Fast:
        return tuple(self.weights), ()

    @property
    def written_shapes(self) -> list[tuple[int, ...]]:
        return [(self.heads, self.head_width)] * 2

    def project(self, x: Tensor, tails: Tensors, rows: Rows) -> tuple[Tensor, Tensors, Tensors]:
        """Input to queries and to what is kept until the chunk ends: what the memories read of a token."""
        (q, *read), after = self.enter(x, tails, rows)
        return unit(q), tuple(read), after

    def update(
        self, q: Tensor, written: Tensors, fast: Fast, write_mask: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, Fast]:
        key_input, x = (w.to(q.dtype) for w in written)
        y, weights = self_modifying(
            q,
            key_input,
            x,
            fast[0],
            **self._slow,
            chunk_size=self.config.chunk_size,
            dgd=self.dgd,
            write_mask=write_mask,
            initial=None if reset is None else self.fast(len(q))[0],
            reset=reset,
            checkpoint_every=self.config.checkpoint_every,
            backend=self.config.backend,
        )
        return y, (weights, ())

    def evaluate(self, q: Tensor, weights: Tensors) -> Tensor:
        H = self.heads
        norm = self.norm_gain[-H:], self.norm_bias[-H:]
        memory = tuple(w[:, -H:] for w in weights)
        form = {name: self._slow[name] for name in ("activation", "residual", "norm_eps")}
        return evaluate_memory(q, memory, norm=norm, **form)

    def recall_error(self, x: Tensor, state: MemoryState) -> Tensor:
        """The mean of |M_memory(k) - M_memory(v)|^2, k and v made by the memories as they are."""
        _, inputs, _ = self.project(x, self.init_state(len(x)).convolution, Rows())
        weights = split_boxes(self.close(state).weights)
        key_input, values = (u.to(weights[0].dtype).transpose(1, 2) for u in inputs)
        boxes = make_boxes(**self._slow, dtype=weights[0].dtype)
        made = boxes.make(key_input, values, weights)
        memory = tuple(w[:, -1] for w in weights)
        error = boxes.recall.evaluate(memory, made.k) - boxes.recall.evaluate(memory, made.v)
        return error.square().sum(-1).mean()

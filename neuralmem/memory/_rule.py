"""What the rules with queries, keys and values share: keys of unit length, gates from the input.

A rule is one file with a subclass: its initial weights, its gates, its update.
"""

from abc import abstractmethod

from neuralmem import probe
from neuralmem.memory._memory import MemoryState
from neuralmem.memory._ways import Ways
from neuralmem.modules.stream import Rows
from neuralmem.ops.unit import unit
from neuralmem.typing import Tensor, Tensors


class MemoryRule(Ways):
    """A memory of values by keys.

    Queries, keys and values are linear maps of the input, a short convolution, SiLU; queries and keys have unit length
    (Titans 4.4). What is read is normalised per head, gated and projected.

    Args:
        width: of the residual stream
        config: the memory's settings
    """

    @abstractmethod
    def gates(self, x: Tensor) -> Tensors:
        """What decides how much a token writes, from the input [B, T, width]: tensors [B, T, H, ...] in fp32."""

    @property
    def written_shapes(self) -> list[tuple[int, ...]]:
        gates = self.gates(self.query.weight.new_zeros(1, 0, self.width))
        return [(self.heads, self.head_width)] * 2 + [tuple(gate.shape[2:]) for gate in gates]

    def project(self, x: Tensor, tails: Tensors, rows: Rows) -> tuple[Tensor, Tensors, Tensors]:
        """Input to queries and to what is written: keys, values, gates."""
        (q, k, v), after = self.enter(x, tails, rows)
        with probe.inside(self):
            gates = self.gates(x)
        return unit(q), (unit(k), v, *gates), after

    def recall_error(self, x: Tensor, state: MemoryState) -> Tensor:
        """The mean of |M(k) - v|^2."""
        _, (keys, values, *_), _ = self.project(x, self.init_state(len(x)).convolution, Rows())
        return (self.evaluate(keys, self.close(state).weights) - values).square().sum(-1).mean()

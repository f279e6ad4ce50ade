"""LaCT: a SwiGLU network that is written once per large chunk, after the chunk was read (2505.23884).

f_W(x) = W_2 (silu(W_1 x) o (W_3 x)) lowers -theta f_W(k) . v; what a chunk writes may be orthogonalised (Muon); every
row keeps its initial length. A token sees nothing of its own chunk: put a window of at least chunk_size beside it.
Special: theta is a sigmoid where the authors have an unbounded softplus, so that a chunk's sum is bounded.
"""

import torch
from torch import nn
from torch.nn import functional as F

from neuralmem import probe
from neuralmem.config import MemoryConfig
from neuralmem.memory._chunks import Fast
from neuralmem.memory._memory import MemoryState
from neuralmem.memory._rule import MemoryRule
from neuralmem.modules.gate_map import GateMap
from neuralmem.modules.stream import Rows
from neuralmem.ops import evaluate_swiglu, swiglu_memory
from neuralmem.typing import Tensor, Tensors


class LaCT(MemoryRule):
    """U <- mean(eta) U - sum theta grad f_W(k) . v,  W <- rows of W - NS(U) at their initial length, read f_W(q).

    theta = theta_max sigmoid(.) / chunk_size, per token, head and matrix; eta = sigmoid(.), averaged over a chunk.
    Without muon a step is as small as the network's first gradients: raise theta_max about tenfold. memory.depth, norm,
    residual, activation and alpha_bias do not apply.
    """

    uses = frozenset({"expansion", "momentum", "muon", "theta_max", "eta_bias"})

    def __init__(self, width: int, config: MemoryConfig) -> None:
        super().__init__(width, config)
        H, D = self.heads, self.head_width
        hidden = max(1, round(config.expansion * D))
        shapes = (hidden, D), (D, hidden), (hidden, D)
        self.weights = nn.ParameterList(torch.randn(H, out, into) / into**0.5 for out, into in shapes)
        self.gate_map = GateMap(width, H, [config.theta_bias] * 3 + [config.eta_bias] * config.momentum)

    def initial(self) -> Fast:
        weights = tuple(self.weights)
        return weights, tuple(map(torch.zeros_like, weights)) if self.config.momentum else ()

    def gates(self, x: Tensor) -> Tensors:
        *thetas, eta = self.gate_map(x) if self.config.momentum else (*self.gate_map(x), None)
        write = torch.stack(thetas, dim=-1)
        theta = self.config.theta_max / self.config.chunk_size * write
        probe.observe_saturation("theta", write)
        probe.observe("write", write, tokens=1)
        probe.observe("theta", theta, tokens=1)
        if eta is None:
            return (theta,)
        probe.observe_saturation("eta", eta)
        probe.observe("eta", eta, tokens=1)
        return theta, eta

    def update(
        self, q: Tensor, written: Tensors, fast: Fast, write_mask: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, Fast]:
        k, v, theta, *eta = written
        weights, momentum = fast
        y, weights, after = swiglu_memory(
            q,
            k.to(q.dtype),
            v.to(q.dtype),
            theta,
            eta[0] if eta else None,
            weights,
            momentum or None,
            muon=self.config.muon,
            chunk_size=self.config.chunk_size,
            write_mask=write_mask,
            initial=self.fast(len(q))[0],
            reset=reset,
            checkpoint_every=self.config.checkpoint_every,
            backend=self.config.backend,
        )
        return y, (weights, after or ())

    def read_unfinished(self, q: Tensor, written: Tensors, fast: Fast, write_mask: Tensor) -> Tensor:
        return self.evaluate(q, fast[0])

    def evaluate(self, q: Tensor, weights: Tensors) -> Tensor:
        return evaluate_swiglu(q, weights)

    def recall_error(self, x: Tensor, state: MemoryState) -> Tensor:
        """The mean of 1 - cos(f(k), v): a dot product with rows of constant length says where f points, not how far."""
        _, (keys, values, *_), _ = self.project(x, self.init_state(len(x)).convolution, Rows())
        return (1 - F.cosine_similarity(self.evaluate(keys, self.close(state).weights), values, dim=-1)).mean()

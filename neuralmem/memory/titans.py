"""The memory of Titans: an MLP with momentum and forgetting (2501.00663 Eq. 8-15), in a form that stays finite.

Special, from measurements in docs/numerics.md: LayerNorm on the MLP's output, and an inner learning rate scaled by
(1 - eta) / chunk_size, since a chunk adds chunk_size gradients of one anchor and momentum multiplies by 1 / (1 - eta).
"""

import warnings
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from neuralmem import probe
from neuralmem.config import MemoryConfig
from neuralmem.memory._chunks import Fast
from neuralmem.memory._rule import MemoryRule
from neuralmem.modules.gate_map import GateMap
from neuralmem.ops import decode_memory, evaluate_memory, neural_memory
from neuralmem.typing import Tensor, Tensors

THETA_WITHOUT_NORM = 0.5


class Titans(MemoryRule):
    """S <- eta S - theta grad |M(k) - v|^2,  W <- (1 - alpha) W + S,  read M_W(q).

    theta = theta_max sigmoid(.) (1 - eta) / chunk_size, eta = sigmoid(.), alpha = sigmoid(.), per token and head.
    """

    uses = frozenset(
        {"depth", "expansion", "activation", "residual", "norm", "momentum", "theta_max", "eta_bias", "alpha_bias"}
    )
    forgets = True  # rules that derive from this one may have no alpha, and gates of their own after these
    more_gates: tuple[float, ...] = ()  # their biases

    def __init__(self, width: int, config: MemoryConfig) -> None:
        super().__init__(width, config)
        self.theta_max = config.theta_max
        if not config.norm and config.theta_max > THETA_WITHOUT_NORM:
            warnings.warn(
                f"memory.theta_max {config.theta_max} is cut to {THETA_WITHOUT_NORM} because memory.norm is off",
                stacklevel=2,
            )
            self.theta_max = THETA_WITHOUT_NORM
        H, D = self.heads, self.head_width
        hidden = max(1, round(config.expansion * D))
        widths = [D, *[hidden] * (config.depth - 1), D]
        self.weights = nn.ParameterList(torch.randn(H, out, into) / into**0.5 for into, out in pairwise(widths))
        biases = {"theta": config.theta_bias, "alpha": config.alpha_bias, "eta": config.eta_bias}
        self.gate_names = ["theta"] + ["alpha"] * self.forgets + ["eta"] * config.momentum
        self.gate_map = GateMap(width, H, [*(biases[name] for name in self.gate_names), *self.more_gates])
        self.norm_gain = nn.Parameter(torch.ones(H, D)) if config.norm else None
        self.norm_bias = nn.Parameter(torch.zeros(H, D)) if config.norm else None

    @property
    def _form(self) -> dict[str, Any]:
        norm = None if self.norm_gain is None else (self.norm_gain, self.norm_bias)
        return {"activation": self.config.activation, "residual": self.config.residual, "norm": norm}

    def initial(self) -> Fast:
        weights = tuple(self.weights)
        return weights, tuple(map(torch.zeros_like, weights)) if self.config.momentum else ()

    def gates(self, x: Tensor) -> Tensors:
        every = self.gate_map(x)
        gates = dict(zip(self.gate_names, every, strict=False))
        for name, gate in gates.items():
            probe.observe_saturation(name, gate)
        probe.observe("write", gates["theta"], tokens=1)
        gates["theta"] = self.theta_max / self.config.chunk_size * gates["theta"]
        if "eta" in gates:
            gates["theta"] = gates["theta"] * (1 - gates["eta"])
        for name, gate in gates.items():
            probe.observe(name, gate, tokens=1)
        return *gates.values(), *every[len(gates) :]

    def update(
        self, q: Tensor, written: Tensors, fast: Fast, write_mask: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, Fast]:
        initial = None
        if reset is not None:
            first, start = self.fast(len(q))
            initial = first, start or None
        y, weights, surprise = neural_memory(
            *self._arguments(q, written, fast),
            chunk_size=self.config.chunk_size,
            write_mask=write_mask,
            initial=initial,
            reset=reset,
            checkpoint_every=self.config.checkpoint_every,
            **self._options(written),
        )
        return y, (weights, surprise or ())

    def read_unfinished(self, q: Tensor, written: Tensors, fast: Fast, write_mask: Tensor) -> Tensor:
        return decode_memory(*self._arguments(q, written, fast), write_mask=write_mask, **self._options(written))

    def evaluate(self, q: Tensor, weights: Tensors) -> Tensor:
        return evaluate_memory(q, weights, **self._form)

    def _options(self, written: Tensors) -> dict[str, Any]:
        """What kind of update it is, besides the tensors."""
        return {"backend": self.config.backend, **self._form}

    def _arguments(self, q: Tensor, written: Tensors, fast: Fast) -> tuple[Any, ...]:
        """q, k, v, theta, eta, alpha, weights, momentum, as the op takes them."""
        k, v, *rest = written
        gates = dict(zip(self.gate_names, rest, strict=False))
        alpha = gates.get("alpha", torch.zeros_like(gates["theta"]))
        weights, momentum = fast
        return q, k.to(q.dtype), v.to(q.dtype), gates["theta"], gates.get("eta"), alpha, weights, momentum or None

"""How layers are computed in training: again in the backward pass, to keep less; compiled, to be faster.

Neither is part of the model: config.json, checkpoints and states know nothing of it.
"""

import logging
from typing import Any

import lightning.pytorch as L
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from neuralmem import probe


class Compute(L.Callback):
    """What every layer does beside its mathematics.

    Args:
        recompute: keep a layer's input only, and compute what is in between once more in the backward pass
        compile: run every layer through torch.compile; what it cannot compile runs as it is
    """

    def __init__(self, recompute: bool = False, compile: bool = False) -> None:
        self.recompute, self.compile = recompute, compile

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        if self.compile:  # it warns of every place that it cannot compile; here there are some, and they are harmless
            logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
        for layer in pl_module.model.layers:
            if self.compile:  # not the call, around which devices gather and release the layer's weights
                layer.forward = torch.compile(layer.forward, dynamic=False)
            if self.recompute:
                recompute(layer)


def recompute(layer: nn.Module) -> None:
    """Make a layer forget what it computes until the backward pass asks for it.

    Example:
        >>> layer = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
        >>> recompute(layer)
        >>> layer(torch.ones(1, 2)).sum().backward()
    """
    forward = layer.forward

    def again(*given: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*given, **named)
        return checkpoint(forward, *given, use_reentrant=False, context_fn=probe.twice, **named)

    layer.forward = again

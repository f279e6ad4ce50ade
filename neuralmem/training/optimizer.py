"""The optimizer of slow weights: AdamW with decay where decay makes sense, warm-up, then a cosine.

Special: the schedule follows whatever ends the run, steps (`trainer.max_steps`) or the clock (`trainer.max_time`), so
that a run with a time budget decays to the end of it on a machine of any speed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from neuralmem.errors import UserError

Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning rate schedule.

    Args:
        lr: peak learning rate
        betas: decay of AdamW's running mean and mean square
        eps: added to AdamW's denominator
        weight_decay: of matrices; gates, norms, biases, embeddings and initial memory weights have none
        warmup: steps of linear warm-up
        schedule: what follows the warm-up
        final: learning rate at the end of the run, as a share of the peak
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    warmup: int = 100
    schedule: Schedule = "cosine"
    final: float = 0.1

    def __post_init__(self) -> None:
        for name in ("lr", "eps"):
            if not getattr(self, name) > 0:
                raise UserError(f"optimizer.{name} is {getattr(self, name)!r}; it must be a positive number")
        for name in ("weight_decay", "warmup", "final"):
            if not getattr(self, name) >= 0:
                raise UserError(f"optimizer.{name} is {getattr(self, name)!r}; it must not be negative")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas is {list(self.betas)!r}; both must be at least 0 and less than 1")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Parameters with decay (matrices of linear maps) and without it (everything else), for an optimizer.

    Memory weights are learned as a start for reading, and the maps called gate make rates: decay would pull those to
    "write nothing" and these to "one half".
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    maps = [
        m.weight for path, m in model.named_modules() if isinstance(m, nn.Linear) and "gate" not in path.split(".")[-1]
    ]
    decayed = {id(weight) for weight in maps} - embeddings
    groups = []
    for decay, chosen in ((weight_decay, True), (0.0, False)):
        parameters = [p for p in model.parameters() if p.requires_grad and (id(p) in decayed) == chosen]
        if parameters:
            groups.append({"params": parameters, "weight_decay": decay})
    return groups


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over `parameter_groups`."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(config: OptimizerConfig, progress: Callable[[int], float]) -> Callable[[int], float]:
    """The schedule as a function from step to a share of the peak.

    Args:
        config: the schedule
        progress: from step to the share of the run that is done, 0 to 1

    Example:
        >>> share = learning_rate(OptimizerConfig(warmup=2, final=0.1), lambda step: step / 10)
        >>> [round(share(step), 2) for step in (0, 1, 5, 10)]
        [0.5, 0.98, 0.55, 0.1]
    """

    def share(step: int) -> float:
        done = min(1.0, progress(step))
        falling = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[config.schedule]
        return min(1.0, (step + 1) / max(1, config.warmup)) * (config.final + (1 - config.final) * falling)

    return share

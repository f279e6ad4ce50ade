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
        gate_lr: learning rate of the memories' gates, in units of lr
        write_cost: weight in the loss of how much the memories write, the mean of their gates: what need not be kept
            is then not written, and what was written stays
        weight_decay: of matrices; gates, norms, biases, embeddings and initial memory weights have none
        warmup: steps of linear warm-up
        schedule: what follows the warm-up
        final: learning rate at the end of the run, as a share of the peak
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    gate_lr: float = 1.0
    write_cost: float = 0.0
    weight_decay: float = 0.1
    warmup: int = 100
    schedule: Schedule = "cosine"
    final: float = 0.1

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "gate_lr"):
            if not getattr(self, name) > 0:
                raise UserError(f"optimizer.{name} is {getattr(self, name)!r}; it must be a positive number")
        for name in ("weight_decay", "write_cost", "warmup", "final"):
            if not getattr(self, name) >= 0:
                raise UserError(f"optimizer.{name} is {getattr(self, name)!r}; it must not be negative")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas is {list(self.betas)!r}; both must be at least 0 and less than 1")


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict]:
    """Parameters with decay (matrices of linear maps), without it (everything else), and the memories' gates.

    Memory weights are learned as a start for reading, and the maps called gate make rates: decay would pull those to
    "write nothing" and these to "one half". Gates may learn faster: what is worth writing is decided early.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    maps = [
        m.weight for path, m in model.named_modules() if isinstance(m, nn.Linear) and "gate" not in path.split(".")[-1]
    ]
    decayed = {id(weight) for weight in maps} - embeddings
    gates = {id(p) for path, p in model.named_parameters() if "gate_map" in path.split(".")}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for p in model.parameters():
        if p.requires_grad:
            lr = config.lr * (config.gate_lr if id(p) in gates else 1.0)
            groups.setdefault((lr, config.weight_decay if id(p) in decayed else 0.0), []).append(p)
    return [{"params": found, "lr": lr, "weight_decay": decay} for (lr, decay), found in groups.items()]


def make_optimizer(model: nn.Module, config: OptimizerConfig, *, fused: bool = True) -> torch.optim.Optimizer:
    """AdamW over `parameter_groups`; fused is one kernel for all parameters."""
    groups = parameter_groups(model, config)
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)
    # The fused kernel does not count its writes, and a state tells by that count whether its model was trained since.
    changed = [p for group in groups for p in group["params"]]
    optimizer.register_step_post_hook(lambda *_: torch.autograd.graph.increment_version(changed))
    return optimizer


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

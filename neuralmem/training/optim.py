"""The optimizer of slow weights: AdamW, or another rule for the matrices; warm-up, then a cosine.

Sources: AdamW as in Titans (section 5); Muon (torch's); M3, delta momentum and deep momentum, Nested Learning
(arXiv:2512.24695), in `neuralmem.training.optimizers`. All take AdamW's learning rates.

Special: the schedule follows whatever ends the run, steps (`trainer.max_steps`) or the clock (`trainer.max_time`), so
that a run with a time budget decays to the end of it on a machine of any speed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import nn

from neuralmem.errors import UserError, nearest
from neuralmem.memory._continuum import Levels
from neuralmem.training.optimizers.deep_momentum import DeepMomentum
from neuralmem.training.optimizers.delta_momentum import DeltaMomentum
from neuralmem.training.optimizers.m3 import M3
from neuralmem.training.optimizers.together import Together

Name = Literal["adamw", "muon", "m3", "delta_momentum", "deep_momentum"]
Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning rate schedule.

    Args:
        name: what the matrices of linear maps learn by; the head and all that does not decay learn by AdamW
        lr: peak learning rate
        betas: decay of AdamW's running mean and mean square; the second also for delta_momentum and deep_momentum
        eps: added to the root of the mean square
        momentum: share of the momentum that a step keeps, for all but adamw; of m3's fast one
        slow_momentum: m3: share of the slow momentum that one of its updates keeps
        slow_every: m3: steps between updates of the slow momentum
        slow_weight: m3: the slow momentum's part in a step, the fast one's being 1
        delta: delta_momentum: share of what the momentum holds along a gradient that is removed before it is added
        momentum_width: deep_momentum: hidden width of the momentum's MLP; 0 is plain momentum
        gate_lr: learning rate of the memories' gates, in units of lr
        write_cost: weight in the loss of how much the memories write, the mean of their gates: what need not be kept
            is then not written, and what was written stays
        write_floor: makes the cost of a gate g log(1 + g / floor) / log(1 + 1 / floor), again 0 to 1: it pushes a small
            gate as hard as a larger one down to the floor, where the plain mean lets go of small ones, which add up
            over a long text; null: the plain mean
        weight_decay: of matrices; gates, norms, biases, embeddings and initial memory weights have none
        warmup: steps of linear warm-up
        schedule: what follows the warm-up
        final: learning rate at the end of the run, as a share of the peak
    """

    name: Name = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    momentum: float = 0.95
    slow_momentum: float = 0.9
    slow_every: int = 10
    slow_weight: float = 0.5
    delta: float = 1.0
    momentum_width: int = 16
    gate_lr: float = 1.0
    write_cost: float = 0.0
    write_floor: float | None = None
    weight_decay: float = 0.1
    warmup: int = 100
    schedule: Schedule = "cosine"
    final: float = 0.1

    def __post_init__(self) -> None:
        for name, kind in (("name", Name), ("schedule", Schedule)):
            value, choices = getattr(self, name), get_args(kind)
            if value not in choices:
                allowed = f"it must be one of {', '.join(choices)}{nearest(value, choices)}"
                raise UserError(f"optimizer.{name} is {value!r}; {allowed}")
        for name in ("lr", "eps", "gate_lr", "slow_every"):
            if not getattr(self, name) > 0:
                raise UserError(f"optimizer.{name} is {getattr(self, name)!r}; it must be a positive number")
        if self.write_floor is not None and not 0 < self.write_floor < math.inf:
            raise UserError(f"optimizer.write_floor is {self.write_floor!r}; it must be a positive number, or null")
        if self.write_floor is not None and not self.write_cost:
            raise UserError(f"optimizer.write_floor is {self.write_floor!r}; it must be null where write_cost is 0")
        for name in ("weight_decay", "write_cost", "warmup", "final", "slow_weight", "momentum_width"):
            if not getattr(self, name) >= 0:
                raise UserError(f"optimizer.{name} is {getattr(self, name)!r}; it must not be negative")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas is {list(self.betas)!r}; both must be at least 0 and less than 1")
        for name in ("momentum", "slow_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optimizer.{name} is {getattr(self, name)!r}; it must be at least 0 and less than 1")
        if not 0 <= self.delta <= 1:
            raise UserError(f"optimizer.delta is {self.delta!r}; it must be from 0 to 1")


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict]:
    """Parameters with decay (matrices of linear maps and of levels that never learn), without it (everything else), and
    the memories' gates.

    Memory weights are learned as a start for reading, and the maps called gate make rates: decay would pull those to
    "write nothing" and these to "one half". Gates may learn faster: what is worth writing is decided early.

    A group's `algorithm` is `config.name` for what decays but the map called head, else adamw. The head and embeddings
    have a row per symbol, of which a step sees a few: no matrix whose rows belong together. A memory's initial weights
    [H, D_out, D_in] stay with AdamW: they are the start of an inner descent, and what an orthogonal step does to that,
    no paper says. Those of `ttt_e2e` are linear maps, whose gradient is one of feed-forwards, and count as such.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    maps = [(path.split(".")[-1], id(m.weight)) for path, m in model.named_modules() if isinstance(m, nn.Linear)]
    linear = {weight for name, weight in maps if "gate" not in name} - embeddings
    matrices = linear - {weight for name, weight in maps if name == "head"}
    decayed = linear | {id(p) for m in model.modules() if isinstance(m, Levels) for p in m.resting}
    gates = {id(p) for path, p in model.named_parameters() if any(x.startswith("gate_map") for x in path.split("."))}
    groups: dict[tuple[str, bool, bool], list[nn.Parameter]] = {}
    for p in model.parameters():
        if p.requires_grad:
            algorithm = config.name if id(p) in matrices else "adamw"
            groups.setdefault((algorithm, id(p) in gates, id(p) in decayed), []).append(p)
    return [
        {
            "params": found,
            "lr": config.lr * (config.gate_lr if gate else 1.0),
            "weight_decay": config.weight_decay if decays else 0.0,
            "algorithm": algorithm,
        }
        for (algorithm, gate, decays), found in groups.items()
    ]


def make_optimizer(model: nn.Module, config: OptimizerConfig, *, fused: bool = True) -> torch.optim.Optimizer:
    """The optimizer of `config` over `parameter_groups`; fused is one kernel for all parameters of AdamW.

    It takes the state of an earlier one, momentum and the place in the schedule, but keeps the settings of `config`:
    torch would take those of the earlier one, so that a lower `lr` given to a resumed run had no effect.
    """
    groups = parameter_groups(model, config)
    parts = [_part(name, groups, config, fused) for name in dict.fromkeys(group["algorithm"] for group in groups)]
    optimizer = parts[0] if len(parts) == 1 else Together(parts)
    settings = [{name: value for name, value in g.items() if name != "params"} for g in optimizer.param_groups]
    optimizer.register_load_state_dict_pre_hook(partial(_under, settings))
    # The fused kernel does not count its writes, and a state tells by that count whether its model was trained since.
    changed = [p for group in groups for p in group["params"]]
    optimizer.register_step_post_hook(lambda *_: torch.autograd.graph.increment_version(changed))
    return optimizer


def _part(name: str, groups: list[dict], config: OptimizerConfig, fused: bool) -> torch.optim.Optimizer:
    """The optimizer called `name` over its own among the groups."""
    own = [group for group in groups if group["algorithm"] == name]
    momentum, square_decay, eps = config.momentum, config.betas[1], config.eps
    if name == "muon":
        return torch.optim.Muon(own, lr=config.lr, momentum=momentum, adjust_lr_fn="match_rms_adamw")
    if name == "m3":
        slow = {field: getattr(config, field) for field in ("slow_momentum", "slow_every", "slow_weight")}
        return M3(own, momentum=momentum, eps=eps, **slow)
    if name == "delta_momentum":
        return DeltaMomentum(own, momentum=momentum, delta=config.delta, square_decay=square_decay, eps=eps)
    if name == "deep_momentum":
        width = config.momentum_width
        return DeepMomentum(own, momentum=momentum, width=width, square_decay=square_decay, eps=eps)
    return torch.optim.AdamW(own, lr=config.lr, betas=config.betas, eps=eps, fused=fused)


def refuse_another(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Refuse the state of another optimizer, which torch takes wherever the groups happen to be of the same sizes.

    Raises:
        UserError: naming the option that differs, or that the groups do.
    """

    def algorithm(groups: list[dict]) -> str:
        return next((g["algorithm"] for g in groups if g.get("algorithm", "adamw") != "adamw"), "adamw")

    def width(groups: list[dict]) -> int | None:
        return next((g["width"] for g in groups if "width" in g), None)

    for name, of in (("name", algorithm), ("momentum_width", width)):
        mine, theirs = of(optimizer.param_groups), of(saved["param_groups"])
        if mine != theirs:
            raise UserError(f"optimizer.{name} is {mine!r}, but the checkpoint is of {theirs!r}; it must be the same")
    sizes, others = ([len(g["params"]) for g in groups] for groups in (optimizer.param_groups, saved["param_groups"]))
    if sizes != others:
        raise UserError(
            f"the checkpoint's optimizer has groups of {others} parameters, where this version makes {sizes}; "
            "begin a new run with its weights: --init_from FOLDER"
        )


def _under(settings: list[dict], optimizer: torch.optim.Optimizer, saved: dict) -> dict:
    """A saved state under this run's settings; learning rates keep their share of the peak.

    Before torch takes it, which places a state by what its group says (fused or not).
    """
    refuse_another(optimizer, saved)
    groups = []
    for group, mine in zip(saved["param_groups"], settings, strict=True):
        lr, peak = group["lr"], group.get("initial_lr", group["lr"])
        if peak != mine["lr"]:
            lr = lr / peak * mine["lr"]
        groups.append(group | mine | {"lr": lr, "initial_lr": mine["lr"]})
    return saved | {"param_groups": groups}


class LearningRate(torch.optim.lr_scheduler.LambdaLR):
    """torch's LambdaLR, of which a run that goes on takes the place over, and not the peaks of the run before."""

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over the place in the schedule."""
        super().load_state_dict(state_dict | {"base_lrs": self.base_lrs})
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


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

"""Steps that would spoil a run are left out: a loss or a gradient that is not finite, and if asked for a loss far off.

Special: all devices decide together, before the optimizer moves, so that no weight and no moment of the optimizer ever
holds a NaN; carried memory that does begins anew in the next step. A step that is left out still counts: the schedule
and the data go on.
"""

import math
import statistics
import sys
from collections import deque
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from neuralmem.data.batch import Batch
from neuralmem.errors import UserError
from neuralmem.state import State
from neuralmem.training.checkpoints import Checkpoints
from neuralmem.training.ranks import started_by_lightning
from neuralmem.training.sharding import part

FOLDER = "faults"
FEWEST = 16  # losses without which none is called a spike


class Faults(L.Callback):
    """Skip steps whose loss or gradient is not finite on any device; stop after so many in a row.

    Args:
        patience: steps skipped in a row after which the run saves, keeps the last batch in `faults/`, and stops
        spike: skip a step too whose loss is above the median of the last ones by this many times their median
            deviation; None is never. After `patience` of these in a row the loss counts as the new level.
        window: how many losses make that median
    """

    def __init__(self, patience: int = 5, spike: float | None = None, window: int = 128) -> None:
        if patience < 1:
            raise UserError(f"faults.patience is {patience}; it must be a positive integer")
        if spike is not None and not spike > 0:
            raise UserError(f"faults.spike is {spike!r}; it must be a positive number, or null for never")
        if window < FEWEST:
            raise UserError(f"faults.window is {window}; it must be at least {FEWEST}")
        self.patience, self.spike = patience, spike
        self.recent: deque[float] = deque(maxlen=window)
        self.skipped = self.spikes = 0  # of the whole run
        self.in_a_row = self.spikes_in_a_row = 0
        self.reason = ""
        self.batches: list[Batch] = []  # of the step under way, as are its losses, each a share of the step's
        self.losses: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        in_a_row = [self.in_a_row, self.spikes_in_a_row]
        return {"skipped": self.skipped, "spikes": self.spikes, "in_a_row": in_a_row, "recent": list(self.recent)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.spikes = state_dict["skipped"], state_dict["spikes"]
        self.in_a_row, self.spikes_in_a_row = state_dict["in_a_row"]
        self.recent.extend(state_dict["recent"])

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self.losses.append(loss.detach().float())

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        loss = torch.stack(self.losses).sum() / (1.0 if scaler is None else scaler.get_scale())
        # A scaler of 16-mixed looks at gradients itself, and overflows are how it finds its scale.
        gradient_fits = loss.new_ones(()) if scaler is not None else gradients_finite(pl_module).to(loss)
        fits = loss.isfinite()
        mine = torch.stack([fits.to(loss), gradient_fits, torch.where(fits, loss, 0.0)])
        fitting, gradients, total = trainer.strategy.reduce(mine, reduce_op="sum").tolist()
        if fitting < trainer.world_size or gradients < trainer.world_size:
            self.reason = "the loss is not finite" if fitting < trainer.world_size else "the gradient is not finite"
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            skip(pl_module)
            self._say(trainer, pl_module, f"{self.reason} ({self.in_a_row} of {self.patience} in a row)")
        else:
            self.in_a_row = 0
            self._look_for_spike(trainer, pl_module, total / trainer.world_size)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        step, every = trainer.global_step, trainer.log_every_n_steps or 1  # type: ignore[attr-defined]
        counts = {"skipped_steps": float(self.skipped), "loss_spikes": float(self.spikes)}
        if step % every == 0 and any(counts.values()):
            for logger in trainer.loggers:
                logger.log_metrics(counts, step=step)
        if self.in_a_row >= self.patience:
            self._stop(trainer)
        self.batches, self.losses = [], []

    def _look_for_spike(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: float) -> None:
        if self.spike is None:
            return
        limit = spike_limit(self.recent, self.spike)
        if loss > limit and self.spikes_in_a_row < self.patience:
            self.spikes, self.spikes_in_a_row = self.spikes + 1, self.spikes_in_a_row + 1
            skip(pl_module)
            self._say(trainer, pl_module, f"the loss is {loss:.4g}, a spike above {limit:.4g}")
            return
        if loss > limit:
            self.recent.clear()  # it stays up there: a new level, of which the median knows nothing
        self.spikes_in_a_row = 0
        self.recent.append(loss)

    def _say(self, trainer: L.Trainer, pl_module: L.LightningModule, why: str) -> None:
        pl_module.print(f"step {trainer.global_step + 1:,} skipped: {why}")

    def _stop(self, trainer: L.Trainer) -> None:
        self.in_a_row = 0  # whoever goes on from here has all the patience again
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoints):
                callback.save_now(trainer)
        folder = Path(trainer.default_root_dir) / FOLDER
        try:
            self._keep_batch(folder, trainer.global_step, trainer.global_rank)
            kept = f"the last batch is in {folder}"
        except (OSError, SafetensorError) as error:
            kept = f"the last batch was not kept: {' '.join(str(error).split())}"
        if started_by_lightning(trainer):
            sys.exit(0)  # the first says it
        raise UserError(
            f"stopped at step {trainer.global_step:,}: {self.reason}, {self.patience} steps in a row; the weights are "
            f"those before, {kept}; lower optimizer.lr, or go on with the checkpoint"
        )

    def _keep_batch(self, folder: Path, step: int, rank: int) -> None:
        """Write this device's batches of the step."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{i}.{name}": x.cpu().contiguous()
            for i, batch in enumerate(self.batches)
            for name, x in batch._asdict().items()
            if isinstance(x, Tensor)
        }
        loss = float(torch.stack(self.losses).sum())
        about = {"step": str(step), "rank": str(rank), "loss": str(loss), "reason": self.reason}
        save_file(tensors, folder / f"step={step}-rank={rank}.safetensors", metadata=about)


def gradients_finite(module: torch.nn.Module) -> Tensor:
    """Bool [], whether every gradient is finite, of sharded ones this device's part."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm([part(x) for x in gradients]).isfinite()


def skip(module: torch.nn.Module) -> None:
    """Leave the optimizer nothing to do: it passes over parameters without a gradient, their moments too."""
    for p in module.parameters():
        p.grad = None


def spike_limit(recent: deque[float], factor: float) -> float:
    """The loss from which a step counts as a spike.

    Args:
        recent: losses of the last steps
        factor: median deviations above the median

    Example:
        >>> spike_limit(deque([2.0, 2.2, 1.8, 2.0] * 8), factor=10)
        3.0
        >>> spike_limit(deque([2.0]), factor=10)
        inf
    """
    if len(recent) < FEWEST:
        return math.inf
    middle = statistics.median(recent)
    spread = statistics.median(abs(x - middle) for x in recent)
    return middle + factor * max(spread, 0.01 * abs(middle))  # a loss that stands still has no deviation


def restart_broken(state: State, batch: Batch) -> tuple[State, Batch, Tensor]:
    """Begin anew in the rows whose memory is not finite, so that it harms one document and not the run.

    Args:
        state: what a model has read, B rows
        batch: what it is to read next

    Returns:
        The state with zeros in those rows, the batch as if a document started there, and how many they are, Int [].

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Sum(State):
        ...     total: Tensor
        >>> tokens = torch.zeros(2, 3, dtype=torch.long)
        >>> state, batch, count = restart_broken(Sum(torch.tensor([[1.0], [torch.nan]])), Batch(tokens, tokens))
        >>> state.total.tolist(), batch.reset.tolist(), int(count)
        ([[1.0], [0.0]], [[False, False, False], [True, False, False]], 1)
    """
    floats = [x for _, x in state.items() if x.is_floating_point()]
    whole = torch.stack([x.flatten(1).isfinite().all(1) for x in floats]).all(0)
    count = (~whole).sum()
    if not count:
        return state, batch, count
    reset = torch.zeros_like(batch.tokens, dtype=torch.bool) if batch.reset is None else batch.reset.clone()
    first = torch.zeros_like(whole, dtype=torch.long) if batch.mask is None else batch.mask.long().argmax(1)
    reset[~whole, first[~whole]] = True
    clean = state.map(lambda x: torch.where(whole.view(-1, *[1] * (x.ndim - 1)), x, 0))
    return clean, batch._replace(reset=reset), count

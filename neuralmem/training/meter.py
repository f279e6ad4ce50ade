"""What happened since the last line of the log: means over the interval, speed, resources, and every memory's health.

Special: sums stay on the device and are read once per line; memory health comes from `neuralmem.probe` in the one
training step that ends an interval. A step is not free of synchronisation for that: the model reads how many targets
there are, `Mastery` reads the answers of every batch of a curriculum, because its decision must not come late, and
`Faults` and `Signals` ask all devices once per step whether to skip it and whether to stop.
"""

import math
import time
from contextlib import ExitStack
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from neuralmem import probe
from neuralmem.training.mastery import curriculum
from neuralmem.training.sharding import whole
from neuralmem.training.utilization import Utilization, peak_memory, seconds_left


class Meter(L.Callback):
    """Log every `trainer.log_every_n_steps` steps: loss, answers, learning rate, gradient norm, speed, utilisation,
    peak memory, time left, memory health.

    `latest` holds the newest values for whoever shows them.
    """

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self.tokens = 0  # of the whole run, all ranks
        self.sums: dict[str, Tensor] = {}
        self.since = self.paused = 0.0  # seconds; when the interval began, when validation did
        self.steps = 0
        self.stack = ExitStack()
        self.record: probe.Recorder | None = None
        self.began = self.share = 0.0  # when the run, or its resumption, began, and the share that was done then
        self.use: Utilization | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"tokens": self.tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tokens = state_dict["tokens"]

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.since = self.began = time.perf_counter()
        self.share = pl_module.progress(trainer.global_step)
        self.use = Utilization(pl_module.model.config, pl_module.device)

    def pause(self) -> None:
        """Stop the clock: what follows is no training."""
        self.paused = time.perf_counter()

    def go_on(self) -> None:
        """Start it again."""
        self.since += time.perf_counter() - self.paused

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if _steps_next(trainer) and (trainer.global_step + 1) % _every(trainer) == 0:
            self.record = self.stack.enter_context(probe.recording(pl_module.model))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self._add_finite("gradient_norm", whole(torch.nn.utils.get_total_norm(gradients)))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name in outputs.keys() - {"loss"}:
            self._add(name, outputs[name].detach())
        # Lightning hands out a batch's share of the step's loss, the batch's loss is what is shown.
        self._add_finite("loss", outputs["loss"].detach() * trainer.accumulate_grad_batches)
        if self.use and (operations := self.use.of_batch(batch, outputs["tokens"])) is not None:
            self._add("operations", operations)
        if _stepped(trainer):
            self.steps += 1
            if trainer.global_step % _every(trainer) == 0:
                self._write(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            found = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("val_")}
            self.latest |= found
            _log(trainer, found)
        self.go_on()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.pause()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.steps:
            self._write(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.stack.close()

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _add_finite(self, name: str, value: Tensor) -> None:
        """Into a mean over the finite ones: a single step that `Faults` leaves out would hide all the others."""
        finite = value.isfinite()
        self._add(name, torch.where(finite, value, 0.0))
        self._add(f"{name} count", finite.float())

    def _write(self, trainer: L.Trainer, module: Any) -> None:
        self.stack.close()
        # Sorted: what a step returns is looked through in an order that every process has for itself.
        sums = {k: trainer.strategy.reduce(v.float(), reduce_op="sum").item() for k, v in sorted(self.sums.items())}
        seconds = time.perf_counter() - self.since
        self.tokens += round(sums["tokens"])
        values = {name: sums[name] / (sums[f"{name} count"] or math.nan) for name in ("loss", "gradient_norm")}
        if sums.get("asked"):
            values["answers"] = sums["exact"] / sums["asked"]
        values |= {"lr": trainer.optimizers[0].param_groups[0]["lr"], "tokens": self.tokens}
        if sums.get("restarted"):
            values["restarted_memories"] = sums["restarted"]
        if data := curriculum(trainer):
            values["stage"] = data.stage + 1
        values["tokens_per_second"] = sums["tokens"] / max(seconds, 1e-9)
        values |= self._resources(trainer, module, sums.get("operations"), seconds)
        values |= self.record.means() if self.record else {}
        # Validation and memory health are not of every interval: the last known stay.
        self.latest = {k: v for k, v in self.latest.items() if k.startswith("val_") or "/" in k} | values
        _log(trainer, values)
        self.sums, self.steps, self.since, self.record = {}, 0, time.perf_counter(), None

    def _resources(self, trainer: L.Trainer, module: Any, operations: float | None, seconds: float) -> dict[str, float]:
        """Utilisation, memory and time; what is not known is left out."""
        peak = torch.tensor(peak_memory(module.device) / 2**30, device=module.device)
        values = {"peak_memory_gib": trainer.strategy.reduce(peak, reduce_op="max").item()}  # of the fullest device
        if self.use and operations:
            values["mfu"] = self.use.share(operations, seconds, trainer.world_size)
        left = seconds_left(trainer, module, time.perf_counter() - self.began, self.share)
        return values if left is None else values | {"seconds_left": left}


def _every(trainer: L.Trainer) -> int:
    return trainer.log_every_n_steps or 1  # type: ignore[attr-defined]


def _steps_next(trainer: L.Trainer) -> bool:
    """Whether the batch that begins ends with an optimizer step."""
    loop = trainer.fit_loop.epoch_loop
    return (loop.batch_progress.current.ready) % trainer.accumulate_grad_batches == 0


def _stepped(trainer: L.Trainer) -> bool:
    """Whether the batch that ends came with an optimizer step."""
    return not trainer.fit_loop._should_accumulate()


def _log(trainer: L.Trainer, values: dict[str, float]) -> None:
    for logger in trainer.loggers if values else ():
        logger.log_metrics(values, step=trainer.global_step)

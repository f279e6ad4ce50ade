"""Probes while training: what is asked of the model every so many steps, named by class path in the YAML file.

Special: a probe changes nothing about the run, neither weights nor random numbers nor the speed that is logged, and one
that fails costs a line of warning. One that is running when the run is told to stop is given up at the model's next
call, for whoever sent the signal does not wait long, and asked when the run goes on from that step. Every rank runs
them, since the weights may be in pieces; the first writes.
"""

import json
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from neuralmem.durable import reason, write_file
from neuralmem.errors import UserError
from neuralmem.generation.scheduled import Probe
from neuralmem.training.meter import Meter
from neuralmem.training.sharding import gathered
from neuralmem.training.signals import Signals

FILE = "probes.jsonl"


class _ToldToStopError(Exception):
    """A signal came while a probe was running."""


class Probes(L.Callback):
    """Run probes every so many steps and at the end; numbers go to the log, curves to probes.jsonl.

    Args:
        every: optimizer steps between two runs
        run: the probes, for example `neuralmem.evaluation.in_training.Needles`
    """

    def __init__(self, every: int = 500, run: list[Probe] | None = None) -> None:
        if every < 1:
            raise UserError(f"probes.every is {every}; it must be a positive integer")
        self.every, self.run = every, run or []
        self.data: dict[str, Any] = {}  # of the training data, as in data.json
        self.done = -1  # the step of the last run
        self.began: int | None = None  # the step that this process began at, until its first
        self.ready = False  # the file of an earlier run was looked at

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began = self.done = trainer.global_step

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        if (step := self.began) is None or self.ready:
            return
        self.ready, path = True, Path(trainer.default_root_dir) / FILE
        if trainer.is_global_zero:
            _keep_until(step, path)
        if step and step % self.every == 0:  # it was stopped after this step was saved, perhaps before it was asked
            lines = read_probes(path) if trainer.is_global_zero else []
            known = trainer.strategy.broadcast([line["probe"] for line in lines if line["step"] == step])
            self._ask_all([probe for probe in self.run if probe.name not in known], trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        self.began = None
        if trainer.global_step % self.every == 0:
            self._run(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._run(trainer, pl_module)

    def _run(self, trainer: L.Trainer, module: Any) -> None:
        step = trainer.global_step
        if step != self.done:
            self.done = step
            self._ask_all(self.run, trainer, module)

    def _ask_all(self, some: list[Probe], trainer: L.Trainer, module: Any) -> None:
        if not some:
            return
        meters = [callback for callback in trainer.callbacks if isinstance(callback, Meter)]  # type: ignore[attr-defined]
        for meter in meters:
            meter.pause()
        tokenizer = getattr(trainer.datamodule, "tokenizer", None)  # type: ignore[attr-defined]
        was = module.training
        module.eval()
        gathered(module.model, True)  # a state is made of whole weights
        try:
            for probe in some:
                if not self._ask(probe, tokenizer, trainer, module):
                    break
        finally:
            gathered(module.model, False)
            module.train(was)
            for meter in meters:
                meter.go_on()

    def _ask(self, probe: Probe, tokenizer: Any, trainer: L.Trainer, module: Any) -> bool:
        """False: the run was told to stop meanwhile."""
        begin = time.perf_counter()
        signals = [callback for callback in trainer.callbacks if isinstance(callback, Signals)]  # type: ignore[attr-defined]

        def look(*_: Any) -> None:
            if any(one.received for one in signals):
                raise _ToldToStopError

        watch = module.model.register_forward_pre_hook(look)
        try:
            with isolate_rng(), torch.no_grad(), trainer.precision_plugin.forward_context():
                reading = probe(module.model, tokenizer, self.data)
        except _ToldToStopError:
            module.print(f"probe {probe.name} was given up at step {trainer.global_step:,}: told to stop")
            return False
        except Exception as error:
            what = " ".join(str(error).split()) or type(error).__name__
            module.print(f"warning: probe {probe.name} failed at step {trainer.global_step:,}: {what}")
            return True
        finally:
            watch.remove()
        seconds = time.perf_counter() - begin
        shown = ", ".join(f"{name} {value:.3g}" for name, value in reading.values.items())
        module.print(f"step {trainer.global_step:,}: {probe.name}: {shown} ({seconds:.1f} s)")
        # What is asked when a run goes on is of a step whose row the log has written, and will not write again.
        for logger in trainer.loggers if trainer.global_step != self.began else ():
            values = {f"probe/{probe.name}/{name}": value for name, value in reading.values.items()}
            logger.log_metrics(values, step=trainer.global_step)
        if trainer.is_global_zero:
            line = {"step": trainer.global_step, "probe": probe.name, "seconds": round(seconds, 3)}
            line |= {"values": reading.values, "axes": reading.axes, "curves": reading.curves}
            try:
                with (Path(trainer.default_root_dir) / FILE).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                module.print(f"warning: {FILE} was not written: {reason(error)}")
        return True


def _keep_until(step: int, path: Path) -> None:
    """Drop what an earlier run in the folder wrote beyond the step that this one goes on from."""
    if not path.exists():
        return
    kept = [line for line in read_probes(path) if line["step"] <= step] if step else []
    write_file(path, "".join(json.dumps(line) + "\n" for line in kept))


def read_probes(path: Path) -> list[dict[str, Any]]:
    """The lines of a probes.jsonl; none if there is no such file. A last line that was cut off is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found

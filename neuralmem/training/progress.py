"""One line about a run in progress: step of how many, loss, answers, speed, time left, resources, memory health.

Special: on a terminal the line is redrawn in place; elsewhere (a log file) a plain line is printed every 30 s.
"""

import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

import lightning.pytorch as L
from lightning.pytorch.callbacks import ProgressBar

from neuralmem.training.mastery import curriculum
from neuralmem.training.meter import Meter
from neuralmem.training.utilization import peak_memory, seconds_left

WIDTH = 24  # cells of the bar
HEALTH = ("state_norm", "surprise", "theta_saturated")  # what the line has room for
EIGHTHS = " ▏▎▍▌▋▊▉█"


class Progress(ProgressBar):
    """The project's progress bar.

    Args:
        meter: where the numbers come from
        every: seconds between lines where the output is not a terminal
        file: where to write; None is standard error
    """

    def __init__(self, meter: Meter, every: float = 30.0, file: TextIO | None = None) -> None:
        super().__init__()
        self.meter, self.every, self.file = meter, every, file
        self.enabled = True
        self.began = self.shown = 0.0  # seconds on the clock
        self.share_at_start = 0.0
        self.summary = ""  # of a run that has ended

    @property
    def is_enabled(self) -> bool:
        """Whether lines are written at all; Lightning asks before it prints through the bar."""
        return self.enabled

    def enable(self) -> None:
        self.enabled = True

    def disable(self) -> None:
        self.enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line of its own above the bar."""
        self._write(" ".join(str(x) for x in args), "\n")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began = self.shown = time.monotonic()
        self.share_at_start = _share(pl_module)
        parameters = sum(p.numel() for p in pl_module.parameters())
        where = f"{trainer.world_size} x {pl_module.device.type}, into {trainer.default_root_dir}"
        self.print(f"{parameters:,} parameters on {where}")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        now = time.monotonic()
        if now - self.shown >= (0.2 if self._terminal() else self.every):
            self.shown = now
            self._write(self.line(trainer, pl_module), "" if self._terminal() else "\n")

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._write(self.line(trainer, pl_module), "\n")
        read = f"{trainer.global_step:,} steps, {short(self.meter.tokens)} tokens"
        memory = f"peak memory {peak_memory(pl_module.device) / 2**30:.2f} GiB"
        took = clock(time.monotonic() - self.began)
        self.summary = f"{read} in {took}, {memory}, saved in {trainer.default_root_dir}"

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and self.summary:  # now it is saved, asked and drawn
            self.print(self.summary)

    def line(self, trainer: L.Trainer, pl_module: Any) -> str:
        """The line as it is now."""
        share, latest = _share(pl_module), self.meter.latest
        of = f"/{trainer.max_steps:,}" if trainer.max_steps > 0 else ""
        parts = [f"step {trainer.global_step:,}{of}", f"{_bar(share)} {share:4.0%}"]
        parts += [f"{name} {latest[key]:.3f}" for name, key in (("loss", "loss"), ("val", "val_loss")) if key in latest]
        if data := curriculum(trainer):
            parts.append(f"stage {data.stage + 1}/{len(data.stages)}")
        if "answers" in latest:
            parts.append(f"answers {latest['answers']:.1%}")
        if "tokens_per_second" in latest:
            parts.append(f"{short(latest['tokens_per_second'])} tok/s")
        left = seconds_left(trainer, pl_module, time.monotonic() - self.began, self.share_at_start)
        if left:
            parts.append(f"{clock(left)} left")
        return "  ".join(parts + list(_details(latest)))

    def _write(self, text: str, end: str) -> None:
        if not self.enabled:
            return
        file = self.file or sys.stderr
        if self._terminal():
            text = "\r" + text[: shutil.get_terminal_size().columns - 1] + "\x1b[K"
        file.write(text + end)
        file.flush()

    def _terminal(self) -> bool:
        return (self.file or sys.stderr).isatty()


def _details(latest: dict[str, float]) -> Iterator[str]:
    """What a narrow terminal may cut off: gradient, utilisation, memory, and the memories' health over all layers."""
    for key, form in (("gradient_norm", "grad {:.2g}"), ("mfu", "MFU {:.1%}"), ("peak_memory_gib", "{:.2f} GiB")):
        if key in latest:
            yield form.format(latest[key])
    health = {name: [x for key, x in latest.items() if key.endswith(f"/{name}")] for name in HEALTH}
    if health["state_norm"]:
        yield f"state {max(health['state_norm']):.3g}"
    if health["surprise"]:
        yield f"surprise {sum(health['surprise']) / len(health['surprise']):.2g}"
    if health["theta_saturated"]:
        yield f"gates stuck {max(health['theta_saturated']):.0%}"


def _share(module: Any) -> float:
    return min(1.0, module.progress(module.trainer.global_step))


def _bar(share: float) -> str:
    cells = share * WIDTH
    part = EIGHTHS[int(cells % 1 * 8)] if cells < WIDTH else ""
    return f"▕{'█' * int(cells)}{part}{' ' * (WIDTH - int(cells) - len(part))}▏"


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}" if minutes >= 60 else f"{minutes}:{second:02}"


def short(number: float) -> str:
    """A number with a letter for its thousands: 23.4K."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}"

"""The report of a run: one HTML file with its pictures inside, made when training ends, or again from the folder.

    python -m neuralmem.training.report runs/quickstart

Special: the files in the folder are all it needs, so it can be made later, elsewhere, or of a run that was killed.
"""

import io
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as L
import torch

from neuralmem import page
from neuralmem.config import ModelConfig
from neuralmem.errors import UserError
from neuralmem.models.causal_lm import build_model
from neuralmem.models.checkpoint import read_config
from neuralmem.training import figures, logs, machine, probes
from neuralmem.training.flops import count_flops
from neuralmem.training.meter import Meter
from neuralmem.training.progress import clock, short

FILE = "report.html"


class Report(L.Callback):
    """Write report.html, and what it needs of the machine, when training ends or is interrupted.

    Args:
        at_end: whether to; without, `python -m neuralmem.training.report FOLDER` makes it later
    """

    def __init__(self, at_end: bool = True) -> None:
        self.at_end = at_end
        self.began, self.first = 0.0, 0  # of this process: when, in seconds since 1970, and at which step
        self.before: dict[str, float] = {"seconds": 0.0, "processes": 0}  # of those whose steps this one goes on from

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began, self.first = time.time(), trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        return self._spent() if self.began else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before |= state_dict

    def _spent(self) -> dict[str, float]:
        """Time and processes behind the step that the run is at; what a killed one did beyond its checkpoint is not."""
        seconds = self.before["seconds"] + time.time() - self.began
        return {"seconds": round(seconds, 1), "processes": self.before["processes"] + 1}

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._write(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if trainer.global_step > self.first:  # by a signal, a loss that is not finite, a full disk: all worth a look
            self._write(trainer, pl_module)

    def _write(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        folder = Path(trainer.default_root_dir)
        for logger in trainer.loggers:
            logger.save()
        if not trainer.is_global_zero or not self.began or not (folder / logs.FILE).exists():
            return
        meters = [callback for callback in trainer.callbacks if isinstance(callback, Meter)]  # type: ignore[attr-defined]
        peak = meters[0].use.peak if meters and meters[0].use else None
        try:
            machine.write(folder, machine.describe(peak, trainer.world_size, self.began) | self._spent())
            if self.at_end:
                write_report(folder)
        except Exception as error:  # a picture is not worth a run
            module.print(f"warning: no report of {folder}: {' '.join(str(error).split())}")


def write_report(folder: str | Path) -> Path:
    """Make report.html from the files of a run's folder.

    Args:
        folder: of a run, with metrics.csv

    Returns:
        The report's path.

    Raises:
        UserError: the folder has no metrics.csv with rows.
    """
    folder = Path(folder)
    table = folder / logs.FILE
    rows = logs.read_metrics(table) if table.is_file() else []
    if not rows:
        raise UserError(f"run is {str(folder)!r}, which has no {logs.FILE} with rows; give the folder of a run")
    path = folder / FILE
    temporary = path.with_name(f".{FILE}")
    temporary.write_text(page.page(folder.resolve().name, _body(folder, rows)), encoding="utf-8")
    temporary.replace(path)
    return path


def _body(folder: Path, rows: figures.Rows) -> Iterator[str]:
    where, last = machine.read(folder), rows[-1]
    yield page.heading(folder.resolve().name, 1)
    yield page.paragraph(f"{last['step']:,.0f} steps, {short(last.get('tokens', 0))} tokens{_when(where)}")
    yield page.tiles(_summary(rows))
    yield _picture("Loss", figures.loss(rows))
    yield _picture("Speed", figures.speed(rows), f"Peak of a device: {where.get('peak of a device', 'not known')}.")
    yield _picture("Optimisation", figures.gradients(rows))
    if (drawn := figures.health(rows)) is not None:
        yield _picture("Memory health", drawn, "Of the step that ended each interval of the log, means over batch.")
    by_probe: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in probes.read_probes(folder / probes.FILE):
        by_probe[line["probe"]].append(line)
    for name, lines in by_probe.items():
        seconds = median(line["seconds"] for line in lines)
        yield _picture(f"Probe: {name}", figures.probe(lines), f"{seconds:.1f} s each time.")
    if (config := folder / "config.json").is_file():
        yield page.heading("Model") + page.pairs(_sizes(read_config(config), _length(folder)))
    if where:
        yield page.heading("Machine and versions") + page.pairs(where)
    if (config := folder / "config.yaml").is_file():
        yield page.heading("Configuration") + page.folded("config.yaml", page.plain(config.read_text(encoding="utf-8")))


def _when(where: Mapping[str, Any]) -> str:
    if "seconds" not in where:
        return ""
    parts = f" in {where['processes']} processes" if where.get("processes", 1) > 1 else ""
    return f", {clock(where['seconds'])}{parts} on {where['processor'].split(',')[0]}, ended {where['ended']}"


def _summary(rows: figures.Rows) -> dict[str, str]:
    """The numbers that one looks at first."""
    found: dict[str, str] = {}

    def values(name: str) -> list[float]:
        return [row[name] for row in rows if name in row]

    for label, name, form in (
        ("last loss, nats per token", "loss", ".3f"),
        ("last validation loss", "val_loss", ".3f"),
        ("last exact answers", "answers", ".1%"),
        ("last exact answers, validation", "val_answers", ".1%"),
    ):
        if known := values(name):
            found[label] = f"{known[-1]:{form}}"
    if known := values("tokens_per_second"):
        found["tokens per second, median"] = short(median(known))
    if known := values("mfu"):
        found["MFU, median"] = f"{median(known):.1%}"
    if known := values("peak_memory_gib"):
        found["peak memory"] = f"{max(known):.2f} GiB"
    for name in figures.faults(rows):
        count = sum(values(name)) if name == figures.PER_LINE else max(values(name))
        found[name.replace("_", " ")] = f"{count:,.0f}"
    return found


def _sizes(config: ModelConfig, length: int | None) -> dict[str, str]:
    """Parameters by part, the state of one sequence, operations per token."""
    with torch.device("meta"):
        model = build_model(config)
        state = model.init_state(1)
    parts = {"embedding": model.embedding, "layers": model.layers, "head": model.head}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}  # type: ignore[attr-defined]
    found = {"parameters": f"{sum(p.numel() for p in model.parameters()):,}"}
    found |= {f"in the {name}": f"{count:,}" for name, count in counts.items()}
    if config.tie_embeddings:
        found["in the head"] = "those of the embedding"
    found["layers of"] = ", ".join(config.layer_names[:12]) + (", …" if config.depth > 12 else "")
    found["state of a sequence at its start"] = f"{state.nbytes / 2**20:.3g} MiB"
    if length:
        with suppress(UserError):  # a memory rule whose operations nobody has counted
            found[f"in rows of {length:,} tokens"] = str(count_flops(config, length))
    return found


def _length(folder: Path) -> int | None:
    """Tokens of a training row, if the folder says so."""
    path = folder / "data.json"
    given = json.loads(path.read_text()).get("init_args", {}) if path.is_file() else {}
    stages = given.get("stages") or [{}]
    return given.get("sequence_length") or stages[-1].get("length")


def _picture(title: str, figure: Any, note: str = "") -> str:
    """A picture as a part of the page."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return page.picture(title, file.getvalue(), note)


def main(arguments: Sequence[str]) -> int:
    """Make the report of each folder named. -> exit code: 0, or 2 where one is no run."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m neuralmem.training.report FOLDER [FOLDER ...]\n\nMake report.html from a run's files.")
        return 0
    for folder in arguments:
        try:
            print(write_report(folder))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

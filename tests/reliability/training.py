"""Kill a training run with SIGKILL at random moments after a checkpoint, go on, and compare with a run left alone.

Run: python -m tests.reliability.training FOLDER KILLS SEED
Prints JSON: the step of the newest checkpoint at each kill, and whether the ends are equal to the bit.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from neuralmem.training.cli import main as train
from neuralmem.training.logs import read_metrics
from neuralmem.training.plot import LossPlot
from neuralmem.training.resume import FOLDER, found

CONFIG = Path(__file__).parents[2] / "configs" / "tiny" / "lmm.yaml"
# A step is two batches, so that kills come within one too.
OPTIONS = ("--checkpoint.every", "3", "--data.carry", "true", "--tokens_per_step", "384", "--report.at_end", "false")


def begin(run: Path, steps: int) -> int:
    """Start a process that trains to a step, or goes on; -> its number. A fork: nothing is imported again."""
    if child := os.fork():
        return child
    torch.set_num_threads(1)
    LossPlot._draw = lambda *_: None  # type: ignore[method-assign]  # a picture takes longer than the run
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    given = ["--config", str(CONFIG), "--run", str(run), "--trainer.max_steps", str(steps), *OPTIONS]
    os._exit(train([*given, "--resume", "auto"]))


def finish(child: int) -> None:
    """Wait for a process that has to end well."""
    assert os.waitpid(child, 0)[1] == 0, "training failed"


def end_of(run: Path) -> tuple[bytes, list[tuple[float, float]]]:
    """The weights, and step and loss of every line of the log."""
    losses = [(row["step"], row["loss"]) for row in read_metrics(run / "metrics.csv")]
    return (run / "model.safetensors").read_bytes(), losses


def newest(run: Path) -> int:
    """The step of the newest checkpoint."""
    return max((step for step, _ in found(run / FOLDER)), default=0)


def main(folder: Path, kills: int, seed: int) -> None:
    total = 6 * (kills + 1)  # a life is at most from one checkpoint to the next but one
    finish(begin(folder / "whole", total))
    run, steps, chance = folder / "killed", [], random.Random(seed)
    while len(steps) < kills:
        before, child = newest(run), begin(run, total)
        while newest(run) == before:  # each gets as far as one checkpoint
            assert os.waitpid(child, os.WNOHANG)[0] == 0, f"training ended before its first checkpoint, in {run}"
            time.sleep(0.01)
        seen, until = newest(run), time.monotonic() + chance.uniform(0, 1)
        while newest(run) == seen and time.monotonic() < until:  # within the steps up to the next
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        steps.append(newest(run))
    finish(begin(run, total))
    print(json.dumps({"steps": steps, "equal": end_of(run) == end_of(folder / "whole")}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

"""Time steps of the quickstart's real training loop, data, loss, clipping and optimizer included; op.py calls this.

The backends take steps in turns within one process, so that a machine that is now fast and now slow is so to all.
OMP_NUM_THREADS says with how many threads. Prints one line of JSON: for each backend, and for each turn of so many
steps, the median seconds from the end of one step to the end of the next, of CPU and clock.
Run: python benchmarks/training_step.py --stage first --backends native chunked --steps 40 --run runs/step
"""

import argparse
import json
import os
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import lightning.pytorch as L
import yaml

from neuralmem.training.command_line import build, fit, quiet_lightning

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
FIRST_STEPS = 2  # of each backend; they load libraries and take memory


class Clock(L.Callback):
    """The time after every step, which the backends take in turns."""

    def __init__(self, backends: list[str]) -> None:
        self.backends = backends
        self.ends: list[tuple[float, float]] = []

    def on_train_batch_start(self, *_: Any) -> None:
        os.environ["NEURALMEM_BACKEND"] = self.backends[len(self.ends) % len(self.backends)]

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append((process_time(), perf_counter()))

    def turns(self, backend: str, count: int) -> list[dict[str, float]]:
        """Medians of one backend's steps, cut into so many turns."""
        first = len(self.backends) * FIRST_STEPS + self.backends.index(backend)
        times = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(self.ends[first - 1 :])]
        own = times[:: len(self.backends)]
        each = len(own) // count
        parts = [own[i * each : (i + 1) * each] for i in range(count)]
        return [{kind: median(x[i] for x in part) for i, kind in enumerate(("cpu", "wall"))} for part in parts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("first", "last"), required=True, help="of the curriculum")
    parser.add_argument("--backends", nargs="+", default=["auto"], metavar="NAME", help="of the memory's op")
    parser.add_argument("--steps", type=int, required=True, help="of each backend in each turn")
    parser.add_argument("--turns", type=int, default=1, help="how often a median is taken")
    parser.add_argument("--run", type=Path, required=True, help="a folder for what training writes")
    options = parser.parse_args()
    quiet_lightning()
    steps = len(options.backends) * (options.turns * options.steps + FIRST_STEPS)
    stage = yaml.safe_load(CONFIG.read_text())["data"]["init_args"]["stages"][0 if options.stage == "first" else -1]
    arguments = ["--config", str(CONFIG), "--run", str(options.run), "--trainer.max_steps", str(steps)]
    clock = Clock(options.backends)
    with ExitStack() as held:
        settings = ["--data.stages", json.dumps([stage]), "--trainer.enable_progress_bar", "false"]
        cli = build([*arguments, *settings], held)
        cli.trainer.callbacks.append(clock)
        fit(cli)
    print(json.dumps({name: clock.turns(name, options.turns) for name in options.backends}))


if __name__ == "__main__":
    main()

"""Time steps of the quickstart's real training loop, data, loss, clipping and optimizer included; op.py calls this.

NEURALMEM_BACKEND and OMP_NUM_THREADS choose what is timed. Prints one line of JSON: the median seconds from the end of
one step to the end of the next, of CPU and clock.
Run: NEURALMEM_BACKEND=chunked python benchmarks/training_step.py --stage first --steps 40 --run runs/step
"""

import argparse
import json
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


class Clock(L.Callback):
    """The time after every step."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append((process_time(), perf_counter()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("first", "last"), required=True, help="of the curriculum")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--run", type=Path, required=True, help="a folder for what training writes")
    options = parser.parse_args()
    quiet_lightning()
    arguments = ["--config", str(CONFIG), "--run", str(options.run), "--trainer.max_steps", str(options.steps)]
    if options.stage == "last":
        last = yaml.safe_load(CONFIG.read_text())["data"]["init_args"]["stages"][-1]
        arguments += ["--data.stages", json.dumps([last])]
    clock = Clock()
    with ExitStack() as held:
        cli = build([*arguments, "--trainer.enable_progress_bar", "false"], held)
        cli.trainer.callbacks.append(clock)
        fit(cli)
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(clock.ends)]
    print(json.dumps({kind: median(x) for kind, x in zip(("cpu", "wall"), zip(*steps, strict=True), strict=True)}))


if __name__ == "__main__":
    main()

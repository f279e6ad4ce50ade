"""Ten losses of every tiny config, frozen in losses.json: what a refactoring must not change.

`python -m tests.golden.losses` measures them again, prints what differs and writes the file. A change needs its reason
in the commit.
"""

import json
import tempfile
from pathlib import Path

import torch

from neuralmem.training.cli import main
from neuralmem.training.logs import read_metrics

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).with_name("losses.json")
CONFIGS = sorted((ROOT / "configs" / "tiny").glob("*.yaml"))


def measure(config: Path, folder: Path) -> list[float]:
    """Train a config on one thread. -> its losses, step by step."""
    torch.set_num_threads(1)
    options = ["--trainer.enable_progress_bar", "false", "--report.at_end", "false"]
    if main(["--config", str(config), "--run", str(folder), *options]):
        raise RuntimeError(f"{config} does not train")
    return [row["loss"] for row in read_metrics(folder / "metrics.csv")]


def update() -> None:
    """Write losses.json, printing the largest relative change of every config."""
    old = json.loads(FILE.read_text()) if FILE.exists() else {}
    new = {}
    with tempfile.TemporaryDirectory() as folder:
        for config in CONFIGS:
            new[config.stem] = losses = measure(config, Path(folder) / config.stem)
            before = old.get(config.stem)
            same = before and len(before) == len(losses)
            change = max(abs(a / b - 1) for a, b in zip(losses, before, strict=True)) if same else None
            print(f"{config.stem:16} {'new' if change is None else f'{change:.1e}'}")
    FILE.write_text(json.dumps(new, indent=1) + "\n")


if __name__ == "__main__":
    update()

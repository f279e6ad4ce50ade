"""How a benchmark is run and written down: medians with spread, and a JSON file with the machine and code behind it."""

import json
import platform
import re
import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch

from neuralmem.provenance import processor

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What the numbers depend on: hardware, versions, commit."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent)
    dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, cwd=RESULTS.parent)
    return {
        "processor": processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "titans_pytorch": _version("titans-pytorch"),
        "commit": commit.stdout.strip() + ("+changes" if dirty.stdout.strip() else ""),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_seconds(run: Callable[[], Any], repeats: int = 5) -> dict[str, float]:
    """CPU seconds of one call: median, least and most of several, after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        start = process_time()
        run()
        times.append(process_time() - start)
    return {"median": median(times), "least": min(times), "most": max(times)}


def place(name: str) -> Path:
    """results/<machine>/<name>.json."""
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    return RESULTS / re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-") / f"{name}.json"


def fill(page: Path, name: str, text: str) -> None:
    """Put text between `<!-- NAME:start -->` and `<!-- NAME:end -->` of a page.

    Raises:
        ValueError: the page does not have these marks once.
    """
    start, end = (f"<!-- {name}:{side} -->" for side in ("start", "end"))
    before, found, rest = page.read_text().partition(f"{start}\n")
    _, closed, after = rest.partition(end)
    if not (found and closed) or start in after or end in after:
        raise ValueError(f"{page} does not have {start} and {end} once")
    page.write_text(f"{before}{found}{text}{closed}{after}")


def write(name: str, rows: list[dict[str, Any]], path: Path | None = None) -> Path:
    """Write rows to `place(name)`, or to `path`, and return where they are."""
    path = path or place(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    return path

"""Full causal attention on a CPU: `dense`, which writes all scores down, against `cpu_flash`. Time and peak memory.

Prediction, written before the first run: scores of what lies ahead are half of all, and `dense` computes them. So the
forward takes half of the time or less, forward and backward together too; at 4,096 tokens `dense` keeps 4 heads x 4,096
x 4,096 weights, 256 MiB, and as much again for scores and for their gradients, while flash keeps less than 10 MiB.
Short calls are there to tell where it begins to pay (`FEWEST_SCORES` of cpu_flash.py).
Run: python benchmarks/cpu_attention.py
"""

import os
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from peak import resident
from race import status
from record import cpu_seconds, fill, write

from neuralmem.ops.attention import attend

DOCS = Path(__file__).parent.parent / "docs" / "benchmarks.md"
CALLS = ((32, 0), (64, 0), (128, 0), (256, 0), (1, 2048), (64, 2048), (512, 0), (1024, 0), (2048, 0), (4096, 0))
HEADS, WIDTH = 4, 36  # of the shipped models


def call(backend: str, tokens: int, cached: int, backward: bool) -> Callable[[], Any]:
    """What is measured, of one row: so many new tokens behind cached ones."""
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(1, n, HEADS, WIDTH, requires_grad=backward) for n in (tokens, cached + tokens, cached + tokens)
    )

    def run() -> None:
        y = attend(q, k, v, window=None, backend=backend)
        if backward:
            y.square().mean().backward()

    return run


def peak(backend: str, tokens: int, cached: int) -> int:
    """Bytes at the peak of one forward and backward beyond what was there, in a process of its own."""
    torch.set_num_threads(1)
    call(backend, 256, 0, True)()
    run = call(backend, tokens, cached, True)
    before = resident()
    run()
    return status("VmHWM") - before


def measure(backend: str, tokens: int, cached: int) -> dict[str, Any]:
    """Seconds and bytes of a call."""
    with get_context("spawn").Pool(1) as pool:
        most = pool.apply(peak, (backend, tokens, cached))
    times = {
        name: cpu_seconds(call(backend, tokens, cached, backward), repeats=9)
        for name, backward in (("forward_s", False), ("both_s", True))
    }
    return {"tokens": tokens, "cached": cached, "backend": backend, **times, "peak_bytes": most}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A row per call: dense, and flash."""
    heads = ["new tokens", "cached", "forward, ms", "with backward, ms", "peak, MiB"]
    lines = [f"| {' | '.join(heads)} |", "|--:" * len(heads) + "|"]
    for tokens, cached in CALLS:
        pair = [
            next(row for row in rows if (row["tokens"], row["cached"], row["backend"]) == (tokens, cached, backend))
            for backend in ("dense", "cpu_flash")
        ]
        cells = [f"{tokens:,}", f"{cached:,}"]
        cells += [", ".join(f"{row[key]['median'] * 1e3:.2f}" for row in pair) for key in ("forward_s", "both_s")]
        cells.append(", ".join(f"{row['peak_bytes'] / 2**20:.1f}" for row in pair))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    os.environ["MALLOC_TRIM_THRESHOLD_"] = os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed is given back
    rows = []
    for tokens, cached in CALLS:
        for backend in ("dense", "cpu_flash"):
            rows.append(measure(backend, tokens, cached))
            print(backend, tokens, cached, rows[-1]["both_s"], flush=True)
    print(write("cpu_attention", rows))
    fill(DOCS, "cpu_attention", f"{table(rows)}\n")


if __name__ == "__main__":
    main()

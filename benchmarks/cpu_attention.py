"""Full causal attention on a CPU: `dense`, which writes all scores down, against `cpu_flash`. Time and peak memory.

Prediction, written before the first run: scores of what lies ahead are half of all, and `dense` computes them. So the
forward takes half of the time or less, forward and backward together too; at 4,096 tokens `dense` keeps 4 heads x 4,096
x 4,096 weights, 256 MiB, and as much again for scores and for their gradients, while flash keeps less than 10 MiB.
Run: python benchmarks/cpu_attention.py
"""

import os
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import torch
from peak import resident
from race import status
from record import cpu_seconds, write

from neuralmem.ops.attention import attend

LENGTHS = (512, 1024, 2048, 4096)
HEADS, WIDTH = 4, 36  # of the shipped models


def call(backend: str, tokens: int, backward: bool) -> Callable[[], Any]:
    """What is measured, of one row."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, tokens, HEADS, WIDTH, requires_grad=True) for _ in range(3))

    def run() -> None:
        y = attend(q, k, v, window=None, backend=backend)
        if backward:
            y.square().mean().backward()

    return run


def peak(backend: str, tokens: int) -> int:
    """Bytes at the peak of one forward and backward beyond what was there, in a process of its own."""
    torch.set_num_threads(1)
    call(backend, 256, True)()
    run = call(backend, tokens, True)
    before = resident()
    run()
    return status("VmHWM") - before


def main() -> None:
    torch.set_num_threads(1)
    os.environ["MALLOC_TRIM_THRESHOLD_"] = os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed is given back
    rows = []
    for tokens in LENGTHS:
        for backend in ("dense", "cpu_flash"):
            with get_context("spawn").Pool(1) as pool:
                bytes_ = pool.apply(peak, (backend, tokens))
            rows.append(
                {
                    "tokens": tokens,
                    "backend": backend,
                    "forward_s": cpu_seconds(call(backend, tokens, False)),
                    "both_s": cpu_seconds(call(backend, tokens, True)),
                    "peak_bytes": bytes_,
                }
            )
            row = rows[-1]
            print(
                f"{tokens:6,} {backend:10} forward {row['forward_s']['median'] * 1e3:8.1f} ms, "
                f"with backward {row['both_s']['median'] * 1e3:8.1f} ms, peak {bytes_ / 2**20:7.1f} MiB"
            )
    print(write("cpu_attention", rows))


if __name__ == "__main__":
    main()

"""Memory that training holds for states: all boundaries kept against one in g, g = sqrt(number of chunks).

Prediction, written before the first run: what autograd keeps grows linearly with the number of chunks without
`checkpoint_every` and like its square root with it, apart from queries, outputs and their gradients, which are linear.
What came out: for states of 4 MiB the peak grows 3.0 and 2.6 times from 16 to 64 to 256 chunks, against 5.3 and 4.3
times without. The rest is linear: tokens, and what autograd keeps per operation even under torch's checkpoint, by
estimate 100 KiB a chunk. With states of 256 KiB that rest was most of the memory: 12, 42 and 160 MiB at 64, 256 and
1,024 chunks, against 30, 126 and 512 MiB.
The allocator is told to give freed blocks back at once, or its own caching hides the difference: with glibc's defaults
both forms had the same peak.
Run: python benchmarks/state_memory.py
"""

import math
import os
import resource
from multiprocessing import get_context

import torch
from record import cpu_seconds, write

from neuralmem.ops import neural_memory

CHUNK, HEADS, WIDTH, HIDDEN = 4, 4, 128, 512  # large states, short chunks


def make(chunks: int) -> tuple:
    torch.manual_seed(0)
    total = chunks * CHUNK
    q, k, v = (torch.nn.functional.normalize(torch.randn(1, total, HEADS, WIDTH), dim=-1) for _ in range(3))
    theta, eta, alpha = (torch.rand(1, total, HEADS) * scale for scale in (1 / CHUNK, 0.5, 0.01))
    weights = (torch.randn(1, HEADS, HIDDEN, WIDTH) / 8, torch.randn(1, HEADS, WIDTH, HIDDEN) / 100)
    weights = tuple(w.requires_grad_() for w in weights)
    return q, k, v, theta, eta, alpha, weights, tuple(map(torch.zeros_like, weights))


def step(arguments: tuple, every: int | None) -> None:
    y, _, _ = neural_memory(*arguments, chunk_size=CHUNK, checkpoint_every=every, backend="chunked")
    y.square().mean().backward()


def measure(chunks: int, every: int | None) -> dict:
    """In a process of its own: the growth of its peak resident memory over one forward and backward."""
    torch.set_num_threads(1)
    arguments = make(chunks)
    step(make(4), every)  # libraries loaded, thread pools made
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(arguments, every)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {
        "chunks": chunks,
        "every": every,
        "peak_bytes": peak,
        "cpu_seconds": cpu_seconds(lambda: step(arguments, every), 3),
    }


def main() -> None:
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "4096", "MALLOC_TRIM_THRESHOLD_": "4096"}  # for the processes below
    rows = []
    for chunks in (16, 64, 256):
        for every in (None, math.isqrt(chunks)):
            with get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(measure, (chunks, every)))
            row = rows[-1]
            size, seconds = row["peak_bytes"] / 2**20, row["cpu_seconds"]["median"]
            print(f"{chunks:5d} chunks, checkpoint_every {every!s:>4}: peak {size:7.1f} MiB, {seconds:6.2f} CPU s")
    state = 2 * HEADS * 2 * WIDTH * HIDDEN * 4
    print(f"one state is {state / 2**10:.0f} KiB; written to {write('state_memory', rows)}")


if __name__ == "__main__":
    main()

"""Memory that training holds for states: all boundaries kept against one in g, g = sqrt(number of chunks).

Prediction, written before the first run: what autograd keeps grows linearly with the number of chunks without
`checkpoint_every` and like its square root with it, apart from queries, outputs and their gradients, which are linear.
What came out, at 16, 64 and 256 chunks: bytes of states are 36, 132 and 516 MiB without and 22, 38 and 70 MiB with it,
6 MiB and a square root. The peak of the process grows faster, 16, 48 and 125 MiB: the rest is linear, tokens and what
autograd keeps per operation even under torch's checkpoint (by estimate 100 KiB a chunk). With states of 256 KiB that
rest was most of the memory.
The allocator is told to give freed blocks back at once, or its own caching hides the difference: with glibc's defaults
both forms had the same peak.
Run: python benchmarks/state_memory.py
"""

import gc
import importlib
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


def state_bytes(arguments: tuple, every: int | None) -> int:
    """The most bytes alive in tensors of the states' shapes, sampled at every chunk of forward and recomputation."""
    module = importlib.import_module("neuralmem.ops.neural_memory.chunked")
    plain, shapes, most = module.chunk_step, {w.shape for w in arguments[6]}, 0

    def sampled(*given):
        nonlocal most
        alive = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter) and x.shape in shapes]
        most = max(most, sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in alive}.values()))
        return plain(*given)

    module.chunk_step = sampled
    try:
        step(arguments, every)
    finally:
        module.chunk_step = plain
    return most


def measure(chunks: int, every: int | None) -> dict:
    """In a process of its own: the growth of its peak resident memory over one forward and backward."""
    torch.set_num_threads(1)
    arguments = make(chunks)
    step(make(4), every)  # libraries loaded, thread pools made
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(arguments, every)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    seconds = cpu_seconds(lambda: step(arguments, every), 3)
    states = state_bytes(arguments, every)
    return {"chunks": chunks, "every": every, "peak_bytes": peak, "state_bytes": states, "cpu_seconds": seconds}


def main() -> None:
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "4096", "MALLOC_TRIM_THRESHOLD_": "4096"}  # for the processes below
    rows = []
    for chunks in (16, 64, 256):
        for every in (None, math.isqrt(chunks)):
            with get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(measure, (chunks, every)))
            peak, states = (rows[-1][name] / 2**20 for name in ("peak_bytes", "state_bytes"))
            seconds = rows[-1]["cpu_seconds"]["median"]
            where = f"{chunks:5d} chunks, checkpoint_every {every!s:>4}"
            print(f"{where}: peak {peak:6.1f} MiB, states {states:6.1f} MiB, {seconds:5.2f} CPU s", flush=True)
    state = 2 * HEADS * 2 * WIDTH * HIDDEN * 4
    print(f"one state is {state / 2**10:.0f} KiB; written to {write('state_memory', rows)}")


if __name__ == "__main__":
    main()

"""What must not grow while a stream is read: the state, its norm, memory of the process, time per token.

Special: watched piece by piece, from the outside; a trend is what a straight line through the last half says, since
a memory fills at first. The norm of a memory that reads one or two tokens over and over wanders between 2 and 19
without end: such a line is never level, and whether it is a trend is told by how far the means of blocks lie from it.
Time is that of the processor, over that of a piece of work that is always the same: who else uses the machine and its
caches slows both.
"""

import ctypes
import resource
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from neuralmem.state import State

PIECE = 2048  # tokens
EVERY = 8  # pieces between two looks at the process, which cost more than a piece
BLOCKS = 16  # of the last half
LEVEL, CLEAR = 0.05, 4.0  # a drift above the first is a trend if it is so many standard errors
STATM = Path("/proc/self/statm")


def resident_bytes() -> int | None:
    """Memory that the process holds now; None where the system does not say.

    After the allocator has given back what is free: that grew by half a gigabyte in one run and not in another.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc
        trim(0)
    return int(STATM.read_text().split()[1]) * resource.getpagesize() if STATM.exists() else None


def same_work() -> float:
    """Seconds of the processor for some products of matrices, a few milliseconds."""
    start = time.process_time()
    x = torch.full((128, 128), 1 / 128)
    for _ in range(30):
        x = x @ x
    return time.process_time() - start


class Watch:
    """Sees the state after every piece of a stream of several rows."""

    def __init__(self) -> None:
        self.norms: list[Tensor] = []  # Float [rows] each
        self.sizes: list[int] = []
        self.held: list[int] = []
        self.times: list[float] = []  # of a piece, in times of `same_work`
        self.since = time.process_time()

    def see(self, state: State) -> None:
        self.times.append((time.process_time() - self.since) / same_work())
        self.norms.append(norm_of(state))
        self.sizes.append(state.nbytes)
        if len(self.norms) % EVERY == 0 and (held := resident_bytes()) is not None:
            self.held.append(held)
        self.since = time.process_time()

    def trend(self) -> Tensor:
        """Float [rows]: by how much the logarithm of the norm changes over the last half, on a straight line."""
        logs = torch.stack(self.norms[len(self.norms) // 2 :]).log()
        x = torch.arange(len(logs), dtype=logs.dtype)
        x = x - x.mean()
        return (x[:, None] * logs).sum(0) / x.square().sum() * (len(logs) - 1)

    def clearness(self) -> Tensor:
        """Float [rows]: of a straight line through the means of blocks of the last half, slope over standard error; 0
        of a norm that never changes."""
        logs = torch.stack(self.norms[len(self.norms) // 2 :]).log()
        means = torch.stack([block.mean(0) for block in logs.tensor_split(BLOCKS)])
        x = torch.arange(BLOCKS, dtype=logs.dtype)
        x = (x - x.mean())[:, None]
        slope = (x * means).sum(0) / x.square().sum()
        rest = means - means.mean(0) - slope * x
        clearness = slope / (rest.square().sum(0) / (BLOCKS - 2) / x.square().sum()).sqrt()
        return torch.where(slope == 0, 0.0, clearness)

    def found(self) -> dict[str, Any]:
        """What was seen: drift of each row's norm and how clear it is, time of the last quarter over that of the second
        (medians; 11/7 if it grew from once to three times), bytes by which the process grew in the last half."""
        half, quarter, middle = len(self.sizes) // 2, len(self.sizes) // 4, len(self.held) // 2
        return {
            "tokens_of_a_row": len(self.sizes) * PIECE,
            "state_bytes": sorted(set(self.sizes[1:])),
            "drift": [round(x, 4) for x in self.trend().tolist()],
            "clearness": [round(x, 2) for x in self.clearness().tolist()],
            "slower": round(median(self.times[-quarter:]) / median(self.times[quarter:half]), 3),
            "grown": max(self.held[middle:], default=0) - max(self.held[:middle], default=0),
        }

    def assert_steady(self, drift: tuple[float, ...], slower: float, grown: int) -> None:
        """The state's size does not change; norms, time and memory grow no further than allowed to them."""
        found = self.found()
        assert len(found["state_bytes"]) == 1, f"the state's size changes: {found['state_bytes']} bytes"
        assert all(abs(x) < most for x, most in zip(found["drift"], drift, strict=True)), found
        assert found["slower"] < slower, f"the last quarter takes {found['slower']} times the second's time"
        assert found["grown"] < grown, f"the process grew by {found['grown'] / 2**20:.0f} MiB in the last half"

    def assert_no_trend(self) -> None:
        """No row's norm drifts by more than rounding and fluctuation make it."""
        found = self.found()
        for x, clear in zip(found["drift"], found["clearness"], strict=True):
            assert abs(x) < LEVEL or abs(clear) < CLEAR, f"the norm's logarithm drifts by {x}: {found}"


def norm_of(state: State) -> Tensor:
    """Float [rows]: of what is learnt, its fast weights; of a layer without any, of all it keeps."""
    floats = {name: x.double().flatten(1) for name, x in state.items() if x.is_floating_point() and x.numel()}
    learnt = [x for name, x in floats.items() if "weights" in name.split(".")]
    return torch.cat(learnt or list(floats.values()), dim=1).norm(dim=1)

"""What must not grow while a stream is read: the state, its norm, memory of the process, time per token.

Special: watched piece by piece, from the outside; a trend is what a straight line through the last half says, since
a memory fills at first. Time is that of the processor, which does not count who else uses the machine.
"""

import ctypes
import resource
import time
from pathlib import Path

import torch
from torch import Tensor

from neuralmem.state import State

SLOWER = 2.0  # fastest piece of the last quarter over that of the second; 3 if time grew with what was read
EVERY = 8  # pieces between two looks at the process, which cost more than a piece
GROWTH = 16 * 2**20  # bytes over the last half
STATM = Path("/proc/self/statm")


def resident_bytes() -> int | None:
    """Memory that the process holds now; None where the system does not say.

    After the allocator has given back what is free: that grew by half a gigabyte in one run and not in another.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc
        trim(0)
    return int(STATM.read_text().split()[1]) * resource.getpagesize() if STATM.exists() else None


class Watch:
    """Sees the state after every piece of a stream of several rows."""

    def __init__(self) -> None:
        self.norms: list[Tensor] = []  # Float [rows] each
        self.sizes: list[int] = []
        self.held: list[int] = []
        self.seconds: list[float] = []
        self.since = time.process_time()

    def see(self, state: State) -> None:
        self.seconds.append(time.process_time() - self.since)
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

    def assert_steady(self, drift: tuple[float, ...]) -> None:
        """The state's size does not change and nothing grows; each row's norm drifts no further than allowed to it."""
        half, quarter = len(self.sizes) // 2, len(self.sizes) // 4
        assert len(set(self.sizes[1:])) == 1, f"the state's size changes: {sorted(set(self.sizes))} bytes"
        trend = self.trend()
        assert (trend.abs() < torch.tensor(drift)).all(), f"the norm's logarithm drifts by {trend.tolist()}"
        slower = min(self.seconds[-quarter:]) / min(self.seconds[quarter:half])
        assert slower < SLOWER, f"the last quarter takes {slower:.2f} times the second's time"
        middle = len(self.held) // 2
        grown = max(self.held[middle:], default=0) - max(self.held[:middle], default=0)
        assert grown < GROWTH, f"the process grew by {grown / 2**20:.0f} MiB in the last half"


def norm_of(state: State) -> Tensor:
    """Float [rows]: of what is learnt, its fast weights; of a layer without any, of all it keeps."""
    floats = {name: x.double().flatten(1) for name, x in state.items() if x.is_floating_point() and x.numel()}
    learnt = [x for name, x in floats.items() if "weights" in name.split(".")]
    return torch.cat(learnt or list(floats.values()), dim=1).norm(dim=1)

"""The most memory that one forward and backward takes, for a process that measures nothing else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from contenders import DEVICE, Contender, Shape, bare, both, layer
from race import limit_memory, out_of_memory, status


def peak(level: str, contender: Contender, shape: Shape) -> dict[str, Any]:
    """Bytes at the peak beyond inputs and parameters, or the limit that was not enough. `level`: "layer" or "op"."""
    torch.set_num_threads(1)
    make = layer if level == "layer" else bare
    both(make(contender, replace(shape, total=2 * shape.chunk)))()
    run = both(make(contender, shape))
    limit = limit_memory()
    before = resident()
    try:
        run()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return {"failed": f"more than {limit / 2**30:.0f} GiB" if limit else "out of memory"}
    after = torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else status("VmHWM")
    return {"bytes": after - before}


def resident() -> int:
    """Bytes in use now; peaks are counted from here on."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is resident
    return status("VmRSS")

"""The rate that a device could reach at best: what a run's own rate is a share of (model FLOPs utilisation, MFU).

Special: of GPUs that are known by name the vendor's figure for dense bf16; of everything else what one large product of
float32 matrices reaches here and now, so that a share says how far the run is from that, whatever the processor.
"""

import functools
import time
from dataclasses import dataclass

import torch

# Dense bf16 with float32 accumulation, TFLOP/s, from the vendors' data sheets (halved where those count sparsity). The
# first name that occurs in the device's name counts, so that a form with a rate of its own stands before its family.
GPUS = {
    "B200": 2250.0,
    "B100": 1750.0,
    "H200 NVL": 835.0,
    "H200": 989.4,
    "GH200": 989.4,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.4,
    "H800": 989.4,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "A6000": 154.8,
    "A40": 149.7,
    "A30": 165.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "MI300X": 1307.4,
    "MI250X": 191.5,  # of one of its two dies, which is a device of its own
}
SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices that are multiplied where nothing is known
SECONDS = 0.3


@dataclass(frozen=True)
class Peak:
    """The best rate of one device.

    Args:
        flops: operations per second
        source: where the number comes from, for people
    """

    flops: float
    source: str

    def __str__(self) -> str:
        return f"{self.flops / 1e12:,.3g} TFLOP/s ({self.source})"


def peak_of(device: torch.device) -> Peak:
    """The peak of a device, by name if it is known, else measured: under a second, once per process and thread count.

    Example:
        >>> str(known_peak("NVIDIA H100 80GB HBM3"))
        '989 TFLOP/s (NVIDIA H100 80GB HBM3, dense bf16 by its data sheet)'
        >>> known_peak("Some GPU") is None
        True
    """
    if device.type == "cuda" and (known := known_peak(torch.cuda.get_device_name(device))):
        return known
    return _measured(str(device), torch.get_num_threads())


def known_peak(name: str) -> Peak | None:
    """The peak of a GPU by the name that its driver gives it, or None."""
    words = f"{name} ".replace("-", " ")
    for part, teraflops in GPUS.items():
        if f"{part} " in words:
            return Peak(1e12 * teraflops, f"{name}, dense bf16 by its data sheet")
    return None


@functools.cache
def _measured(name: str, threads: int) -> Peak:
    device = torch.device(name)
    kind, side = device.type, SIDE.get(device.type, SIDE["cpu"])
    wide = kind == "cuda"
    # No random numbers: a run's own must not depend on whether its peak was measured.
    a = torch.linspace(-1, 1, side * side, device=device).view(side, side)
    a = a.bfloat16() if wide else a
    out, best, begin = torch.empty_like(a), 0.0, time.perf_counter()
    with torch.no_grad():
        while time.perf_counter() - begin < SECONDS or not best:
            start = time.perf_counter()
            torch.mm(a, a, out=out)
            if kind == "cuda":
                torch.cuda.synchronize(device)
            best = max(best, 2 * side**3 / (time.perf_counter() - start))
    where = torch.cuda.get_device_name(device) if kind == "cuda" else f"{kind}, {threads} thread{'s' * (threads > 1)}"
    what = f"{'bf16' if wide else 'fp32'} product of {side} x {side} matrices"
    return Peak(best, f"{where}, measured: {what}")

"""Which backends of `neural_memory` run here, and why the others do not.

Special: the native library is loaded once, when an op is imported; nothing is ever compiled, and a library that does
not load is a sentence, not an exception. On a GPU "auto" takes the native kernels only where conformance.json says
that they passed `make test-gpu` on hardware of the same compute capability.
"""

import functools
import json
import os
import platform
from typing import Any

import torch

from neuralmem import library
from neuralmem.errors import nearest

BACKENDS = ("auto", "reference", "chunked", "native")
INTERFACE = 2  # kInterface of cuda/bindings.cpp
HOW = "python -m neuralmem.build"


@functools.cache
def _load() -> tuple[str, dict[str, Any]]:
    """Load the library: why that is impossible (else empty), and what it says of itself."""
    path = library.find()
    if path is None:
        return f"not built; {HOW}", {}
    try:
        torch.ops.load_library(str(path))
        info = json.loads(torch.ops.neuralmem.native_info())
    except (OSError, RuntimeError, AttributeError, ValueError) as error:
        return f"{path} does not load: {' '.join(str(error).split())}", {}
    if info.get("interface") != INTERFACE:
        return f"{path} was built for another version of this package; {HOW}", {}
    return "", info


def library_error() -> str:
    """Why the native kernels cannot be used at all, in one line; empty: they are loaded."""
    return _load()[0]


@functools.cache
def cpu_error() -> str:
    """Why the CPU kernels cannot run on this processor; empty: they can."""
    why, info = _load()
    if why or not info["trouble"]:
        return why
    runs = [name for name in info["runs"].split(",") if name]
    if not runs:
        return f"built for {', '.join(info['record']['cpu'])}, which this processor cannot run; {HOW}"
    name = os.environ.get("NEURALMEM_CPU_ISA", "")
    return f"NEURALMEM_CPU_ISA is {name!r}; it must be one of {', '.join(runs)}{nearest(name, runs)}"


def cuda_error(capability: int) -> str:
    """Why the CUDA kernels cannot run on a GPU of this compute capability (90 for 9.0); empty: they can."""
    why, info = _load()
    if why:
        return why
    archs = info["record"]["cuda"]
    if not archs:
        return f"built without CUDA kernels; {HOW} --mode cuda"
    if not any(_covers(arch, capability) for arch in archs):
        return f"built for {', '.join(archs)}, which compute capability {_dotted(capability)} cannot run"
    return ""


def conformance_recorded(capability: int) -> bool:
    """Whether the kernels passed their tests on a GPU of this compute capability (90 for 9.0)."""
    return capability in _recorded()


@functools.cache
def _recorded() -> frozenset[int]:
    runs = json.loads((library.PACKAGE / "conformance.json").read_text())["recorded"]
    return frozenset(int(run["capability"].replace(".", "")) for run in runs)


def _covers(arch: str, capability: int) -> bool:
    """Binaries run on later GPUs of their generation, those with a letter on their own only, PTX on all later ones."""
    number, feature = arch.removesuffix("+PTX"), not arch.removesuffix("+PTX").isdigit()
    code = int(number.rstrip("af"))
    same = code == capability if feature else code // 10 == capability // 10 and code <= capability
    return same or (arch.endswith("+PTX") and not feature and code <= capability)


def _dotted(capability: int) -> str:
    return f"{capability // 10}.{capability % 10}"


def _gpus() -> list[tuple[str, int]]:
    """Name and compute capability of every GPU that torch sees."""
    if not torch.cuda.is_available():
        return []
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [(gpu.name, 10 * gpu.major + gpu.minor) for gpu in found]


def _native_cpu() -> str:
    if why := cpu_error():
        return why
    _, info = _load()
    others = [name for name in info["runs"].split(",") if name != info["cpu"]]
    return f"available: {info['cpu']}" + (f" (also {', '.join(others)})" if others else "") + _stale(info)


def _native_cuda() -> str:
    why, info = _load()
    if why or not info["record"]["cuda"]:
        return why or cuda_error(0)
    if not _gpus():
        return "built, but torch sees no GPU" + ("" if torch.version.cuda else " (a build of torch without CUDA)")
    if error := _refusal("cuda"):
        return error
    return f"available: built for {', '.join(info['record']['cuda'])}" + _stale(info)


def _stale(info: dict[str, Any]) -> str:
    return "" if info["record"]["sources"] == library.fingerprint() else f"; its sources have changed since: {HOW}"


def _auto(device: str) -> str:
    """What "auto" means on a device, and why."""
    if forced := os.environ.get("NEURALMEM_BACKEND"):
        if forced not in BACKENDS:
            choices = f"{', '.join(BACKENDS)}{nearest(forced, BACKENDS)}"
            return f"an error, because NEURALMEM_BACKEND is {forced!r}; it must be one of {choices}"
        if forced != "auto":
            why = _refusal(device) if forced == "native" else ""
            return f"{forced}, because NEURALMEM_BACKEND says so" + (f", but native cannot run: {why}" if why else "")
    if why := _refusal(device):
        return f"chunked, because native cannot run: {why}"
    if device == "cpu":
        return "native"
    unknown = [f"{name} ({_dotted(cap)})" for name, cap in _gpus() if not conformance_recorded(cap)]
    if unknown:
        return f"chunked, because no conformance run of the kernels is recorded for {', '.join(dict.fromkeys(unknown))}"
    return "native"


def _refusal(device: str) -> str:
    """Why the kernels cannot run on this processor, or on the first GPU that they cannot run on; empty: they can."""
    if device == "cpu":
        return cpu_error()
    if not _gpus():
        return "torch sees no GPU"
    return next((error for _, capability in _gpus() if (error := cuda_error(capability))), "")


def backends() -> dict[str, str]:
    """Every backend of `neural_memory` with "available" or the reason why not, and what "auto" picks and why.

    Example:
        >>> report = backends()
        >>> list(report)
        ['native cpu', 'native cuda', 'chunked', 'reference', 'auto on cpu', 'auto on cuda']
        >>> report["reference"]
        'available'
    """
    return {
        "native cpu": _native_cpu(),
        "native cuda": _native_cuda(),
        "chunked": "available",
        "reference": "available",
        "auto on cpu": _auto("cpu"),
        "auto on cuda": _auto("cuda"),
    }


def report() -> str:
    """Versions, hardware, backends and how to build, as text: `python -m neuralmem`."""
    path, (why, info) = library.find(), _load()
    record = info.get("record") or {}
    gpus = ", ".join(f"{name} ({_dotted(capability)})" for name, capability in _gpus()) or "none that torch sees"
    rows = {
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}, {torch.get_num_threads()} threads",
        "processor": platform.machine(),
        "gpu": gpus,
        "library": str(path or "none"),
        "sources": f"{library.sources()} ({library.fingerprint()})",
    }
    if not why:
        nvcc = f", nvcc {record['nvcc']}" if record["nvcc"] else ""
        rows["built with"] = f"torch {record['torch']}, {record['compiler']}{nvcc}"
        rows["built for"] = f"{', '.join(record['cpu'])}; CUDA {', '.join(record['cuda']) or 'none'}"
    rows |= backends()
    lines = [f"{name:13} {value}" for name, value in rows.items()]
    switches = [
        f"To build: {HOW} [--mode auto|none|cpu|cuda] [--archs 80,90a,...]",
        "Switches: NEURALMEM_BACKEND, NEURALMEM_CPU_ISA; see docs/native.md",
    ]
    return "\n".join([*lines, "", *switches])

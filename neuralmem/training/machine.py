"""Where a run took place and with what, as machine.json in its folder: the report reads it, on any machine."""

import json
import os
import platform
import re
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from neuralmem.training.folder_io import code_version
from neuralmem.training.peak import Peak

FILE = "machine.json"
PACKAGES = ("torch", "lightning", "neuralmem", "numpy", "safetensors", "tokenizers")


def describe(peak: Peak | None, devices: int, began: float) -> dict[str, Any]:
    """What the numbers of a run depend on besides its config.

    Args:
        peak: what utilisation is a share of
        devices: in use, on all machines
        began: when this process began to train, in seconds since 1970

    Returns:
        Plain values by the words that the report shows; it adds the time.
    """
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads in use",
        "GPUs": ", ".join(gpus) or "none",
        "devices in the run": devices,
        "peak of a device": str(peak) if peak else "not known",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        **{name: found for name in PACKAGES if (found := _version(name))},
        "commit": code_version().get("commit", ""),
        "began": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(began)),
        "ended": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else []
    return names[0].strip() if names else platform.processor() or platform.machine()


def write(folder: Path, described: dict[str, Any]) -> None:
    """Write machine.json."""
    (folder / FILE).write_text(json.dumps(described, indent=1) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """machine.json as it was written; empty if the folder has none."""
    path = folder / FILE
    return json.loads(path.read_text()) if path.exists() else {}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

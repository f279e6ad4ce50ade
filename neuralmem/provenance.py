"""Where numbers come from: the machine, the versions and the commit that reports and checkpoints name."""

import contextlib
import functools
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import neuralmem
from neuralmem.library import PACKAGE

PACKAGES = ("torch", "lightning", "neuralmem", "numpy", "safetensors", "tokenizers")


def describe() -> dict[str, Any]:
    """What numbers depend on besides the settings, as plain values by the words that a report shows.

    Example:
        >>> sorted(describe())[:3]
        ['GPUs', 'Python', 'commit']
    """
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads in use",
        "GPUs": ", ".join(gpus) or "none",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        **{name: found for name in PACKAGES if (found := _version(name))},
        "commit": code_version().get("commit", ""),
    }


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else []
    return names[0].strip() if names else platform.processor() or platform.machine()


@functools.cache  # of what this process runs
def code_version() -> dict[str, str]:
    """The versions of neuralmem and torch, and the commit where the package lies in a clone, "-dirty" if changed."""
    versions = {"neuralmem": neuralmem.__version__, "torch": torch.__version__}
    if (PACKAGE.parent / ".git").exists():
        command = ["git", "-C", str(PACKAGE.parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
            versions["commit"] = done.stdout.strip()
    return versions


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

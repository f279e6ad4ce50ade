"""Where a run took place and with what, as machine.json in its folder: the report reads it, on any machine."""

import json
import time
from pathlib import Path
from typing import Any

from neuralmem import provenance
from neuralmem.training.peak import Peak

FILE = "machine.json"


def describe(peak: Peak | None, devices: int, began: float) -> dict[str, Any]:
    """What the numbers of a run depend on besides its config.

    Args:
        peak: what utilisation is a share of
        devices: in use, on all machines
        began: when this process began to train, in seconds since 1970

    Returns:
        Plain values by the words that the report shows; it adds the time.
    """
    known = provenance.describe()
    return {
        **{name: known.pop(name) for name in ("processor", "GPUs")},
        "devices in the run": devices,
        "peak of a device": str(peak) if peak else "not known",
        **known,
        "began": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(began)),
        "ended": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def write(folder: Path, described: dict[str, Any]) -> None:
    """Write machine.json."""
    (folder / FILE).write_text(json.dumps(described, indent=1) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """machine.json as it was written; empty if the folder has none."""
    path = folder / FILE
    return json.loads(path.read_text()) if path.exists() else {}

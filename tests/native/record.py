"""Enter the GPU of this machine into neuralmem/conformance.json: `make record-gpu`, which first runs `make test-gpu`.

An entry holds for the kernels it was made with: `sources` is a hash of everything they are compiled from, and a test
fails as long as an entry is of other sources.
"""

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from neuralmem import library

FILE = library.PACKAGE / "conformance.json"


def stale(file: Path = FILE) -> list[dict[str, Any]]:
    """Entries of kernels that have been changed since."""
    return [run for run in json.loads(file.read_text())["recorded"] if run["sources"] != library.cuda_fingerprint()]


def enter(run: dict[str, Any], file: Path = FILE) -> None:
    """Add an entry, in place of what is there for the same compute capability."""
    others = [old for old in json.loads(file.read_text())["recorded"] if old["capability"] != run["capability"]]
    runs = sorted([*others, run], key=lambda run: float(run["capability"]))
    file.write_text(json.dumps({"recorded": runs}, indent=2) + "\n")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=library.PACKAGE, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def main() -> int:
    """Record this machine's first GPU; 2 where there is nothing that could have been tested."""
    path = library.find()
    built = library.read_record(path) if path else None
    if not torch.cuda.is_available() or not built or not built["cuda"]:
        print("error: no GPU that torch sees, or no library with CUDA kernels", file=sys.stderr)
        return 2
    if built["sources"] != library.fingerprint():
        print(f"error: {path} was built from other sources; make test-gpu", file=sys.stderr)
        return 2
    gpu = torch.cuda.get_device_properties(0)
    changed = "+changes" if _git("status", "--porcelain", "--untracked-files=no") else ""
    run = {"capability": f"{gpu.major}.{gpu.minor}", "gpu": gpu.name, "torch": torch.__version__, "nvcc": built["nvcc"]}
    run |= {"sources": library.cuda_fingerprint(), "date": datetime.date.today().isoformat()}
    run |= {"commit": _git("rev-parse", "--short", "HEAD") + changed}
    enter(run)
    print(f"{FILE}: {json.dumps(run)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

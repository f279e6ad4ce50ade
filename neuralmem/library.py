"""The native library as a file: where its sources and the library itself lie, and what a library was built from.

Special: the standard library only, so that setup.py can use it where torch is not installed. A library carries a
record of its build (JSON behind a marker), which is read from the file without loading it.
"""

import contextlib
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
NAME = "_C.so"
MARKER = b"neuralmem-record:"
KINDS = (".h", ".cpp", ".cu")


def sources() -> Path:
    """The folder of the sources: in an installed package inside it, in a clone beside it."""
    inside = PACKAGE / "cuda"
    return inside if inside.is_dir() else PACKAGE.parent / "cuda"


def source_files(folder: Path) -> list[Path]:
    """What the library is compiled from; the programs that test it are no part of it."""
    found = (f for f in folder.rglob("*") if f.suffix in KINDS and "tests" not in f.relative_to(folder).parts)
    return sorted(found)


def digest(files: list[Path], folder: Path) -> str:
    """A short hash of the names and contents of files."""
    total = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        total.update(f"{file.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return total.hexdigest()[:16]


@functools.cache
def fingerprint() -> str:
    """The hash of the sources as they were when this process first asked."""
    return digest(source_files(sources()), sources())


def cuda_sources(folder: Path) -> list[Path]:
    """What the CUDA kernels are compiled from, and what calls them: the border and cuda/gpu."""
    return [f for f in source_files(folder) if f.parent == folder or f.parent.name == "gpu"]


def cuda_fingerprint() -> str:
    """The hash of the sources of the CUDA kernels, which a conformance run is recorded for."""
    return digest(cuda_sources(sources()), sources())


def cache_folder() -> Path:
    """Where a library goes when the package's own folder cannot be written."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "neuralmem" / fingerprint()


def find() -> Path | None:
    """The library to load: NEURALMEM_LIBRARY, else one in the cache for these sources, else the one in the package."""
    if forced := os.environ.get("NEURALMEM_LIBRARY"):
        return Path(forced)
    candidates = [PACKAGE / NAME]
    with contextlib.suppress(OSError, RuntimeError):  # sources that cannot be read, or no home folder
        candidates.insert(0, cache_folder() / NAME)
    return next((path for path in candidates if path.is_file()), None)


def read_record(path: Path) -> dict[str, Any] | None:
    """What a library was built from; None: the file cannot be read, or is not one of this package."""
    try:
        _, found, rest = path.read_bytes().partition(MARKER)
        return json.loads(rest.partition(b"\0")[0]) if found else None
    except (OSError, ValueError):
        return None

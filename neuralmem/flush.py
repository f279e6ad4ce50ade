"""What survives a power cut: files and the names of folders, flushed to the disk."""

import errno
import os
from pathlib import Path


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing; after a power cut they are there.

    Raises:
        OSError: what the disk says.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk.

    Raises:
        OSError: what the disk says.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():  # some systems cannot with folders
            raise
    finally:
        os.close(descriptor)

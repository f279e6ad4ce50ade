"""One writer at a time: locks that end with the process that holds them, however it ends.

Special: flock, which the system releases when a process dies, so no lock outlives its holder and nothing has to be
guessed from a process id. Children that a process forks (data loaders) do not keep it. Where a file system or a system
has no flock, nothing is locked, and a run says so.
"""

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from neuralmem.errors import UserError
from neuralmem.flush import make_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILE = ".lock"
_held: set[int] = set()  # descriptors; a forked child closes its copies


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process holds this folder, then hold it."""
    with _open(folder) as descriptor:
        _flock(descriptor, wait=True)
        yield


@contextlib.contextmanager
def try_alone(folder: Path) -> Iterator[bool | None]:
    """Hold a folder if no other process does; tells whether it is held, None where there are no locks."""
    with _open(folder) as descriptor:
        yield _flock(descriptor, wait=False)


@contextlib.contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold a run's folder from start to end of its training.

    Args:
        run: made if it does not exist, and with what is above it removed again if nothing was written into it

    Raises:
        UserError: another process trains in it, named with its machine; or it cannot be written.
    """
    try:
        made = [folder for folder in (run, *run.parents) if not folder.exists()]
        make_folder(run)
        descriptor = _lock_file(run / FILE)
    except OSError as error:
        raise UserError(f"run is {str(run)!r}, which cannot be written: {error.strerror}") from None
    _held.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held:  # not in a forked child
            with contextlib.suppress(OSError):
                (run / FILE).unlink()
                for folder in made:
                    folder.rmdir()
            _close(descriptor)


def _lock_file(file: Path) -> int:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        held = _flock(descriptor, wait=False)
        if held is None:
            print(
                f"warning: {file.parent} lies where files cannot be locked, so a second run in it would not be refused",
                file=sys.stderr,
            )
        if held is False:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
            os.close(descriptor)
            raise UserError(
                f"run is {str(file.parent)!r}, where {holder or 'another process'} is training; "
                "it must be another folder, or that process must end first"
            )
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == file.stat().st_ino:
                break
        os.close(descriptor)  # its holder removed it just before it let go
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return descriptor


@contextlib.contextmanager
def _open(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    _held.add(descriptor)
    try:
        yield descriptor
    finally:
        _close(descriptor)


def _close(descriptor: int) -> None:
    if descriptor in _held:
        _held.remove(descriptor)
        os.close(descriptor)


def _flock(descriptor: int, wait: bool) -> bool | None:
    """Whether the lock is held; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a network file system without locks
        return None
    return True


def _forget() -> None:
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

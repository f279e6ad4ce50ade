"""Folders and files that are whole or not there, whatever happens while they are written.

Special: a folder is filled under another name, every file is flushed to the disk, a manifest with sizes and sha256
comes last, and one rename makes it the folder's content. Where the folder exists and holds other files too, that rename
is to `.committed` inside it, from where the files are then moved to their places, the manifest last. Readers look into
`.committed` first, so at every instant they find one whole generation; whoever saves next finishes a move that a crash
cut short.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from neuralmem.errors import UserError
from neuralmem.flush import make_folder, sync
from neuralmem.lock import alone, try_alone

MANIFEST = "manifest.json"
COMMITTED = ".committed"  # a complete generation whose files are on their way to their places
OPTIMISTIC = 20  # tries to read without holding up writers
TEMPORARY = ".saving-"  # in the name of what is being written
T = TypeVar("T")


class Unreachable(UserError):
    """A file that the disk or the system does not give at the moment, which says nothing about what is in it."""


@contextlib.contextmanager
def whole_folder(folder: str | Path, form: str) -> Iterator[Path]:
    """Replace the files of a folder all at once; its other files stay.

    Args:
        folder: made if it does not exist; the one above it too
        form: the name of the format, for the manifest

    Yields:
        An empty folder to write files into. If the block fails, nothing has happened.

    Raises:
        OSError: what the disk says.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "run"
        >>> with whole_folder(folder, "example-1") as new:
        ...     _ = (new / "a.txt").write_text("one")
        >>> sorted(verify(folder, "example-1")), sorted(file.name for file in folder.iterdir())
        (['a.txt'], ['a.txt', 'manifest.json'])
    """
    folder = Path(folder)
    make_folder(folder.parent)
    sweep(*folder.glob(f"{TEMPORARY}*"), *folder.parent.glob(f".{folder.name}{TEMPORARY}*"))
    with _temporary(folder) as temporary:
        with _as_os_error():
            yield temporary
        _seal(temporary, form)
        _publish(temporary, folder)


def verify(folder: str | Path, form: str, required: Iterable[str] = ()) -> dict[str, Path]:
    """Compare every file of a folder with its manifest; other files do not belong to it.

    Args:
        folder: written by `whole_folder`
        form: the format that it must have
        required: files that it must hold

    Returns:
        Where the files lie, by name.

    Raises:
        UserError: naming the first file that is missing or differs; Unreachable: that cannot be read.
    """
    folder = Path(folder)
    entries = _entries(folder, form)
    found = {}
    for name in (*required, *entries):
        if name not in entries or Path(name).name != name:
            raise UserError(f"{folder / MANIFEST} does not list {name}")
        found[name] = _check(folder, name, entries[name])
    return found


def read_whole(folder: str | Path, form: str, required: Iterable[str], read: Callable[[dict[str, Path]], T]) -> T:
    """Verify a folder and read it, all of one generation also while another process replaces it.

    Args:
        folder: written by `whole_folder`
        form: the format that it must have
        required: files that it must hold
        read: is given where the files lie, by name; called again if they were replaced meanwhile
    """
    folder, required = Path(folder), tuple(required)
    for _ in range(OPTIMISTIC):
        before = _generation(folder)
        moving = (folder / COMMITTED).exists()  # asked after it: a move that begins in between changes the manifest
        try:
            value = read(verify(folder, form, required))
        except Exception:  # of whatever kind: a file may be moved between its check and its reading
            if not (moving or _generation(folder) != before):
                raise
        else:
            if _generation(folder) == before:
                return value
    with alone(folder):  # writers that never rest have to wait
        return read(verify(folder, form, required))


def manifest(folder: str | Path) -> bytes | None:
    """The manifest of a folder, or None where there is none."""
    for place in (Path(folder) / COMMITTED, Path(folder)):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return (place / MANIFEST).read_bytes()
    return None


def _generation(folder: Path) -> tuple[int, int, bytes] | None:
    """What tells one generation from another, also from one with the same files that was there before it."""
    for place in (folder / COMMITTED, folder):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), (place / MANIFEST).open("rb") as file:
            about = os.fstat(file.fileno())
            return about.st_ino, about.st_mtime_ns, file.read()
    return None


def write_file(file: str | Path, content: str | bytes) -> None:
    """Replace a file at once, and have it on the disk; text as UTF-8."""
    data = content.encode() if isinstance(content, str) else content
    write_by(file, lambda temporary: temporary.write_bytes(data))


def write_by(file: str | Path, write: Callable[[Path], object]) -> None:
    """Replace a file at once, and have it on the disk, where something else writes it, to the path that it is given."""
    file = Path(file)
    temporary = file.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        with _as_os_error():
            write(temporary)
        temporary.chmod(mode)  # safetensors makes files that only their owner can read
        sync(temporary)
        os.replace(temporary, file)
        sync(file.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Delete a folder so that a half deleted one never stands under its name."""
    doomed = folder.with_name(f".{folder.name}{TEMPORARY}{uuid.uuid4().hex}")
    os.replace(folder, doomed)
    shutil.rmtree(doomed)


def sweep(*left: Path) -> None:
    """Remove folders that crashed writers have left. Those of writers at work are let alone."""
    for folder in left:
        if folder.is_dir():
            with contextlib.suppress(OSError), try_alone(folder) as mine:
                if mine:
                    shutil.rmtree(folder, ignore_errors=True)


def refuse_full(folder: Path, needed: int) -> None:
    """Refuse to begin what does not fit onto the disk.

    Args:
        folder: where to write; it may not exist yet
        needed: bytes

    Raises:
        OSError: ENOSPC, with both numbers.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed:,} bytes are needed, {free:,} are free", str(there))


def reason(error: OSError) -> str:
    """An OSError in words, without its number."""
    return f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, or inside it where it exists; locked while it is in use, against `sweep`."""
    name = f"{TEMPORARY}{uuid.uuid4().hex}"
    temporary = folder / name if folder.is_dir() else folder.with_name(f".{folder.name}{name}")
    with contextlib.ExitStack() as stack:
        while True:
            temporary.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # swept between the two calls
                stack.enter_context(alone(temporary))
                if temporary.exists():
                    break
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """safetensors has one kind of error for all that can go wrong; where the disk is the cause, it says its number."""
    try:
        yield
    except SafetensorError as error:
        if not (number := re.search(r"os error (\d+)", str(error))):
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _seal(folder: Path, form: str) -> None:
    """Flush every file, then write the manifest; all may be read by those whom the umask lets."""
    files = sorted(folder.iterdir())
    for file in files:
        sync(file)
    content = {"format": form, "files": {file.name: _entry(file) for file in files}}
    # No line break at the end: without it every byte matters.
    (folder / MANIFEST).write_text(json.dumps(content, indent=2))
    for file in files:  # safetensors makes files that only their owner can read
        file.chmod(stat.S_IMODE((folder / MANIFEST).stat().st_mode))
    sync(folder / MANIFEST)
    sync(folder)


def _publish(temporary: Path, folder: Path) -> None:
    if not folder.exists():
        with contextlib.suppress(FileExistsError):  # another process was first
            _move(temporary, folder)
            sync(folder.parent)
            return
    with alone(folder):
        _settle(folder)
        _move(temporary, folder / COMMITTED)
        sync(folder)
        _settle(folder)


def _move(source: Path, target: Path) -> None:
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FileExistsError(error.errno, error.strerror, str(target)) from None
        raise


def _settle(folder: Path) -> None:
    """Move a committed generation to its place; begun by this process, or by one that was killed."""
    committed = folder / COMMITTED
    if not committed.is_dir():
        return
    for file in sorted(committed.iterdir(), key=lambda f: (f.name == MANIFEST, f.name)):
        os.replace(file, folder / file.name)
    sync(folder)
    committed.rmdir()


def _entries(folder: Path, form: str) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        text = manifest(folder)
    except OSError as error:
        raise Unreachable(f"{path} cannot be read: {reason(error)}") from None
    if text is None:
        raise UserError(f"checkpoint {folder} has no {MANIFEST}: not a checkpoint, or not completely written")
    try:
        content = json.loads(text)
        entries = dict(content["files"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged: it is not the JSON that neuralmem writes") from None
    if content.get("format") != form:
        raise UserError(f"{path} has format {content.get('format')!r}; this version reads {form!r}")
    return entries


def _check(folder: Path, name: str, entry: Any) -> Path:
    for file in (folder / COMMITTED / name, folder / name):
        try:
            same = _entry(file) == entry
        except FileNotFoundError:
            continue
        except OSError as error:
            raise Unreachable(f"{file} cannot be read: {reason(error)}") from None
        if not same:
            raise UserError(f"{file} is damaged: its size or sha256 is not that of {MANIFEST}")
        return file
    raise UserError(f"{folder / name} is missing")


def _entry(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"sha256": hashlib.file_digest(stream, "sha256").hexdigest(), "bytes": os.fstat(stream.fileno()).st_size}

"""Where a run goes on: the newest checkpoint of its folder that is whole.

Special: every checkpoint is verified before it is chosen. A broken one is set aside under the name `step=N.broken` and
said, and the next older one is taken. Only damage is a reason for that: a file that the disk does not give at the
moment ends the search with an error. So does a folder in which all checkpoints are broken: to start from the beginning
there would throw away days without a word. Every rank looks for itself, the first alone renames; `RankState` compares.
"""

import contextlib
import os
import re
import sys
from pathlib import Path

from lightning.fabric.utilities import rank_zero_only

from neuralmem import durable
from neuralmem.errors import UserError, nearest
from neuralmem.training.folder_io import verify_checkpoint

FOLDER = "checkpoints"
LAST = "last"


def find_checkpoint(run: str | Path, wanted: str | None) -> Path | None:
    """The checkpoint that `--ckpt_path` means.

    Args:
        run: the run's folder
        wanted: a checkpoint's folder, "last" for the newest whole one of the run (None if it has none), or None

    Raises:
        UserError: there is no such folder, it is no whole checkpoint, or none of those that there are is whole.
    """
    folder = Path(run) / FOLDER
    if wanted is None:
        return None
    if wanted == LAST:
        return newest(folder)
    path = Path(wanted)
    if not path.is_dir():
        known = [LAST, *(str(one) for _, one in found(folder))]
        raise UserError(
            f"ckpt_path is {wanted!r}, which is no folder; it must be a checkpoint or 'last'{nearest(wanted, known)}"
        )
    try:
        verify_checkpoint(path)
    except UserError as error:
        raise UserError(f"ckpt_path is {wanted!r}, which is no whole checkpoint: {error}") from None
    return path


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None where there never was one; broken ones above it are set aside.

    Raises:
        UserError: there are broken ones alone, set aside now or earlier; or one cannot be read.
    """
    for _, path in sorted(found(folder), reverse=True):
        try:
            problem = broken(path)
        except durable.Unreachable as error:
            raise UserError(
                f"checkpoint {path} may be whole, but {error}; try again, or name an older one: --ckpt_path FOLDER"
            ) from None
        if problem is None:
            return path
        set_aside(path, problem)
    if lost := sorted(name for name in _names(folder) if re.fullmatch(r"step=\d+(\.broken.*)?", name)):
        raise UserError(
            f"{folder} has no whole checkpoint to go on from, only {', '.join(lost)}; to begin from step 0 leave out "
            "--resume and --ckpt_path once, or give another --run"
        )
    return None


def found(folder: Path) -> list[tuple[int, Path]]:
    """Step and place of everything that is named like a checkpoint, whole or not.

    Raises:
        UserError: the folder is there, but cannot be read.
    """
    named = [(re.fullmatch(r"step=(\d+)", name), folder / name) for name in _names(folder)]
    return [(int(match[1]), path) for match, path in named if match]


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"checkpoints in {folder} cannot be listed: {durable.reason(error)}") from None


def broken(path: Path) -> str | None:
    """What is wrong with a checkpoint, in one line; None: nothing.

    Raises:
        Unreachable: nobody can tell, since the disk does not give its files.
    """
    try:
        verify_checkpoint(path)
    except durable.Unreachable:
        raise
    except UserError as error:
        return str(error)
    return None


def set_aside(path: Path, problem: str) -> None:
    """Rename a broken checkpoint, so that nothing takes it for one, and say so."""
    if not first_rank():
        return
    aside, more = path.with_name(f"{path.name}.broken"), 2
    while aside.exists():
        aside, more = path.with_name(f"{path.name}.broken-{more}"), more + 1
    done = f"set aside as {aside.name}"
    try:
        os.rename(path, aside)
    except OSError as error:
        done = f"left there, for it cannot be renamed: {durable.reason(error)}"
    print(f"checkpoint {path} is not used: {problem}; {done}", file=sys.stderr)


def first_rank() -> bool:
    """Whether this process is the one that writes; known before there is a trainer, from the launcher's environment."""
    node = os.environ.get("NODE_RANK", "0")  # all that Lightning's own launcher is told on further machines
    return getattr(rank_zero_only, "rank", 0) == 0 and ("RANK" in os.environ or node == "0")


def remove_leftovers(run: Path) -> None:
    """Remove what a killed process was writing. Only for the one that holds the run's lock."""
    folder = run / FOLDER
    durable.sweep(*run.glob(f"{durable.TEMPORARY}*"), *run.parent.glob(f".{run.name}{durable.TEMPORARY}*"))
    durable.sweep(*folder.glob(f".*{durable.TEMPORARY}*"), *folder.glob(f"*/{durable.TEMPORARY}*"))
    for file in run.glob(f"{durable.TEMPORARY}*"):
        with contextlib.suppress(OSError):
            file.unlink()

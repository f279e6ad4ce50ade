"""Trained models that come with the package, by name: "neuralmem/mag-tiny".

Special: nothing is downloaded, they lie in `neuralmem/pretrained/`, each with its settings, data and scores
(docs/checkpoints.md). A folder of that path in the working directory comes first.
"""

from pathlib import Path

from neuralmem.errors import UserError, nearest

PREFIX = "neuralmem/"
FOLDER = Path(__file__).resolve().parent.parent / "pretrained"


def names() -> list[str]:
    """What can be loaded by name, sorted.

    Example:
        >>> all(name.startswith("neuralmem/") for name in names())
        True
    """
    return sorted(f"{PREFIX}{config.parent.name}" for config in FOLDER.glob("*/config.json"))


def is_shipped(checkpoint: str | Path) -> bool:
    """Whether this names a model of the package, and no folder."""
    return Path(checkpoint).as_posix() in names() and not Path(checkpoint).is_dir()


def locate(checkpoint: str | Path) -> Path:
    """The folder of a checkpoint that is given by its path or by a name of `names`.

    Raises:
        UserError: there is none, with the nearest name.

    Example:
        >>> locate(".").is_dir()
        True
    """
    folder = Path(checkpoint)
    if is_shipped(folder):
        return FOLDER / folder.name
    if not folder.is_dir():
        raise UserError(f"checkpoint {folder} does not exist{nearest(folder.as_posix(), names())}")
    return folder

"""Lengths, depths and numbers of samples as one writes them on a command line."""

import re

from neuralmem.errors import UserError

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}


def parse_lengths(text: str, train_length: int | None = None, option: str = "--lengths") -> list[int]:
    """Lengths in tokens, in ascending order.

    Args:
        text: separated by commas; 1k is 1,024, 1m is 1,048,576, and 16x is sixteen times the training length
        train_length: of the checkpoint, in tokens, where it is known
        option: named in errors

    Raises:
        UserError: something that is no length, or a multiple of a training length that is not known.

    Example:
        >>> parse_lengths("4k,1000,1m"), parse_lengths("1x,16x", train_length=256)
        ([1000, 4096, 1048576], [256, 4096])
    """
    lengths = set()
    for part in split_list(text, option):
        found = re.fullmatch(r"(\d+)([kmx]?)", part.lower())
        if not found or not int(found[1]):
            raise UserError(
                f"{option} holds {part!r}; it must be 4096, 4k, 1m, or 16x for 16 times the training length"
            )
        if found[2] == "x" and train_length is None:
            raise UserError(
                f"{option} holds {part!r}, which needs the training length; the checkpoint has no data.json with one"
            )
        unit = train_length if found[2] == "x" else _UNITS[found[2]]
        lengths.add(int(found[1]) * (unit or 1))
    return sorted(lengths)


def parse_tokens(text: str, option: str) -> int:
    """A number of tokens: 4096, 4k or 1m.

    Raises:
        UserError: it is none, or 0.

    Example:
        >>> parse_tokens("256k", "--tokens")
        262144
    """
    found = re.fullmatch(r"(\d+)([km]?)", text.strip().lower())
    if not found or not int(found[1]):
        raise UserError(f"{option} is {text!r}; it must be a number of tokens: 4096, 4k or 1m")
    return int(found[1]) * _UNITS[found[2]]


def parse_samples(text: str, lengths: int | None = None) -> tuple[int, ...]:
    """Samples per length, in ascending order of the lengths.

    Args:
        text: separated by commas; the last number is for all further lengths
        lengths: how many lengths there are, where that is known

    Raises:
        UserError: something that is no number, or more numbers than lengths.

    Example:
        >>> parse_samples("200,200,50")
        (200, 200, 50)
    """
    parts = split_list(text, "--samples")
    for part in parts:
        if not part.isdecimal() or not int(part):
            raise UserError(f"--samples holds {part!r}; it must be a number: 50, or 200,200,50 for one per length")
    if lengths is not None and len(parts) > lengths:
        raise UserError(
            f"--samples is {text!r}, with more numbers than the {lengths} of --lengths; it must be at most "
            f"{','.join(parts[:lengths])}"
        )
    return tuple(map(int, parts))


def parse_depths(text: str) -> list[float] | None:
    """Depths in percent, in ascending order, or None for the protocol's own places ("random").

    Example:
        >>> parse_depths("0,50,100"), parse_depths("random")
        ([0.0, 50.0, 100.0], None)
    """
    if text.strip() == "random":
        return None
    depths = set()
    for part in split_list(text, "--depths"):
        try:
            depth = float(part.removesuffix("%"))
        except ValueError:
            depth = -1.0
        if not 0 <= depth <= 100:
            raise UserError(
                f"--depths holds {part!r}; it must be percents from 0 to 100, as in 0,25,50,75,100, or random"
            )
        depths.add(depth)
    return sorted(depths)


def split_list(text: str, option: str) -> list[str]:
    """The values of an option that takes several, separated by commas.

    Raises:
        UserError: there is none.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UserError(f"{option} is empty; give at least one value, separated by commas")
    return parts

"""Whether two checkpoints hold the same, and what they differ in."""

from pathlib import Path
from typing import Any

import torch

from neuralmem.training.folder_io import read_checkpoint
from neuralmem.training.plain import pack


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two trees differ, and how."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in differences(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            found for i, pair in enumerate(zip(one, other, strict=True)) for found in differences(*pair, f"{where}.{i}")
        ]
    return [] if one == other else [f"{where}: {one!r} and {other!r}"]


def same(a: Path, b: Path) -> None:
    """Everything in two checkpoints but the clock is equal."""
    (one, tensors), (other, others) = (pack(read_checkpoint(path)) for path in (a, b))
    assert one["callbacks"].pop("Report").keys() == other["callbacks"].pop("Report").keys() == {"seconds", "processes"}
    assert not (found := differences(one, other)), found
    assert tensors.keys() == others.keys()
    assert not (unlike := [name for name, x in tensors.items() if not torch.equal(x, others[name])]), unlike

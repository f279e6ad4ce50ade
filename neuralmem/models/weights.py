"""The weights of a model as safetensors: one file, or several with an index where one would be too large to handle.

The names and the index are those of Hugging Face: `model-00001-of-00002.safetensors`, `model.safetensors.index.json`.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from neuralmem.durable import manifest
from neuralmem.errors import UserError

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
LARGEST = 5 * 10**9  # bytes of tensors in a file, unless one tensor alone has more


def write_weights(folder: Path, weights: Mapping[str, Tensor], largest: int | None = None) -> None:
    """Write tensors into an empty folder.

    Args:
        folder: where to
        weights: contiguous, on the CPU, no two in one memory
        largest: bytes of tensors in a file; None is `LARGEST`
    """
    parts = split(weights, LARGEST if largest is None else largest)
    if len(parts) == 1:
        save_file(dict(weights), folder / FILE, metadata={"format": "pt"})
        return
    where: dict[str, str] = {}
    for i, names in enumerate(parts, 1):
        file = f"model-{i:05}-of-{len(parts):05}.safetensors"
        save_file({name: weights[name] for name in names}, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(map(_bytes, weights.values()))}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def split(weights: Mapping[str, Tensor], largest: int) -> list[list[str]]:
    """The names of the tensors of each file, in order; none is empty unless there is nothing.

    Example:
        >>> split({"a": torch.zeros(2), "b": torch.zeros(1), "c": torch.zeros(9), "d": torch.zeros(1)}, largest=12)
        [['a', 'b'], ['c'], ['d']]
    """
    parts: list[list[str]] = [[]]
    size = 0
    for name, x in weights.items():
        if parts[-1] and size + _bytes(x) > largest:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += _bytes(x)
    return parts


def weight_files(files: Mapping[str, Path]) -> list[str]:
    """The names of the files with weights among those of a checkpoint.

    Raises:
        UserError: there are none, or the index names one that is not there.
    """
    if FILE in files:
        return [FILE]
    if INDEX not in files:
        raise UserError(f"{next(iter(files.values())).parent / 'manifest.json'} does not list {FILE}")
    names = sorted({*_where(files[INDEX]).values()})
    if missing := [name for name in names if name not in files]:
        raise UserError(f"{files[INDEX].with_name('manifest.json')} does not list {missing[0]}")
    return names


def read_tensors(files: Mapping[str, Path], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """All tensors of a checkpoint.

    Args:
        files: where the files of a checkpoint lie, by name
        device: where to put the tensors

    Raises:
        UserError: a file that cannot be read, or has other tensors than the index says.
    """
    weights: dict[str, Tensor] = {}
    for name in weight_files(files):
        try:
            weights |= load_file(files[name], device=str(device))
        except SafetensorError as error:
            raise UserError(f"{files[name]} cannot be read: {error}") from None
    if FILE not in files and (odd := sorted(weights.keys() ^ _where(files[INDEX]).keys())):
        raise UserError(f"{files[INDEX]} and its files do not agree on tensor {odd[0]}")
    return weights


def fingerprint(entries: Mapping[str, Any]) -> str:
    """The sha256 of a model's weights from its manifest's entries; of several files, that of their sha256."""
    if FILE in entries:
        return entries[FILE]["sha256"]
    parts = [entries[name]["sha256"] for name in sorted(entries) if name.startswith("model-")]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def weights_of(folder: Path) -> str:
    """The same of a checkpoint's folder.

    Raises:
        UserError: it has no manifest.
    """
    if (listed := manifest(folder)) is None:
        raise UserError(f"{folder} has no manifest.json; it must be a checkpoint")
    return fingerprint(json.loads(listed)["files"])


def _where(index: Path) -> dict[str, str]:
    try:
        return dict(json.loads(index.read_bytes())["weight_map"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{index} is no index of safetensors files") from None


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()

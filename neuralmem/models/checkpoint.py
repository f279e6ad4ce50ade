"""Checkpoints: a folder of config.json, model.safetensors, tokenizer.json, data.json, and a manifest of their sha256.

Special: written whole or not at all, verified before anything is loaded (safetensors alone does not notice a flipped
bit), and nothing in it is code: no pickle, and layer names reach files of this package only.
"""

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from neuralmem.config import ModelConfig
from neuralmem.errors import UserError
from neuralmem.models.causal_lm import CausalLM, build_model
from neuralmem.tokenizer import Tokenizer, load_tokenizer

FORMAT = "neuralmem-checkpoint-1"
MANIFEST = "manifest.json"


def save(
    folder: str | Path, model: CausalLM, tokenizer: Tokenizer | None = None, *, data: dict[str, Any] | None = None
) -> None:
    """Write a model to a folder; an older checkpoint there is replaced, other files are kept.

    Args:
        folder: made if it does not exist
        model: weights are written in their dtype
        tokenizer: written beside it if given
        data: what the model was trained on, as plain values; written to data.json if given

    Raises:
        UserError: the folder, or one that it is to lie in, is a file.
    """
    folder = Path(folder)
    refuse_file("folder", folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        tied = model.config.tie_embeddings
        weights = {
            name: x.detach().cpu().contiguous()
            for name, x in model.state_dict().items()
            if not (tied and name == "head.weight")
        }
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        config = {"format": FORMAT, **model.config.to_dict()}
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if tokenizer is not None:
            tokenizer.save(temporary)
        if data is not None:
            (temporary / "data.json").write_text(json.dumps(data, indent=2) + "\n")
        entries = {file.name: _entry(file) for file in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": entries}, indent=2) + "\n")
        _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load(folder: str | Path, *, device: torch.device | str = "cpu") -> tuple[CausalLM, Tokenizer | None]:
    """Read a model, and its tokenizer if the folder has one.

    Args:
        folder: written by `save`
        device: where to put the model

    Returns:
        The model in eval mode (which changes nothing here: memory learns in either mode), and the tokenizer or None.

    Raises:
        UserError: no such folder or device, a missing, damaged or unlisted file, a tensor that is missing or does not
            fit.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"checkpoint {folder} does not exist")
    listed = verify(folder)
    _refuse_device(device)
    config = _read_config(folder / "config.json")
    with _Uninitialised():
        model = build_model(config)
    try:
        weights = load_file(folder / "model.safetensors", device=str(device))
    except SafetensorError as error:
        raise UserError(f"{folder / 'model.safetensors'} cannot be read: {error}") from None
    if config.tie_embeddings and "embedding.weight" in weights:
        weights["head.weight"] = weights["embedding.weight"]
    _fits(folder, model, weights)
    model.load_state_dict(weights, assign=True)
    if config.tie_embeddings:
        model.head.weight = model.embedding.weight
    tokenizer = load_tokenizer(folder) if "tokenizer.json" in listed else None
    return model.requires_grad_(True).eval(), tokenizer


def refuse_file(field: str, folder: Path) -> None:
    """Refuse a path that cannot become a folder, because it or a part of it is a file.

    Raises:
        UserError: naming the field and the file.
    """
    for part in (folder, *folder.parents):
        if part.exists() and not part.is_dir():
            raise UserError(f"{field} is {str(folder)!r}, but {part} is a file; it must be a folder, or new")


def _refuse_device(device: torch.device | str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):  # torch has no one error for what is not there
        there = "cpu or cuda" if torch.cuda.is_available() else "cpu"
        raise UserError(f"device is {str(device)!r}, which this machine cannot use; it must be {there}") from None


def _read_config(file: Path) -> ModelConfig:
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} holds a {type(values).__name__}; it must be the fields of a ModelConfig")
    return ModelConfig.from_dict({name: value for name, value in values.items() if name != "format"})


class _Uninitialised(TorchFunctionMode):
    """Parameters stay as they are allocated, since a file gives their values.

    Not the "meta" device, whose first operation imports torch's compiler, three seconds that a small model loads in.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" or func in (
            torch.Tensor.normal_,
            torch.Tensor.uniform_,
        ):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def verify(folder: str | Path) -> set[str]:
    """Compare every file of a checkpoint with its manifest and return their names; other files do not belong to it.

    Raises:
        UserError: naming the first file that is missing or differs.
    """
    folder = Path(folder)
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise UserError(f"checkpoint {folder} has no {MANIFEST}: not a checkpoint, or not completely written")
    try:
        content = json.loads(manifest.read_text())
        entries = dict(content["files"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{manifest} is damaged: it is not the JSON that neuralmem writes") from None
    if content.get("format") != FORMAT:
        raise UserError(f"{manifest} has format {content.get('format')!r}; this version reads {FORMAT!r}")
    for name in ("config.json", "model.safetensors", *entries):
        file = folder / name
        if name not in entries or Path(name).name != name:
            raise UserError(f"{manifest} does not list {name}")
        if not file.is_file():
            raise UserError(f"{file} is missing")
        if _entry(file) != entries[name]:
            raise UserError(f"{file} is damaged: its size or sha256 is not that of {MANIFEST}")
    return set(entries)


def _entry(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"sha256": hashlib.file_digest(stream, "sha256").hexdigest(), "bytes": file.stat().st_size}


def _publish(temporary: Path, folder: Path) -> None:
    """Make the finished files the folder's. A new folder appears in one rename; in an old one the manifest goes first
    and comes last, so that a half-replaced folder never passes for a checkpoint."""
    for file in temporary.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    if not folder.exists():
        os.replace(temporary, folder)
        return
    (folder / MANIFEST).unlink(missing_ok=True)
    for file in sorted(temporary.iterdir(), key=lambda f: f.name == MANIFEST):
        os.replace(file, folder / file.name)


def _fits(folder: Path, model: CausalLM, weights: dict[str, torch.Tensor]) -> None:
    expected = model.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights:
            raise UserError(f"{folder / 'model.safetensors'} lacks tensor {name}")
        if name not in expected:
            raise UserError(
                f"{folder / 'model.safetensors'} has tensor {name}, which the model of config.json does not"
            )
        if expected[name].shape != weights[name].shape:
            raise UserError(
                f"{folder / 'model.safetensors'}: {name} has shape {list(weights[name].shape)}; "
                f"the model of config.json has {list(expected[name].shape)}"
            )

"""Checkpoints: a folder of config.json, weights, tokenizer.json, data.json, and a manifest of their sha256.

Special: written whole or not at all, verified before anything is loaded (safetensors alone does not notice a flipped
bit), and nothing in it is code: no pickle, and layer names reach files of this package only.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from neuralmem import durable
from neuralmem.config import ModelConfig
from neuralmem.durable import read_whole, whole_folder
from neuralmem.errors import UserError
from neuralmem.models.causal_lm import CausalLM, build_model
from neuralmem.models.pretrained import locate
from neuralmem.models.weights import read_tensors, weight_files, write_weights
from neuralmem.tokenizer import Tokenizer, load_tokenizer

FORMAT = "neuralmem-checkpoint-1"
REQUIRED = ("config.json",)  # and weights, in one file or several
# What config.json says beside the fields of a ModelConfig: how Hugging Face libraries find a class for it, and where a
# text ends (neuralmem/hf).
MODEL_TYPE, ARCHITECTURE = "neuralmem", "NeuralMemForCausalLM"
HUB_FIELDS = ("model_type", "architectures", "auto_map", "eos_token_id", "pad_token_id")


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
    with whole_folder(folder, FORMAT) as new:
        write_model(new, model.config, model.state_dict(), tokenizer, data)


def write_model(
    folder: Path,
    config: ModelConfig,
    weights: dict[str, torch.Tensor],
    tokenizer: Tokenizer | None = None,
    data: dict[str, Any] | None = None,
    hub: Mapping[str, Any] | None = None,
) -> None:
    """Write the files of a model into an empty folder, without its manifest.

    Args:
        folder: where to
        config: of the model
        weights: those of a state_dict
        tokenizer: written to tokenizer.json if given
        data: written to data.json if given
        hub: more of the `HUB_FIELDS` for config.json
    """
    kept = {
        name: x.detach().cpu().contiguous()
        for name, x in weights.items()
        if not (config.tie_embeddings and name == "head.weight")
    }
    write_weights(folder, kept)
    about = {"model_type": MODEL_TYPE, "architectures": [ARCHITECTURE], **(hub or {})}
    if tokenizer is not None:
        about |= {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.eos_id}
    fields = {"format": FORMAT, **about, **config.to_dict()}
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    if tokenizer is not None:
        tokenizer.save(folder)
    if data is not None:
        (folder / "data.json").write_text(json.dumps(data, indent=2) + "\n")


def load(folder: str | Path, *, device: torch.device | str = "cpu") -> tuple[CausalLM, Tokenizer | None]:
    """Read a model, and its tokenizer if the folder has one.

    Args:
        folder: written by `save`, or the name of a model that comes with the package, "neuralmem/mag-tiny"
        device: where to put the model

    Returns:
        The model in eval mode (which changes nothing here: memory learns in either mode), and the tokenizer or None.

    Raises:
        UserError: no such folder or device, a missing, damaged or unlisted file, a tensor that is missing or does not
            fit.
    """
    folder = locate(folder)
    _refuse_device(device)
    return read_whole(folder, FORMAT, REQUIRED, lambda files: _load(files, device))


def read_weights(files: Mapping[str, Path], device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """The weights of a model, named as in its state_dict, tied ones under both names.

    Args:
        files: what `verify` has found

    Raises:
        UserError: a file that is none of neuralmem's.
    """
    weights = read_tensors(files, device)
    if read_config(files["config.json"]).tie_embeddings and "embedding.weight" in weights:
        weights["head.weight"] = weights["embedding.weight"]
    return weights


def _load(files: Mapping[str, Path], device: torch.device | str) -> tuple[CausalLM, Tokenizer | None]:
    config = read_config(files["config.json"])
    with _Uninitialised():
        model = build_model(config)
    weights = read_weights(files, device)
    _fits(files["config.json"].with_name("model.safetensors"), model, weights)
    model.load_state_dict(weights, assign=True)
    if config.tie_embeddings:
        model.head.weight = model.embedding.weight
    tokenizer = load_tokenizer(files["tokenizer.json"]) if "tokenizer.json" in files else None
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


def read_config(file: Path) -> ModelConfig:
    """The config of a model from a checkpoint's config.json.

    Raises:
        UserError: no JSON, or fields that are none of a ModelConfig.
    """
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} holds a {type(values).__name__}; it must be the fields of a ModelConfig")
    return ModelConfig.from_dict({name: x for name, x in values.items() if name not in ("format", *HUB_FIELDS)})


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


def verify(folder: str | Path) -> dict[str, Path]:
    """Compare every file of a checkpoint with its manifest; other files do not belong to it.

    Returns:
        Where the files lie, by name.

    Raises:
        UserError: naming the first file that is missing or differs.
    """
    files = durable.verify(folder, FORMAT, REQUIRED)
    weight_files(files)
    return files


def _fits(file: Path, model: CausalLM, weights: dict[str, torch.Tensor]) -> None:
    expected = model.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights:
            raise UserError(f"{file} lacks tensor {name}")
        if name not in expected:
            raise UserError(f"{file} has tensor {name}, which the model of config.json does not")
        if expected[name].shape != weights[name].shape:
            raise UserError(
                f"{file}: {name} has shape {list(weights[name].shape)}; "
                f"the model of config.json has {list(expected[name].shape)}"
            )

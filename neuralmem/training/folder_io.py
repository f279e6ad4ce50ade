"""A run's checkpoint as a folder: a whole model, for `neuralmem.load`, and beside it what the training needs to go on.

    config.json, model.safetensors, tokenizer.json, data.json   the model, as `neuralmem.save` writes it
    training.safetensors, training.json                         optimizer, schedule, loops, and of every rank random
                                                                numbers, place in the data and carried memory
    config.yaml                                                 the resolved configuration
    manifest.json                                               sizes and sha256, written last

Special: it comes into being by one rename, it is verified whenever it is read, and nothing in it is code.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from neuralmem import durable
from neuralmem.config import ModelConfig
from neuralmem.errors import UserError
from neuralmem.models.checkpoint import FORMAT as MODEL_FORMAT
from neuralmem.models.checkpoint import REQUIRED as MODEL_FILES
from neuralmem.models.checkpoint import read_weights, write_model
from neuralmem.provenance import code_version
from neuralmem.tokenizer import Tokenizer
from neuralmem.training.plain import pack, unpack

FORMAT = "neuralmem-training-1"
FILES = (*MODEL_FILES, "training.json", "training.safetensors")
ROOM = 1.2  # times what is written must be free
# Options that say where a run begins.
ABOUT_THE_START = ("config", "run", "ckpt_path", "resume", "init_from", "init_strict")
PREFIX = "model."  # what LanguageModel calls the model


class FolderIO(CheckpointIO):
    """How Lightning writes and reads checkpoints. With each the model also comes into the run's own folder.

    Args:
        run: the run's folder
        config: the resolved configuration as YAML
        data: the data's part of it, for data.json
    """

    def __init__(self, run: Path, config: str, data: dict[str, Any]) -> None:
        self.run, self.config, self.data = run, config, data
        self.model: ModelConfig | None = None
        self.tokenizer: Tokenizer | None = None
        self._failures: list[str] | None = None

    def describe(self, model: ModelConfig, tokenizer: Tokenizer | None) -> None:
        """Say what is trained; once, before the first checkpoint."""
        self.model, self.tokenizer = model, tokenizer

    @contextlib.contextmanager
    def failing_softly(self) -> Iterator[list[str]]:
        """Inside, what the disk refuses is put into the list that this yields, and not raised."""
        self._failures = []
        try:
            yield self._failures
        finally:
            self._failures = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, then the model into the run's folder."""
        try:
            self._save(dict(checkpoint), Path(path))
        except OSError as error:
            if self._failures is None:
                raise
            self._failures.append(durable.reason(error))

    def _save(self, checkpoint: dict[str, Any], path: Path) -> None:
        assert self.model is not None, "describe comes first"
        everything = checkpoint.pop("state_dict")
        weights = {k.removeprefix(PREFIX): x for k, x in everything.items() if k.startswith(PREFIX)}
        checkpoint["state_dict"] = {k: x for k, x in everything.items() if not k.startswith(PREFIX)}
        tree, tensors = pack(checkpoint)
        durable.refuse_full(path, int(ROOM * (2 * _bytes(weights) + _bytes(tensors))))
        with durable.whole_folder(path, MODEL_FORMAT) as new:
            write_model(new, self.model, weights, self.tokenizer, self.data)
            save_file(tensors, new / "training.safetensors")
            content = {"format": FORMAT, "code": code_version(), "state": tree}
            (new / "training.json").write_text(json.dumps(content) + "\n")
            (new / "config.yaml").write_text(self.config)
        with durable.whole_folder(self.run, MODEL_FORMAT) as new:
            write_model(new, self.model, weights, self.tokenizer, self.data)
        durable.write_file(self.run / "config.yaml", self.config)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Verify and read; tensors come to the CPU."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        if Path(path).is_dir():
            durable.remove(Path(path))


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """What Lightning was given to save.

    Raises:
        UserError: a file is missing or damaged, or the folder is a model without a training state.
    """
    return durable.read_whole(folder, MODEL_FORMAT, FILES, _read)


def verify_checkpoint(folder: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        UserError: naming the first file that is missing or damaged.
    """
    durable.verify(folder, MODEL_FORMAT, FILES)


def changes(folder: Path, config: str) -> list[str]:
    """What a run that goes on from a whole checkpoint has otherwise than the one that wrote it: settings and versions.

    Args:
        folder: the checkpoint
        config: this run's resolved configuration as YAML

    Returns:
        Lines such as "optimizer.lr 0.001 -> 0.0001".
    """
    made_by = json.loads((folder / "training.json").read_bytes()).get("code", {})
    before = yaml.safe_load((folder / "config.yaml").read_text()) | {"code": made_by}
    now = yaml.safe_load(config) | {"code": code_version()}
    found = [one for one in differing(before, now) if one[0].partition(".")[0] not in ABOUT_THE_START]
    return [f"{name} {theirs} -> {mine}" for name, theirs, mine in found]


def differing(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two configurations differ: the name, and the value of each. What one of them lacks is left out: versions
    differ, or it is of another class, which is named.

    Example:
        >>> list(differing({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 3, "c": 2}, "d": [1, 2], "e": 4}))
        [('a.b', 1, 3), ('d', [1], [1, 2])]
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before:
            if key in now:
                yield from differing(before[key], now[key], f"{name}.{key}" if name else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, pair in enumerate(zip(before, now, strict=True)):
            yield from differing(*pair, f"{name}.{number}")
    elif before != now:
        yield name, before, now


def _read(files: Mapping[str, Path]) -> dict[str, Any]:
    file = files["training.json"]
    try:
        content, tensors = json.loads(file.read_bytes()), load_file(files["training.safetensors"])
    except (ValueError, SafetensorError) as error:
        raise UserError(f"{file.parent} cannot be read: {' '.join(str(error).split())}") from None
    if content.get("format") != FORMAT:
        raise UserError(f"{file} has format {content.get('format')!r}; this version reads {FORMAT!r}")
    checkpoint = unpack(content["state"], tensors)
    checkpoint["state_dict"] |= {f"{PREFIX}{name}": x for name, x in read_weights(files).items()}
    return checkpoint


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors.values())

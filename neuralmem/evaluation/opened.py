"""A checkpoint opened for evaluation, and the options that every command over a checkpoint has."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from neuralmem.errors import UserError, nearest
from neuralmem.evaluation.recall import TrainingData, read_training_data
from neuralmem.evaluation.rows import Subject
from neuralmem.models.causal_lm import CausalLM
from neuralmem.models.checkpoint import load
from neuralmem.models.pretrained import is_shipped, locate
from neuralmem.models.weights import weights_of
from neuralmem.provenance import code_version
from neuralmem.tokenizer import Tokenizer

CHUNK = {"cpu": 512, "cuda": 4096}  # tokens per call: with 16 prompts, 512 keep a small model in a CPU's cache


@dataclass(frozen=True)
class Opened:
    """A model to be evaluated, and what is known of it.

    Args:
        model: on its device, in the dtype asked for
        tokenizer: the checkpoint's
        training: what it was trained on
        subject: how result rows name it
        folder: the checkpoint
        out: where results go; not made yet
        stream_chunk: tokens read per call, at most
    """

    model: CausalLM
    tokenizer: Tokenizer
    training: TrainingData
    subject: Subject
    folder: Path
    out: Path
    stream_chunk: int


def add_common_options(
    parser: argparse.ArgumentParser, command: str, together: str | None = "prompts read together"
) -> None:
    """The options of every command that evaluates a checkpoint.

    Args:
        parser: of the command
        command: names the folder of the results
        together: what `--batch-size` counts; None: one text is read in one call, so there is nothing to choose
    """
    add = parser.add_argument
    add(
        "--checkpoint",
        required=True,
        metavar="RUN",
        help="folder of a saved model, or neuralmem/NAME of one in the package",
    )
    add("--out", metavar="DIR", help=f"where results go (RUN/{command}; runs/NAME/{command})")
    add("--seed", type=int, default=42, metavar="N", help="same seed, same prompts (42)")
    if together is None:
        parser.set_defaults(stream_chunk=None, batch_size=None)
    else:
        add("--stream-chunk", type=int, metavar="N", help="tokens read per call, at most (512; 4096 on a GPU)")
        add("--batch-size", type=int, default=16, metavar="N", help=f"{together} (16)")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, ... (auto)")
    add("--dtype", default="float32", choices=["float32", "bfloat16", "float64"], help="of the weights (float32)")
    add("--threads", type=int, metavar="N", help="CPU threads (as torch does)")
    add("--debug", action="store_true", help="show where an error comes from")


def check_positive(options: argparse.Namespace, *names: str) -> None:
    """Refuse counts below 1; None passes.

    Raises:
        UserError: naming the option.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")


def open_checkpoint(options: argparse.Namespace, command: str, training: TrainingData | None = None) -> Opened:
    """Load what the common options name, and put into `options.out` where results go if it was not said.

    Args:
        options: with those of `add_common_options`
        command: names the folder of the results, unless --out does
        training: read from the folder unless given

    Raises:
        UserError: an option that cannot be used, a checkpoint that cannot be loaded.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = locate(options.checkpoint)
    training = training or read_training_data(folder)
    device = pick_device(options.device)
    model, tokenizer = load(folder, device=device)
    if tokenizer is None:
        raise UserError(f"--checkpoint is {str(folder)!r}, which has no tokenizer.json")
    model = model.to(getattr(torch, options.dtype))
    subject = describe(model, tokenizer, folder, options.dtype, device)
    home = Path("runs") / folder.name if is_shipped(options.checkpoint) else folder
    options.out = options.out or str(home / command)
    refuse_unwritable(Path(options.out))
    code_version()  # what was loaded: the files may be others when the results are written
    chunk = options.stream_chunk or CHUNK.get(device.type, CHUNK["cuda"])
    return Opened(model, tokenizer, training, subject, folder, Path(options.out), chunk)


def refuse_unwritable(out: Path) -> None:
    """Refuse a folder for results that cannot be made or written into, before anything is asked.

    Raises:
        UserError: it is a file, or in a folder that may not be written.
    """
    there = next(path for path in (out, *out.resolve().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"--out is {str(out)!r}, but {there} is no folder; results need one")
    if not os.access(there, os.W_OK):
        raise UserError(f"--out is {str(out)!r}, but {there} may not be written; give another folder")


def describe(model: Any, tokenizer: Any, folder: Path, dtype: str, device: torch.device) -> Subject:
    """How rows name the checkpoint; the hash is that of its weights, from the manifest that loading has verified."""
    chunk = model.config.chunk_size if model.has_memory else None
    weights = weights_of(folder)
    return Subject(model.reach, tokenizer.fingerprint, weights, chunk, chunk, dtype, str(device))


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU where there is one.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError):
        raise UserError(
            f"--device is {name!r}, which is not here; auto takes what is{nearest(name, ['auto', 'cpu'])}"
        ) from None


def one_of(name: str, allowed: Sequence[str], option: str) -> str:
    """The name, if it is allowed.

    Raises:
        UserError: it is not, with the nearest that is.
    """
    if name not in allowed:
        raise UserError(f"{option} is {name!r}; it must be one of {', '.join(allowed)}{nearest(name, allowed)}")
    return name

"""What `eval.py niah` does: load, ask, print the table, write the files."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from neuralmem.durable import manifest
from neuralmem.errors import UserError, nearest
from neuralmem.evaluation.heatmap import write_heatmaps
from neuralmem.evaluation.lengths import parse_depths, parse_lengths, parse_samples, split_list
from neuralmem.evaluation.niah import DEPTHS, Settings, run
from neuralmem.evaluation.prompts import find_task
from neuralmem.evaluation.protocols import PROTOCOLS
from neuralmem.evaluation.reader import ABLATIONS, Reader
from neuralmem.evaluation.recall import TrainingData, read_training_data
from neuralmem.evaluation.rows import Subject
from neuralmem.evaluation.summary import summarise, to_csv
from neuralmem.evaluation.table import print_table
from neuralmem.models.checkpoint import load
from neuralmem.models.weights import fingerprint

# What is asked when the user says nothing, and the only place that says it: `make demo` and the benchmarks rely on it.
# All controls belong to it (`evaluate`). Without a training length, multiples of it mean nothing.
LENGTHS, SAMPLES = "1x,16x,64x", "250,250,65"
LENGTHS_UNKNOWN, SAMPLES_UNKNOWN = "1k,4k,16k", "50"
CHUNK = {"cpu": 512, "cuda": 4096}  # tokens per call: with 16 prompts, 512 keep a small model in a CPU's cache


def evaluate(options: argparse.Namespace) -> None:
    """Run the evaluation that the options describe.

    Raises:
        UserError: an option that cannot be used, a checkpoint that cannot be loaded.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = Path(options.checkpoint)
    training = read_training_data(folder)
    settings = make_settings(options, training)
    device = pick_device(options.device)
    model, tokenizer = load(folder, device=device)
    if tokenizer is None:
        raise UserError(f"--checkpoint is {str(folder)!r}, which has no tokenizer.json")
    model = model.to(getattr(torch, options.dtype))
    if options.ablate is None and model.has_memory:
        settings = replace(settings, ablations=ABLATIONS)
    subject = describe(model, tokenizer, folder, options.dtype, device)
    out = Path(options.out) if options.out else folder / "niah"
    refuse_other_answers(out, settings)
    with progress_bar() as (plan, advance):

        def begin(tokens: int) -> None:
            write_settings(out, settings)
            plan(tokens)

        chunk = options.stream_chunk or CHUNK.get(device.type, CHUNK["cuda"])
        reader = Reader(model, tokenizer, chunk, advance, model.config.attention.segment)
        rows = run(settings, reader, subject, out, training, begin)
    print_table(summarise(rows), str(folder))
    write_whole(out / "table.csv", to_csv(rows, settings.grid))
    for path in [out / "rows.jsonl", out / "table.csv", *write_heatmaps(rows, settings.grid, out, folder.name)]:
        print(path)


def make_settings(options: argparse.Namespace, training: TrainingData) -> Settings:
    """Options to settings, each checked."""
    exact = options.protocol == "exact"
    depths = options.depths or (",".join(f"{depth:g}" for depth in DEPTHS) if exact else "random")
    found = parse_depths(depths)
    known = training.length is not None
    return Settings(
        tasks=tuple(find_task(name) for name in split_list(options.tasks, "--tasks")),
        lengths=tuple(parse_lengths(options.lengths or (LENGTHS if known else LENGTHS_UNKNOWN), training.length)),
        depths=None if found is None else tuple(found),
        samples=parse_samples(options.samples or (SAMPLES if known and not options.lengths else SAMPLES_UNKNOWN)),
        seed=options.seed,
        protocol=_one_of(options.protocol, PROTOCOLS, "--protocol"),
        haystacks=tuple(split_list(options.haystack, "--haystack")) if options.haystack else (),
        ablations=tuple(
            dict.fromkeys(
                (
                    "none",
                    *(
                        _one_of(name, ABLATIONS, "--ablate")
                        for name in split_list(options.ablate or "none", "--ablate")
                    ),
                )
            )
        ),
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        facts=options.facts,
    )


def describe(model: Any, tokenizer: Any, folder: Path, dtype: str, device: torch.device) -> Subject:
    """How rows name the checkpoint; the hash is that of its weights, from the manifest that loading has verified."""
    listed = json.loads(manifest(folder) or b"{}")
    chunk = model.config.memory.chunk_size if model.has_memory else None
    weights = fingerprint(listed["files"])
    return Subject(model.reach, tokenizer.fingerprint, weights, chunk, chunk, dtype, str(device))


def refuse_other_answers(out: Path, settings: Settings) -> None:
    """Rows with answers of another length, or another number of facts, are not gone on with.

    Raises:
        UserError: the folder holds such rows.
    """
    path = out / "settings.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    for name in ("max_new_tokens", "facts"):
        now = getattr(settings, name)
        if before.get(name, now) != now:
            option = name.replace("_", "-")
            raise UserError(f"--{option} is {now}; {out} has results with {before[name]}, give another --out")


def write_settings(out: Path, settings: Settings) -> None:
    """Make the folder and write the settings into it.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "settings.json", json.dumps(asdict(settings), indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--out is {str(out)!r}, which cannot be written: {error.strerror}") from None


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


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


class Speed(ProgressColumn):
    """Tokens per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} tokens/s" if task.speed else "", style="dim")


@contextmanager
def progress_bar() -> Iterator[tuple[Any, Any]]:
    """A bar on the error stream; yields what sets its total and what advances it."""
    columns = [TextColumn("reading"), BarColumn(None), TaskProgressColumn(), Speed(), TimeElapsedColumn()]
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("reading", total=None)
        yield (lambda total: bar.update(task, total=total)), (lambda tokens: bar.advance(task, tokens))


def _one_of(name: str, allowed: Sequence[str], option: str) -> str:
    if name not in allowed:
        raise UserError(f"{option} is {name!r}; it must be one of {', '.join(allowed)}{nearest(name, allowed)}")
    return name

"""What the memory does while it reads a text: surprise, gates and state norm over the tokens, with the facts marked.

Without --text it reads a held-out prompt with facts, as the recall task of niah asks them. With --text it reads the
beginning of a file; what is written there like a fact of training is marked too.

Prints a table of means; writes look.jsonl (the numbers), look.csv and look.png to --out.
"""

import argparse
import hashlib
from pathlib import Path

import torch
from torch import Tensor

from neuralmem.errors import UserError
from neuralmem.evaluation.journal import Journal
from neuralmem.evaluation.lengths import parse_lengths
from neuralmem.evaluation.look import Seen, Span, draw, find_facts, look, summarise
from neuralmem.evaluation.niah import Settings, cells
from neuralmem.evaluation.opened import Opened, add_common_options, check_positive, open_checkpoint
from neuralmem.evaluation.pictures import save
from neuralmem.evaluation.prompts import find_task
from neuralmem.evaluation.recall import FACTS, read_training_data
from neuralmem.evaluation.tables import print_lines, write_csv

EXAMPLES = """examples
  python eval.py look --checkpoint runs/quickstart
  python eval.py look --checkpoint runs/quickstart --text story.txt --length 4k
"""
IDENTITY = ("text_sha256", "ckpt_sha256", "chunk_size_eval", "dtype")
NOTES = (
    "Means over tokens and heads. Facts: tokens of facts written as in training. Asked: the fact that is asked for.\n"
    "Surprise is what the rule lowers by writing; write is the share of the largest inner learning rate; theta, eta\n"
    "and alpha are the inner learning rate, the surprise decay and the forget fraction."
)
LONGEST = 1 << 16  # tokens; the text is read in one call


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options beside those of every command."""
    add_common_options(parser, "look", together=None)
    add = parser.add_argument
    add("--text", metavar="FILE", help="what is read (a held-out prompt with facts)")
    add("--length", metavar="N", help="tokens: 4096, 4k, or 4x the training length (4x; 1k where it is not known)")
    add("--facts", type=int, default=FACTS, metavar="N", help="facts in the prompt (6)")


def check(options: argparse.Namespace) -> None:
    """Refuse values that no checkpoint could make right.

    Raises:
        UserError: naming the option and what it must be.
    """
    check_positive(options, "facts", "threads")


def run(options: argparse.Namespace) -> None:
    """Read, print the table, write the files.

    Raises:
        UserError: an option that cannot be used, a checkpoint that cannot be loaded or has no memory.
    """
    if options.text and not Path(options.text).is_file():
        raise UserError(f"--text is {options.text!r}, which is no file")
    training = read_training_data(options.checkpoint)
    length = parse_lengths(options.length or ("4x" if training.length else "1k"), training.length)[0]
    if length > LONGEST:
        raise UserError(f"--length is {length}; it must be at most {LONGEST}, since the text is read in one call")
    opened = open_checkpoint(options, "look", training)
    if not opened.model.has_memory:
        raise UserError(f"--checkpoint is {str(opened.folder)!r}, which has no memory: there is nothing to look at")
    ids, asked, name = _read_text(options, opened, length)
    facts = find_facts(ids.tolist(), opened.tokenizer, training.form)
    journal = Journal(opened.out / "look.jsonl", IDENTITY)
    row = _measure(opened, journal, ids, facts, asked, name)
    seen = [Seen(module, one["tokens"], one["steps"]) for module, one in row["modules"].items()]
    lines = summarise(seen, facts, asked, len(ids))
    print_lines(f"what the memory does: {opened.folder}, {name}", [_printed(line) for line in lines], [NOTES])
    table = write_csv(opened.out / "look.csv", lines)
    title = f"{opened.folder.name}  ·  {name}, {len(ids):,} tokens"
    save(draw(seen, facts, asked, row["step"], title), opened.out / "look.png")
    for path in (journal.path, table, opened.out / "look.png"):
        print(path)


def _read_text(options: argparse.Namespace, opened: Opened, length: int) -> tuple[Tensor, Span | None, str]:
    """Token ids, the span of the fact that is asked for, and what the text is called."""
    if options.text:
        with Path(options.text).open(encoding="utf-8", errors="replace") as file:
            ids = opened.tokenizer.encode(file.read(32 * length))[:length]
        if not ids:
            raise UserError(f"--text is {options.text!r}, which holds no text")
        return torch.tensor(ids), None, Path(options.text).name
    settings = Settings((find_task("recall"),), (length,), seed=options.seed, facts=options.facts)
    cell, build = next(iter(cells(settings, opened.tokenizer, opened.training)))
    sample = build(0, 0.5, cell.random(0))
    return sample.rope.slice(0, len(sample.rope)), sample.needles[0], f"recall prompt in {sample.haystack}"


def _measure(opened: Opened, journal: Journal, ids: Tensor, facts: list[Span], asked: Span | None, name: str) -> dict:
    subject = opened.subject
    identity = {
        "text_sha256": hashlib.sha256(ids.to(torch.int32).numpy().astype("<i4").tobytes()).hexdigest(),
        "ckpt_sha256": subject.ckpt_sha256,
        "chunk_size_eval": subject.chunk_size_eval,
        "dtype": subject.dtype,
    }
    if known := journal.find(**identity):
        return known
    step = opened.model.config.chunk_size
    modules = {
        one.module: {"tokens": _rounded(one.tokens), "steps": _rounded(one.steps)}
        for one in look(opened.model, ids, step)
    }
    row = identity | {
        "text": name,
        "prompt_tokens": len(ids),
        "step": step,
        "facts": facts,
        "asked": asked,
        "tokenizer_sha256": subject.tokenizer_sha256,
        "device": subject.device,
        "reach": subject.reach,
        "token_texts": [opened.tokenizer.decode([i]) for i in ids.tolist()],
        "modules": modules,
    }
    journal.add(row)
    return row


def _rounded(values: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: [float(f"{x:.6g}") for x in some] for name, some in values.items()}


def _printed(line: dict) -> dict[str, str]:
    means = {
        name: "" if line[name] is None else f"{line[name]:.4g}" for name in ("text", "facts", "asked", "elsewhere")
    }
    return {"module": line["module"], "quantity": line["quantity"]} | means

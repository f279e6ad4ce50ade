"""Perplexity and bits per byte of held-out text, each document from a fresh memory, with the memory's controls.

Prints a table; writes perplexity.jsonl (a line per document and reading), perplexity.csv and perplexity.png to --out.

readings
  on       the memory as it is, which --ablate calls none too
  frozen   nothing is written; reads see the learned initial weights
  off      the memory gives zeros
  window   each token from a fresh state that read the last tokens only, as many as attention can see
"""

import argparse
import math

from neuralmem.errors import UserError
from neuralmem.evaluation.bookmark import UNFINISHED, Bookmark
from neuralmem.evaluation.held_out import NAMES, open_text
from neuralmem.evaluation.journal import Journal
from neuralmem.evaluation.lengths import parse_tokens, split_list
from neuralmem.evaluation.losses import READINGS, LossReader, Reading
from neuralmem.evaluation.opened import add_common_options, check_positive, one_of, open_checkpoint
from neuralmem.evaluation.perplexity import IDENTITY, Line, measure, null_models, pieces, summarise
from neuralmem.evaluation.pictures import save
from neuralmem.evaluation.points import draw
from neuralmem.evaluation.recall import read_training_data
from neuralmem.evaluation.screen import progress_bar
from neuralmem.evaluation.tables import interval, print_lines, reach_note, with_ends, write_csv

EXAMPLES = """examples
  python eval.py perplexity --checkpoint runs/quickstart
  python eval.py perplexity --checkpoint runs/mac_170m --haystack file:books.jsonl --tokens 4m
"""
PERPLEXITY = "perplexity [95%]"
NAMED = ("on", "none", *READINGS[1:])  # none is what the other evaluations call on


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options beside those of every command, with their defaults and meanings."""
    add_common_options(parser, "perplexity")
    add = parser.add_argument
    add("--haystack", default="", metavar="TEXT", help=f"{', '.join(NAMES)} (validation text of the checkpoint)")
    add("--tokens", default="256k", metavar="N", help="tokens to read at most: 4096, 256k, 1m (256k)")
    add("--ablate", metavar="LIST", help=f"controls, of {','.join(NAMED[1:])} (all that the model has)")


def check(options: argparse.Namespace) -> None:
    """Refuse values that no checkpoint could make right.

    Raises:
        UserError: naming the option and what it must be.
    """
    if parse_tokens(options.tokens, "--tokens") < 2:
        raise UserError(f"--tokens is {options.tokens!r}; it must be at least 2, one that is given and one to predict")
    check_positive(options, "stream_chunk", "batch_size", "threads")


def run(options: argparse.Namespace) -> None:
    """Read, print the table, write the files.

    Raises:
        UserError: an option that cannot be used, a checkpoint that cannot be loaded, a text that does not exist.
    """
    training = read_training_data(options.checkpoint)
    text = open_text(options.haystack, training)
    opened = open_checkpoint(options, "perplexity", training)
    documents = list(pieces(text.documents(), opened.tokenizer, parse_tokens(options.tokens, "--tokens")))
    if not documents:
        raise UserError(f"--haystack is {options.haystack or text.id!r}, which has no document of two tokens")
    model = opened.model
    with progress_bar() as (plan, advance):
        segment, bookmark = model.config.attention.segment, Bookmark(opened.out / UNFINISHED)
        reader = LossReader(model, opened.stream_chunk, segment, advance, bookmark)
        readings = wanted(options.ablate, reader)
        journal = Journal(opened.out / "perplexity.jsonl", IDENTITY)
        plan(sum(reader.cost(len(d.tokens), reading) for d in documents for reading in readings))
        rows = measure(documents, reader, readings, opened.subject, journal, options.batch_size)
        bookmark.clear()
    lines, nulls = summarise(rows, options.seed), null_models(documents, opened.tokenizer.vocab_size)
    shown = [_shown(line) for line in lines]
    shown += [{"memory": f"null: {name}", PERPLEXITY: f"{math.exp(loss):.2f}"} for name, loss in nulls.items()]
    print_lines(f"perplexity: {opened.folder}", shown, _notes(text.id, documents, model.reach))
    summary = [_flat(line) for line in lines]
    figure = draw(
        {line.memory: line.loss for line in lines},
        {"frequencies": nulls["frequencies"]},
        "loss, nats per token",
        f"{opened.folder.name}: loss of held-out text",
        f"{text.id}  ·  {lines[0].loss.n} documents  ·  95% intervals over documents",
    )
    picture = save(figure, opened.out / "perplexity.png")
    for path in (journal.path, write_csv(opened.out / "perplexity.csv", summary), picture):
        print(path)


def wanted(ablate: str | None, reader: LossReader) -> list[Reading]:
    """ "on", which may be called "none", and the controls asked for, or all that the model has.

    Raises:
        UserError: a control that does not exist, or that this model has not.
    """
    have = reader.readings()
    if ablate is None:
        return list(have)
    named = [one_of(name, NAMED, "--ablate") for name in split_list(ablate, "--ablate")]
    named = ["on" if name == "none" else name for name in named]
    for name in named:
        if name not in have:
            why = "has full attention" if getattr(reader.model, "has_memory", True) else "has no memory"
            raise UserError(f"--ablate holds {name!r}; this model {why}, it can be read under {', '.join(have)}")
    return [name for name in READINGS if name == "on" or name in named]


def _shown(line: Line) -> dict[str, object]:
    value, low, high = (math.exp(x) for x in line.loss[:3])
    shown: dict[str, object] = {
        "memory": line.memory,
        PERPLEXITY: interval(value, low, high, 2),
        "bits per byte": interval(*line.bits_per_byte[:3]),
        "beyond reach": f"{math.exp(line.beyond.value):.2f} (n={line.beyond.n})" if line.beyond.n else "none",
    }
    gains = {"loss less that of on": line.gain, "the same beyond reach": line.gain_beyond}
    return shown | {name: interval(*mean[:3]) for name, mean in gains.items() if line.memory != "on"}


def _notes(text: str, documents: list, reach: int) -> list[str]:
    tokens = sum(len(d.tokens) - 1 for d in documents)
    return [
        f"{text}: {len(documents)} documents, {tokens:,} predicted tokens, by which means are weighted.",
        reach_note(reach) + " Beyond it: tokens with a longer history.",
        "Intervals over documents. Null models: all tokens equally likely; the frequencies of these very tokens.",
    ]


def _flat(line: Line) -> dict[str, object]:
    out: dict[str, object] = {"memory": line.memory, "documents": line.loss.n}
    for name, mean in zip(line._fields[1:], line[1:], strict=True):
        out |= with_ends(name, mean)
    return out | {"perplexity": math.exp(line.loss.value), "documents_beyond": line.beyond.n}

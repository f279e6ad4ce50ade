"""Loss by position in held-out documents: does what was read long ago help, past the training length too?

Prints a table and whether the loss keeps falling past the training length; writes positions.jsonl (a line per text and
reading), positions.csv and two pictures per length to --out.

readings
  on       the memory as it is, which --ablate calls none too
  frozen   nothing is written; reads see the learned initial weights
  off      the memory gives zeros
  window   each token from a fresh state that read the last tokens only, as many as attention can see
"""

import argparse
from collections import Counter
from pathlib import Path

from neuralmem.errors import UserError
from neuralmem.evaluation.bookmark import UNFINISHED, Bookmark
from neuralmem.evaluation.commands.perplexity import NAMED, wanted
from neuralmem.evaluation.curves import Curve, Curves, write_curves
from neuralmem.evaluation.held_out import NAMES, HeldOutRow, open_text, rows_of
from neuralmem.evaluation.journal import Journal
from neuralmem.evaluation.lengths import parse_lengths
from neuralmem.evaluation.losses import LossReader
from neuralmem.evaluation.opened import Opened, add_common_options, check_positive, open_checkpoint
from neuralmem.evaluation.positions import IDENTITY, Bucket, growth, measure, summarise, verdict
from neuralmem.evaluation.recall import TrainingData, read_training_data
from neuralmem.evaluation.screen import progress_bar
from neuralmem.evaluation.tables import interval, print_lines, reach_note, with_ends, write_csv

EXAMPLES = """examples
  python eval.py positions --checkpoint runs/quickstart
  python eval.py positions --checkpoint runs/mac_170m --lengths 32k,128k --samples 512 --haystack file:books.jsonl
"""
LENGTHS, LENGTHS_UNKNOWN = "16x", "4k"
CARRIED = (
    "The training length is that of a row. Rows of a document went on with the memory of the row before, so longer "
    "texts were read in training too; no gradient went from row to row."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options beside those of every command, with their defaults and meanings."""
    add_common_options(parser, "positions")
    add = parser.add_argument
    add("--lengths", metavar="LIST", help="of the texts in tokens: 4096, 4k, 1m, or 16x the training length (16x)")
    add("--samples", type=int, default=16, metavar="N", help="texts per length, fewer where there is no more (16)")
    add("--haystack", default="", metavar="TEXT", help=f"{', '.join(NAMES)} (validation text of the checkpoint)")
    add("--ablate", metavar="LIST", help=f"controls, of {','.join(NAMED[1:])} (all that the model has)")
    add(
        "--shuffle-lines",
        action="store_true",
        help="lines of every text in random order: without a memory the loss is then level",
    )


def check(options: argparse.Namespace) -> None:
    """Refuse values that no checkpoint could make right.

    Raises:
        UserError: naming the option and what it must be.
    """
    check_positive(options, "samples", "stream_chunk", "batch_size", "threads")


def run(options: argparse.Namespace) -> None:
    """Read, print the tables, write the files.

    Raises:
        UserError: an option that cannot be used, a checkpoint that cannot be loaded, a text that is too short.
    """
    training = read_training_data(options.checkpoint)
    given = options.lengths or (LENGTHS_UNKNOWN if training.length is None else LENGTHS)
    lengths = parse_lengths(given, training.length)
    text = open_text(options.haystack, training)
    seed = options.seed if options.shuffle_lines else None
    if options.shuffle_lines:
        text = text._replace(id=f"{text.id}, lines shuffled")
    opened = open_checkpoint(options, "positions", training)
    texts = {}
    for length in lengths:
        texts[length] = list(rows_of(text.documents(), opened.tokenizer.encode, length, options.samples, seed))
        if not texts[length]:
            raise UserError(f"--lengths holds {length}; {text.id} holds less text, give --haystack file:PATH")
    with progress_bar() as (plan, advance):
        segment, bookmark = opened.model.config.attention.segment, Bookmark(opened.out / UNFINISHED)
        reader = LossReader(opened.model, opened.stream_chunk, segment, advance, bookmark)
        readings = wanted(options.ablate, reader)
        journal = Journal(opened.out / "positions.jsonl", IDENTITY)
        plan(sum(len(some) * reader.cost(n + 1, r) for n, some in texts.items() for r in readings))
        found = {
            length: measure(
                rows, reader, readings, opened.subject, journal, training.length, text.id, options.batch_size
            )
            for length, rows in texts.items()
        }
        bookmark.clear()
    summary, pictures = [], []
    for length, rows in found.items():
        buckets = summarise(rows, training.length, options.seed)
        _print(opened, length, buckets, texts[length], text.id, training)
        summary += [{"length": length, **_flat(bucket)} for bucket in buckets]
        pictures += _draw(opened, length, buckets, text.id, training.length)
    for path in (journal.path, write_csv(opened.out / "positions.csv", summary), *pictures):
        print(path)


def _print(
    opened: Opened, length: int, buckets: list[Bucket], rows: list[HeldOutRow], text: str, training: TrainingData
) -> None:
    train = training.length
    readings = list(dict.fromkeys(bucket.memory for bucket in buckets))
    by = {(bucket.memory, bucket.end): bucket for bucket in buckets}
    lines = []
    for end in dict.fromkeys(bucket.end for bucket in buckets):
        own = [by[name, end] for name in readings]
        mark = "" if not own[0].beyond else " *"
        line = {"tokens read before": f"{own[0].start + 1:,}-{end:,}{mark}"}
        line |= {"loss, memory on [95%]": interval(*own[0].loss[:3]), "change": interval(*own[0].change[:3])}
        lines.append(line | {f"{bucket.memory} less on": interval(*bucket.gain[:3]) for bucket in own[1:]})
    kinds = Counter(row.kind for row in rows)
    notes = [
        f"{text}: {len(rows)} texts; {kinds['beginning']} beginnings of documents, {kinds['part']} later parts, "
        f"{kinds['joined']} of shorter documents joined.",
        reach_note(opened.model.reach) + " * Every position lies beyond it.",
        "Change: against the bucket that ends at the training length. Others: loss of the control less that of on.",
    ]
    if training.carried:
        notes.append(CARRIED)
    notes += [verdict(buckets, train, name).sentence for name in readings]
    notes += [growth(buckets, train, name).sentence for name in readings[1:]]
    print_lines(f"loss by position, {length:,} tokens: {opened.folder}", lines, notes)


def _draw(opened: Opened, length: int, buckets: list[Bucket], text: str, train: int | None) -> list[Path]:
    """The loss under every reading, and what each control loses against the memory as it is."""
    readings = list(dict.fromkeys(bucket.memory for bucket in buckets))
    marks = {"training": train} if train else {}
    about = f"{opened.folder.name}  ·  {text}  ·  {buckets[0].texts} texts of {length:,} tokens  ·  95% intervals"

    def draw(name: str, title: str, axis: str, curves: list[Curve]) -> Path:
        axes = ("tokens read before, end of bucket", axis)
        figure = Curves(title, *axes, curves, opened.model.reach, marks, scale="any")
        return write_curves(figure, opened.out / f"{name}_{length}.png", about)

    losses = [
        Curve("memory on" if name == "on" else name, [(b.end, *b.loss[:3]) for b in buckets if b.memory == name])
        for name in readings
    ]
    gains = [Curve(name, [(b.end, *b.gain[:3]) for b in buckets if b.memory == name]) for name in readings[1:]]
    drawn = [draw("positions", "loss by position", "loss, nats per token", losses)]
    if gains:
        title = "what the memory gains, by position"
        drawn.append(draw("positions_gain", title, "loss of the control less that of on, nats", gains))
    return drawn


def _flat(bucket: Bucket) -> dict[str, object]:
    out: dict[str, object] = {"memory": bucket.memory, "start": bucket.start, "end": bucket.end}
    for name in ("loss", "change", "gain", "growth"):
        out |= with_ends(name, getattr(bucket, name))
    return out | {"texts": bucket.texts, "documents": bucket.loss.n, "beyond_reach": bucket.beyond}

"""Needles in a haystack: what is found of RULER's tasks, how far back, and whether the memory found it.

Prints a table; writes rows.jsonl, table.csv and a heat map per task to --out.

tasks
  recall           small models: facts in text, as in training ("@word 123"), one of them is asked for; exact match
  s-niah-pk        a number in repeated noise                      (RULER niah_single_1)
  s-niah-n         a number in text                                (RULER niah_single_2)
  s-niah-w         a uuid in text                                  (RULER niah_single_3)
  s-niah-w-words   words in text
  mk-niah-1        a number in text, among three of other keys    (RULER niah_multikey_1)
  mk-niah-2        a number among numbers of other keys           (RULER niah_multikey_2)
  mk-niah-3        a uuid among uuids of other keys               (RULER niah_multikey_3)
  mv-niah          four numbers of one key in text                (RULER niah_multivalue)
  mq-niah          the numbers of four keys in text               (RULER niah_multiquery)
  vt               five variables that hand on a value, in noise  (RULER vt)
  cwe              the ten most common words of a list            (RULER cwe)
  fwe              the three most frequent coded words            (RULER fwe)
"""

import argparse
from dataclasses import replace
from pathlib import Path

from neuralmem.errors import UserError
from neuralmem.evaluation.asked import NeedleRun, Respondent, settings_before, write_runs
from neuralmem.evaluation.baseline import add_baseline_options, choose, names, open_baseline
from neuralmem.evaluation.bookmark import UNFINISHED, Bookmark
from neuralmem.evaluation.cell import PROTOCOLS
from neuralmem.evaluation.comparison import Contender, compare, print_comparison
from neuralmem.evaluation.haystack import NAMES
from neuralmem.evaluation.heatmap import write_heatmaps
from neuralmem.evaluation.lengths import parse_depths, parse_lengths, parse_samples, split_list
from neuralmem.evaluation.measured_reach import measured_reach
from neuralmem.evaluation.needle_table import print_table
from neuralmem.evaluation.niah import DEPTHS, Settings
from neuralmem.evaluation.niah import run as run_needles
from neuralmem.evaluation.opened import add_common_options, check_positive, one_of, open_checkpoint
from neuralmem.evaluation.prompts import find_task
from neuralmem.evaluation.reader import ABLATIONS, Reader
from neuralmem.evaluation.recall import TrainingData, read_training_data
from neuralmem.evaluation.screen import progress_bar
from neuralmem.evaluation.summary import by_depth, summarise
from neuralmem.evaluation.tables import write_csv

EXAMPLES = """examples
  python eval.py niah --checkpoint runs/quickstart
  python eval.py niah --checkpoint runs/mac_170m --tasks s-niah-pk,s-niah-n,s-niah-w --lengths 2k,4k,8k,16k \\
      --protocol ruler2024 --samples 500 --haystack file:essays.txt
"""

# What is asked when the user says nothing, and the only place that says it: `make demo` and the benchmarks rely on it.
# All controls belong to it (`run`). Without a training length, multiples of it mean nothing.
LENGTHS, SAMPLES = "1x,16x,64x", "250,250,65"
LENGTHS_UNKNOWN, SAMPLES_UNKNOWN = "1k,4k,16k", "50"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options beside those of every command, with their defaults and meanings."""
    add_common_options(parser, "niah")
    add_question_options(parser)
    parser.add_argument("--baseline", metavar="NAME", help=f"ask with {', '.join(names())} in the place of the memory")
    add_baseline_options(parser)


def add_question_options(parser: argparse.ArgumentParser) -> None:
    """What is asked."""
    add = parser.add_argument
    add("--tasks", default="recall", metavar="LIST", help="separated by commas (recall)")
    add("--lengths", metavar="LIST", help="tokens: 4096, 4k, 1m, or 16x the training length (1x,16x,64x)")
    add("--samples", metavar="LIST", help="per task and haystack: one number, or one per length (250,250,65)")
    add("--depths", metavar="LIST", help="percents, or random (0,25,50,75,100; random for RULER's protocols)")
    add("--ablate", metavar="LIST", help=f"controls, of {','.join(ABLATIONS)} (all where there is a memory)")
    add("--protocol", default="exact", metavar="NAME", help="length rule: exact, ruler2024, ruler2025, lm-eval (exact)")
    add(
        "--haystack",
        default="",
        metavar="LIST",
        help=f"{', '.join(NAMES)} (as trained on; a task that makes its own ignores it)",
    )
    add("--facts", type=int, default=6, metavar="N", help="facts in a prompt of the recall task, 5 at least (6)")
    add("--max-new-tokens", type=int, metavar="N", help="length of the answer (RULER's; recall: that of its values)")


def check(options: argparse.Namespace) -> None:
    """Refuse values that no checkpoint could make right.

    Raises:
        UserError: naming the option and what it must be.
    """
    if options.facts < 5:
        raise UserError(f"--facts is {options.facts}; it must be at least 5, the asked one and 4 others")
    check_positive(options, "stream_chunk", "batch_size", "max_new_tokens", "threads")


def run(options: argparse.Namespace) -> None:
    """Ask, print the table, write the files.

    Raises:
        UserError: an option that cannot be used, a checkpoint that cannot be loaded.
    """
    training = read_training_data(options.checkpoint)
    settings = make_settings(options, training)
    opened = open_checkpoint(options, f"niah_{options.baseline}" if options.baseline else "niah", training)
    model, out = opened.model, opened.out
    if options.ablate is None and model.has_memory:
        settings = replace(settings, ablations=ABLATIONS)
    refuse_other_answers(out, settings)
    subject, name, title = opened.subject, opened.folder.name, str(opened.folder)
    measured = measured_reach(model)
    with progress_bar() as (plan, advance):

        def begin(tokens: int) -> None:
            whom = Respondent(name, name, subject, settings.ablations)
            write_runs(out, NeedleRun(settings, (whom,), "table.csv"), measured)
            plan(tokens)

        segment, bookmark = model.config.attention.segment, Bookmark(out / UNFINISHED)
        reader = Reader(model, opened.tokenizer, opened.stream_chunk, advance, segment, bookmark)
        if options.baseline:
            reader, label = open_baseline(options.baseline, reader, choose(options, model.reach))
            subject, title = replace(subject, baseline=label), f"{title} with {label}"
        rows = run_needles(settings, reader, subject, out, training, begin)
        bookmark.clear()
    print_table(summarise(rows), title)
    if measured is not None:
        print(f"Measured: {measured:,} tokens back a changed token last alters a logit while nothing is written.")
    if options.baseline:
        plain = [row for row in rows if row.ablation == "none"]
        print_comparison(compare([Contender(subject.baseline, plain)]), str(opened.folder), model.reach)
    table = write_csv(out / "table.csv", by_depth(rows, settings.grid))
    for path in [out / "rows.jsonl", table, *write_heatmaps(rows, settings.grid, out, name)]:
        print(path)


def make_settings(options: argparse.Namespace, training: TrainingData) -> Settings:
    """Options to settings, each checked."""
    exact = options.protocol == "exact"
    depths = options.depths or (",".join(f"{depth:g}" for depth in DEPTHS) if exact else "random")
    found = parse_depths(depths)
    known = training.length is not None
    lengths = tuple(parse_lengths(options.lengths or (LENGTHS if known else LENGTHS_UNKNOWN), training.length))
    samples = options.samples or (SAMPLES if known and not options.lengths else SAMPLES_UNKNOWN)
    return Settings(
        tasks=tuple(find_task(name) for name in split_list(options.tasks, "--tasks")),
        lengths=lengths,
        depths=None if found is None else tuple(found),
        samples=parse_samples(samples, len(lengths)),
        seed=options.seed,
        protocol=one_of(options.protocol, PROTOCOLS, "--protocol"),
        haystacks=tuple(split_list(options.haystack, "--haystack")) if options.haystack else (),
        ablations=tuple(
            dict.fromkeys(
                (
                    "none",
                    *(one_of(name, ABLATIONS, "--ablate") for name in split_list(options.ablate or "none", "--ablate")),
                )
            )
        ),
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        facts=options.facts,
    )


def refuse_other_answers(out: Path, settings: Settings) -> None:
    """Rows with answers of another length, or another number of facts, are not gone on with.

    Raises:
        UserError: the folder holds such rows.
    """
    before = settings_before(out)
    for name in ("max_new_tokens", "facts"):
        now = getattr(settings, name)
        if before.get(name, now) != now:
            option = name.replace("_", "-")
            raise UserError(f"--{option} is {now}; {out} has results with {before[name]}, give another --out")

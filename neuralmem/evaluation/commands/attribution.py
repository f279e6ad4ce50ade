"""Where answers come from: the text is read again without each of its parts; the needle's must matter most.

Only needles beyond the reach of attention are asked for, and only parts beyond it are ranked, so what is found can have
come through the memory alone. With the memory off, the control, the needle's part ranks first as often as by chance.
Reading again costs up to --parts / 2 times what reading costs.

Prints a table; writes attribution.jsonl, attribution.csv and a picture per task and length to --out.
"""

import argparse

from neuralmem.errors import UserError
from neuralmem.evaluation.attribution import ABLATIONS, IDENTITY, Replay, grid_unit
from neuralmem.evaluation.attribution import run as run_attribution
from neuralmem.evaluation.attribution_summary import draw, summarise
from neuralmem.evaluation.cell import PROTOCOLS
from neuralmem.evaluation.haystack import NAMES
from neuralmem.evaluation.journal import Journal
from neuralmem.evaluation.lengths import parse_lengths, parse_samples, split_list
from neuralmem.evaluation.niah import Settings
from neuralmem.evaluation.opened import add_common_options, check_positive, one_of, open_checkpoint
from neuralmem.evaluation.prompts import TASKS, Task, find_task
from neuralmem.evaluation.reader import MODES
from neuralmem.evaluation.recall import FACTS, read_training_data
from neuralmem.evaluation.screen import progress_bar
from neuralmem.evaluation.tables import print_lines, write_csv

EXAMPLES = """examples
  python eval.py attribution --checkpoint runs/quickstart
  python eval.py attribution --checkpoint runs/mac_170m --tasks s-niah-n --lengths 4k --parts 32 --samples 20
"""
NOTES = (
    "First: share of prompts in which the answer becomes least likely without the needle's part, 95% interval.\n"
    "Chance: parts that hold the needle among all parts that are ranked. Rank: mean place of the needle's part.\n"
    "Fall: of the answer's log-likelihood, in nats, without the needle's part, and without one of the others."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options beside those of every command; --batch-size counts texts read side by side."""
    add_common_options(parser, "attribution", "texts of one prompt, each without another part, read together")
    add = parser.add_argument
    add("--tasks", default="recall", metavar="LIST", help="of niah, those with one answer (recall)")
    add("--lengths", metavar="LIST", help="tokens, or 4x the training length (4x; 1k where it is not known)")
    add("--samples", default="50", metavar="LIST", help="per task and haystack: one number, or one per length (50)")
    add("--parts", type=int, default=64, metavar="N", help="parts that a prompt is cut into, at most (64)")
    add("--ablate", default=",".join(ABLATIONS), metavar="LIST", help="memory modes: none,off,frozen (none,off)")
    add("--protocol", default="exact", metavar="NAME", help="length rule: exact, ruler2024, ruler2025, lm-eval (exact)")
    add("--haystack", default="", metavar="LIST", help=f"{', '.join(NAMES)} (as trained on; noise for s-niah-pk)")
    add("--facts", type=int, default=FACTS, metavar="N", help="facts in a prompt of the recall task (6)")


def check(options: argparse.Namespace) -> None:
    """Refuse values that no checkpoint could make right.

    Raises:
        UserError: naming the option and what it must be.
    """
    check_positive(options, "parts", "facts", "stream_chunk", "batch_size", "threads")
    for task in _tasks(options.tasks):
        if not task.single:
            single = ", ".join(name for name, one in TASKS.items() if one.single)
            raise UserError(f"--tasks holds {task.name!r}, which has several answers; it must be one of {single}")


def run(options: argparse.Namespace) -> None:
    """Measure, print the table, write the files.

    Raises:
        UserError: an option that cannot be used, a checkpoint that cannot be loaded or has nothing beyond its reach.
    """
    training = read_training_data(options.checkpoint)
    modes = ["none", *(name for name in MODES if MODES[name] != "on")]  # reset and shuffled forget every part
    lengths = tuple(parse_lengths(options.lengths or ("4x" if training.length else "1k"), training.length))
    settings = Settings(
        tasks=_tasks(options.tasks),
        lengths=lengths,
        samples=parse_samples(options.samples, len(lengths)),
        seed=options.seed,
        protocol=one_of(options.protocol, PROTOCOLS, "--protocol"),
        haystacks=tuple(split_list(options.haystack, "--haystack")) if options.haystack else (),
        ablations=tuple(one_of(name, modes, "--ablate") for name in split_list(options.ablate, "--ablate")),
        facts=options.facts,
    )
    opened = open_checkpoint(options, "attribution", training)
    model, out = opened.model, opened.out
    if model.reach >= max(settings.lengths):
        raise UserError(
            f"--lengths is at most {max(settings.lengths):,}; attention sees all of that, so no answer must have come "
            "through the memory"
        )
    journal = Journal(out / "attribution.jsonl", IDENTITY)
    with progress_bar() as (plan, advance):
        replay = Replay(options.parts, grid_unit(model.config), options.batch_size, opened.stream_chunk, advance)
        rows = run_attribution(settings, model, opened.tokenizer, opened.subject, journal, training, replay, plan)
    lines = summarise(rows)
    print_lines(f"where answers come from: {opened.folder}", columns(lines), [NOTES])
    table = write_csv(out / "attribution.csv", lines)
    for path in [journal.path, table, *draw(rows, out, opened.folder.name)]:
        print(path)


def _tasks(text: str) -> tuple[Task, ...]:
    return tuple(find_task(name) for name in split_list(text, "--tasks"))


def columns(lines: list[dict]) -> list[dict[str, str]]:
    """The table's lines as they are printed."""
    return [
        {
            "task": line["task"],
            "length": f"{line['nominal_len']:,}",
            "memory": "on" if line["ablation"] == "none" else line["ablation"],
            "n": f"{line['n']}",
            "parts": f"{line['parts']:.0f} of {line['part_tokens']}",
            "first": f"{line['hit1']:.1%} ({line['hit1_low']:.1%} to {line['hit1_high']:.1%})",
            "chance": f"{line['chance']:.1%}",
            "rank": f"{line['rank']:.1f}",
            "fall, needle": f"{line['drop_needle']:.3f}",
            "fall, others": f"{line['drop_others']:.4f}",
        }
        for line in lines
    ]

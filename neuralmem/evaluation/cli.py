"""The command line of eval.py: options in, one line per error, exit code 2 for what the user can put right.

Special: options are not guessed from their beginnings; a misspelt one is refused with the nearest. What evaluation
needs beside the package itself is imported once there is something to evaluate.
"""

import argparse
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from neuralmem.errors import UserError, nearest
from neuralmem.evaluation.haystack import NAMES

HELP = """Evaluate a checkpoint.

  niah    needles in a haystack: what is found, how far back, and whether the memory found it

example
  python eval.py niah --checkpoint runs/quickstart

python eval.py niah --help shows its options.
"""
NIAH = """Needles in a haystack. Prints a table; writes rows.jsonl, table.csv and a heat map per task to --out.

tasks
  recall           small models: facts in text, as in training ("@word 123"), one of them is asked for; exact match
  s-niah-pk        a number in repeated noise              (RULER niah_single_1)
  s-niah-n         a number in text                        (RULER niah_single_2)
  s-niah-w         a uuid in text                          (RULER niah_single_3)
  s-niah-w-words   words in text"""
EXAMPLES = """examples
  python eval.py niah --checkpoint runs/quickstart
  python eval.py niah --checkpoint runs/mac_170m --tasks s-niah-pk,s-niah-n,s-niah-w --lengths 2k,4k,8k,16k \\
      --protocol ruler2024 --samples 500 --haystack file:essays.txt

A run that was stopped goes on where it was when the same command is given again.
"""


class Parser(argparse.ArgumentParser):
    """A parser that raises instead of printing its usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message.replace("argument ", "", 1))


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate what the command line asks for.

    Args:
        arguments: the options; None takes those the program was started with

    Returns:
        The exit code: 0, 2 for a user's error, 130 when stopped from the keyboard.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        if not given or given[0] in ("-h", "--help"):
            print(HELP)
            return 0
        if given[0] != "niah":
            raise UserError(f"{given[0]!r} is not an evaluation; it must be niah{nearest(given[0], ['niah'])}")
        options = parse(given[1:])
        from neuralmem.evaluation.command import evaluate

        evaluate(options)
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the rows so far are kept, the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of `eval.py niah`.

    Raises:
        UserError: an option that does not exist, with the nearest, or a value of the wrong type.
    """
    parser = niah_parser()
    try:
        options, unknown = parser.parse_known_args(arguments)
    except UserError:
        known = [name for action in parser._actions for name in action.option_strings]
        _refuse_unknown([a for a in arguments if a.startswith("--")], known)
        raise
    known = [name for action in parser._actions for name in action.option_strings]
    _refuse_unknown(unknown, known)
    if options.facts < 5:
        raise UserError(f"--facts is {options.facts}; it must be at least 5, the asked one and 4 others")
    for name in ("stream_chunk", "batch_size", "max_new_tokens", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    return options


def niah_parser() -> Parser:
    """All options, with their defaults and meanings."""
    parser = Parser(
        prog="eval.py niah",
        description=NIAH,
        epilog=EXAMPLES,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="RUN", help="folder of a saved model")
    add("--tasks", default="recall", metavar="LIST", help="separated by commas (recall)")
    add("--lengths", metavar="LIST", help="tokens: 4096, 4k, 1m, or 16x the training length (1x,16x,64x)")
    add("--samples", metavar="LIST", help="per task and haystack: one number, or one per length (250,250,65)")
    add("--depths", metavar="LIST", help="percents, or random (0,25,50,75,100; random for RULER's protocols)")
    add("--ablate", metavar="LIST", help="controls, of none,frozen,off,reset (all where there is a memory)")
    add("--protocol", default="exact", metavar="NAME", help="length rule: exact, ruler2024, ruler2025, lm-eval (exact)")
    add("--haystack", default="", metavar="LIST", help=f"{', '.join(NAMES)} (as trained on; noise for s-niah-pk)")
    add("--seed", type=int, default=42, metavar="N", help="same seed, same prompts (42)")
    add("--facts", type=int, default=6, metavar="N", help="facts in a prompt of the recall task, 5 at least (6)")
    add("--max-new-tokens", type=int, metavar="N", help="length of the answer (128; recall: as long as its values)")
    add("--out", metavar="DIR", help="where results go (RUN/niah)")
    add("--stream-chunk", type=int, metavar="N", help="tokens read per call, at most (512; 4096 on a GPU)")
    add("--batch-size", type=int, default=16, metavar="N", help="prompts read together (16)")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, ... (auto)")
    add("--dtype", default="float32", choices=["float32", "bfloat16", "float64"], help="of the weights (float32)")
    add("--threads", type=int, metavar="N", help="CPU threads (as torch does)")
    add("--debug", action="store_true", help="show where an error comes from")
    return parser


def _refuse_unknown(given: Sequence[str], known: Sequence[str]) -> None:
    for name in (word.split("=")[0] for word in given):
        if name not in known:
            raise UserError(f"{name} is not an option{nearest(name, known)}")

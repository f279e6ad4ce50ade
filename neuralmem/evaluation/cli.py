"""The command line of eval.py: options in, one line per error, exit code 2 for what the user can put right.

Special: a command is a file of commands/, found by its name, so there is no list to maintain. Options are not guessed
from their beginnings; a misspelt one is refused with the nearest.
"""

import argparse
import ast
import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from neuralmem.errors import UserError, nearest

FOLDER = Path(__file__).parent / "commands"
HELP = """Evaluate a checkpoint.

{commands}

example
  python eval.py niah --checkpoint runs/quickstart

python eval.py COMMAND --help shows its options.
"""
AGAIN = "A run that was stopped goes on where it was when the same command is given again.\n"


class Parser(argparse.ArgumentParser):
    """A parser that raises instead of printing its usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message.replace("argument ", "", 1))


def commands() -> dict[str, str]:
    """Names and first lines of what can be evaluated; nothing of it is imported.

    Example:
        >>> commands()["niah"][:22]
        'Needles in a haystack:'
    """
    return {name: text.partition("\n")[0] for name, text in docstrings().items()}


def docstrings() -> dict[str, str]:
    """Names and descriptions of what can be evaluated; nothing of it is imported."""
    files = sorted(path for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
    return {path.stem.replace("_", "-"): ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "" for path in files}


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate what the command line asks for.

    Args:
        arguments: the options; None takes those the program was started with

    Returns:
        The exit code: 0, 1 where a check has failed, 2 for a user's error, 130 when stopped from the keyboard.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        if not given or given[0] in ("-h", "--help"):
            known = commands()
            width = max(map(len, known)) + 2
            print(HELP.format(commands="\n".join(f"  {name:{width}}{text}" for name, text in known.items())))
            return 0
        options = parse(given[0], given[1:])
        code = find(given[0]).run(options) or 0
        report(given, options)
        return code
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the rows so far are kept, the same command goes on from here", file=sys.stderr)
        return 130


def report(given: Sequence[str], options: argparse.Namespace) -> None:
    """Write the report of what was evaluated, if it has left results in a folder of its own.

    Args:
        given: the command and its arguments
        options: the same, parsed, with the folder that was used as `out`
    """
    from neuralmem.evaluation import html_report  # torch: too slow for --help

    if options.out is None:
        return
    folder = Path(options.out)
    found = html_report.find_lines(folder)
    if found and found[0] == given[0]:
        try:
            html_report.write_machine(folder, given)
            print(html_report.write_report(folder, docstrings()))
        except (OSError, ValueError, UserError) as error:  # a page is not worth a run
            print(f"warning: no report of {folder}: {' '.join(str(error).split())}", file=sys.stderr)


def find(name: str) -> Any:
    """The module of a command: `add_options(parser)`, `check(options)`, and `run(options)` -> exit code or None.

    Raises:
        UserError: there is none of that name.
    """
    if name not in commands():
        known = list(commands())
        raise UserError(f"{name!r} is not an evaluation; it must be one of {', '.join(known)}{nearest(name, known)}")
    return importlib.import_module(f"neuralmem.evaluation.commands.{name.replace('-', '_')}")


def parse(command: str, arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command.

    Raises:
        UserError: an option that does not exist, with the nearest, or a value of the wrong type.
    """
    module = find(command)
    parser = Parser(
        prog=f"eval.py {command}",
        description=module.__doc__,
        epilog=f"{getattr(module, 'EXAMPLES', '')}\n{AGAIN}",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_options(parser)
    known = [name for action in parser._actions for name in action.option_strings]
    try:
        options, unknown = parser.parse_known_args(arguments)
    except UserError:
        _refuse_unknown([a for a in arguments if a.startswith("--")], known)
        raise
    _refuse_unknown(unknown, known)
    module.check(options)
    return options


def _refuse_unknown(given: Sequence[str], known: Sequence[str]) -> None:
    for name in (word.split("=")[0] for word in given):
        if name not in known:
            raise UserError(f"{name} is not an option{nearest(name, known)}")

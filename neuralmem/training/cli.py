"""The command line of train.py: a YAML file per experiment, every field also an option, errors in one line.

Special: LightningCLI without its sharp edges. No subcommand, no abbreviated options, the command line wins over a
checkpoint's hyperparameters, a second run may use the same folder, and resuming never unpickles. Lightning is imported
only once there is something to train, so that the short help is quick.
"""

import sys
import traceback
from collections.abc import Sequence

from neuralmem.errors import UserError
from neuralmem.training.help import HELP

INTERRUPTED = 130  # 128 and the number of SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what the command line asks for.

    Args:
        arguments: the options; None takes those the program was started with

    Returns:
        The exit code: 0, 2 for a user's error, or 130 if it was interrupted before training began.

    Raises:
        SystemExit: it was told to stop by a signal, and saved; the code is 128 + the signal's number.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    if given[:1] == ["fit"]:
        given = given[1:]  # what Lightning's users are used to
    asks = [flag in given for flag in ("-h", "--help")]
    if not given or (any(asks) and "all" not in given):
        print(HELP)
        return 0
    try:
        from neuralmem.training.command_line import train

        train(["--help"] if any(asks) else given)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning's answer to one before training began
            return INTERRUPTED
        raise
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0

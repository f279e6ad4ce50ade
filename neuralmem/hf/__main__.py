"""`python -m neuralmem.hf RUN FOLDER`: a checkpoint as a folder for the Hugging Face hub.

python -m neuralmem.hf runs/quickstart hub/quickstart
hf upload NAME hub/quickstart
"""

import argparse
import sys
import traceback
from collections.abc import Sequence

from neuralmem.errors import UserError
from neuralmem.hf.export import export


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        arguments: the options; None takes those the program was started with

    Returns:
        The exit code: 0, or 2 for a user's error.
    """
    parser = argparse.ArgumentParser(
        "python -m neuralmem.hf", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a folder of neuralmem.save, or of training, or neuralmem/NAME of the package")
    parser.add_argument("folder", help="where to write; a README.md there is kept")
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    given = parser.parse_args(arguments)
    try:
        export(given.run, given.folder)
    except UserError as error:
        if given.debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.folder}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())

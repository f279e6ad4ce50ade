"""The one kind of error that a user's input can cause: a single line that says what to change."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Input that cannot be used. The message names the field, what was given and what is allowed.

    The command-line doors print it as one line and exit with code 2; from Python it is a ValueError.
    """


def nearest(name: object, choices: Iterable[str]) -> str:
    """A hint for an error message: the valid name closest to a wrong one, or nothing.

    Example:
        >>> nearest("titan", ["titans", "delta"])
        "; did you mean 'titans'?"
        >>> nearest("xyz", ["titans", "delta"])
        ''
    """
    close = difflib.get_close_matches(str(name), list(choices), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""

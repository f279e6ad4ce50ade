"""Lines of a table with named columns: on screen, and as CSV."""

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from neuralmem.evaluation.table import NARROW


def print_lines(title: str, lines: Sequence[Mapping[str, str]], notes: str) -> None:
    """Print a table of texts, the first column to the left, and below it the sentences that it needs to be read."""
    console = Console(width=None if sys.stdout.isatty() else NARROW)
    table = Table(title=title, title_style="bold", title_justify="left")
    for number, name in enumerate(lines[0] if lines else ()):
        table.add_column(name, justify="right" if number else "left")
    for line in lines:
        table.add_row(*map(Text, line.values()))
    console.print(table)
    console.print(Text(notes, style="dim"))


def to_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """Lines of the same columns as CSV; floats to six digits.

    Example:
        >>> to_csv([{"length": 64, "share": 2 / 3}])
        'length,share\\n64,0.666667\\n'
    """
    text = io.StringIO()
    table = csv.DictWriter(text, list(lines[0]) if lines else [], lineterminator="\n")
    table.writeheader()
    for line in lines:
        table.writerow({name: f"{x:.6g}" if isinstance(x, float) else x for name, x in line.items()})
    return text.getvalue()

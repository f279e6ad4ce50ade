"""Tables of results: a line is a dictionary of columns; on screen and as CSV.

Special: a `Share` is printed with its interval and n, and becomes four columns of the CSV.
"""

import csv
import io
import math
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from neuralmem.evaluation.stats import Share
from neuralmem.evaluation.table import NARROW

Line = dict[str, Any]
"""Column names to values: text, numbers, or a `Share`; None where there is none."""


def print_lines(title: str, lines: Sequence[Line], notes: Sequence[str] = (), console: Console | None = None) -> None:
    """Print a table and what is to be said below it."""
    console = console or Console(width=None if sys.stdout.isatty() else NARROW)
    table = Table(title=title, title_style="bold", title_justify="left")
    columns = list(dict.fromkeys(name for line in lines for name in line if _cell(line[name]).plain))
    for name in columns:
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(*(_cell(line.get(name)) for name in columns))
    console.print(table)
    for note in notes:
        console.print(Text(note, style="dim"))


def _cell(value: Any) -> Text:
    """A value as one reads it.

    Example:
        >>> [_cell(x).plain for x in (12345, 0.5, 0.00123, 2345.6, None)]
        ['12,345', '0.500', '0.0012', '2,346', '']
    """
    if value is None or (isinstance(value, Share) and not value.n):
        return Text("")
    if isinstance(value, Share):
        interval = f"{100 * value.low:.1f}-{100 * value.high:.1f} ({value.n})"
        return Text.assemble((f"{100 * value.share:.1f}%", "bold"), "\n", (interval, "dim"))
    if isinstance(value, float):
        form = ",.0f" if abs(value) >= 1000 else ".2g" if 0 < abs(value) < 0.01 else ".3f"
        return Text("" if math.isnan(value) else f"{value:{form}}")
    return Text(f"{value:,}" if isinstance(value, int) else str(value))


def to_csv(lines: Sequence[Line]) -> str:
    r"""The same as CSV.

    Example:
        >>> to_csv([{"facts": 4, "beyond reach": Share(1, 2, 0.5, 0.1, 0.9), "nll": 0.25}])
        'facts,beyond_reach,beyond_reach_low,beyond_reach_high,beyond_reach_n,nll\n4,0.5,0.1,0.9,2,0.25\n'
    """
    flat = [
        dict(pair for name, value in line.items() for pair in _flat(name.replace(" ", "_"), value)) for line in lines
    ]
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(name for line in flat for name in line)), lineterminator="\n")
    table.writeheader()
    table.writerows(flat)
    return text.getvalue()


def _flat(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Share):
        ends = {name: value.share, f"{name}_low": value.low, f"{name}_high": value.high}
        return [*((key, round(x, 6) if value.n else "") for key, x in ends.items()), (f"{name}_n", value.n)]
    if isinstance(value, float):
        return [(name, "" if math.isnan(value) else round(value, 6))]
    return [(name, "" if value is None else value)]

"""Tables of results: a line is a dictionary of columns; on screen and as CSV.

Special: a `Share` is printed with its interval and n, and becomes four columns of the CSV.
"""

import csv
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from neuralmem import durable
from neuralmem.evaluation.bootstrap import Mean
from neuralmem.evaluation.stats import Share

NARROW = 150  # columns; what does not go to a terminal is written this wide
Line = dict[str, Any]
"""Column names to values: text, numbers, or a `Share`; None where there is none."""


def screen() -> Console:
    """What tables are printed to: as wide as the terminal, or a fixed width where there is none."""
    return Console(width=None if sys.stdout.isatty() else NARROW)


def print_lines(title: str, lines: Sequence[Line], notes: Sequence[str] = (), console: Console | None = None) -> None:
    """Print a table and what is to be said below it; columns without a value are left out.

    Numbers stand at the right, and so does all text but that of the first column, which names the line.
    """
    console = console or screen()
    table = Table(title=title, title_style="bold", title_justify="left")
    columns = list(dict.fromkeys(name for line in lines for name in line if _cell(line[name]).plain))
    for number, name in enumerate(columns):
        names_line = number == 0 and isinstance(lines[0].get(name), str)
        table.add_column(name, justify="left" if names_line else "right")
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
        ends = f"{100 * value.low:.1f}-{100 * value.high:.1f} ({value.n})"
        return Text.assemble((f"{100 * value.share:.1f}%", "bold"), "\n", (ends, "dim"))
    if isinstance(value, float):
        form = ",.0f" if abs(value) >= 1000 else ".2g" if 0 < abs(value) < 0.01 else ".3f"
        return Text("" if math.isnan(value) else f"{value:{form}}")
    return Text(f"{value:,}" if isinstance(value, int) else str(value))


def interval(value: float, low: float, high: float, digits: int = 3) -> str:
    """A number with its interval as one reads it.

    Example:
        >>> interval(1.5, 1.25, 1.75, 2), interval(1.5, math.nan, math.nan, 1), interval(math.nan, 0, 0)
        ('1.50 [1.25, 1.75]', '1.5', '-')
    """
    if math.isnan(value):
        return "-"
    text = f"{value:.{digits}f}"
    return text if math.isnan(low) else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def reach_note(reach: int) -> str:
    """What attention sees without a memory, as a sentence.

    Example:
        >>> reach_note(30)
        'Reach: attention windows and convolutions alone see 30 tokens.'
    """
    seen = "everything (full attention)" if reach >= sys.maxsize else f"{reach:,} tokens"
    return f"Reach: attention windows and convolutions alone see {seen}."


def with_ends(name: str, found: Share | Mean) -> Line:
    """Columns of a value and of the ends of its interval; all empty where nothing was measured.

    Example:
        >>> with_ends("loss", Mean(2.0, 1.5, 2.5, 8))
        {'loss': 2.0, 'loss_low': 1.5, 'loss_high': 2.5}
    """
    value, low, high = found[2:] if isinstance(found, Share) else found[:3]
    columns = {name: value, f"{name}_low": low, f"{name}_high": high}
    return columns if found.n else dict.fromkeys(columns)


def to_csv(lines: Sequence[Line]) -> str:
    r"""The same as CSV: floats to seven digits, empty where there is no value or none that is a number.

    Example:
        >>> beyond = Share(1, 2, 0.5, 0.1, 0.9)
        >>> to_csv([{"facts": 4, "beyond reach": beyond, "nll": 0.25}, {"facts": 8, "nll": math.nan}])
        'facts,beyond_reach,beyond_reach_low,beyond_reach_high,beyond_reach_n,nll\n4,0.5,0.1,0.9,2,0.25\n8,,,,,\n'
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
        ends = with_ends(name, value).items()
        return [*(pair for key, x in ends for pair in _flat(key, x)), (f"{name}_n", value.n)]
    if isinstance(value, float):
        return [(name, "" if math.isnan(value) else float(f"{value:.7g}"))]
    return [(name, "" if value is None else value)]


def write_csv(path: Path, lines: Sequence[Line]) -> Path:
    """Write lines as CSV, whole or not at all; returns the path."""
    durable.write_file(path, to_csv(lines))
    return path

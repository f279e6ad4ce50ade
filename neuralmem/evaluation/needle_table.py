"""The table on screen: every line with its null model, its score beyond reach with interval and n, and its controls."""

from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from neuralmem.evaluation.stats import Share
from neuralmem.evaluation.summary import CONTROLS, Line
from neuralmem.evaluation.tables import reach_note, screen


def print_table(lines: Sequence[Line], checkpoint: str, console: Console | None = None) -> None:
    """Print the table and the few words that it needs to be read."""
    console = console or screen()
    table = Table(title=f"needle in a haystack: {checkpoint}", title_style="bold", title_justify="left")
    table.add_column("task\nhaystack")
    for name in (
        "length\ntokens",
        "accuracy\n95%",
        "null\nmodel",
        "beyond reach\n95% (n)",
        "strict",
        "likeliest\nof 10",
    ):
        table.add_column(name, justify="right")
    ran = [name for name in CONTROLS if any(name in line.controls for line in lines)]
    for name in ran:
        table.add_column(f"memory\n{name}", justify="right")
    before = None
    for line in lines:
        about = (line.group.task, line.group.haystack)
        if before not in (None, about):
            table.add_section()
        table.add_row(*_cells(line, ran, repeat=about == before))
        before = about
    console.print(table)
    console.print(Text(legend(lines, ran), style="dim"))


def legend(lines: Sequence[Line], ran: Sequence[str]) -> str:
    """What the columns mean, with the reach of attention in front."""
    text = [
        reach_note(lines[0].reach if lines else 0),
        "Null model: share of needles within reach, found without a memory (cwe, fwe: counting what is within reach).",
        "Beyond reach: needles that all lie farther back than that, so that only the memory can answer.",
    ]
    if ran:
        text.append(
            "Controls, on the same needles: frozen writes nothing, off silences the memory, reset empties the state "
            "before the question, shuffled asks the state of another prompt."
        )
    return "\n".join(text)


def _cells(line: Line, ran: Sequence[str], repeat: bool) -> list[RenderableType]:
    name = Text("" if repeat else f"{line.group.task}\n{line.group.haystack}")
    good = "bold green" if line.beyond.n and line.beyond.low > line.null else "bold"
    cells: list[RenderableType] = [
        name,
        f"{line.group.length:,}" + ("" if line.tokens == line.group.length else f"\n{line.tokens:,.0f}"),
        Text.assemble((_percent(line.accuracy.share), "bold"), "\n", (_interval(line.accuracy), "dim")),
        _percent(line.null),
        Text.assemble((_percent(line.beyond.share), good), "\n", (f"{_interval(line.beyond)} ({line.beyond.n})", "dim"))
        if line.beyond.n
        else Text("none\nbeyond", style="dim"),
        _percent(line.strict.share),
        _percent(line.first.share) if line.first.n else "",
    ]
    for control in ran:
        share = line.controls.get(control)
        cells.append("" if share is None else Text.assemble(_percent(share.share), "\n", (_interval(share), "dim")))
    return cells


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _interval(share: Share) -> str:
    return f"{100 * share.low:.1f}-{100 * share.high:.1f}"

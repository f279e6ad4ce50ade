"""Memories side by side on the same questions: what each finds, the bytes it keeps, and the time it takes.

Special: what is beyond reach is so for the checkpoint that is compared with the others, so that every line of a group
is about the same needles. What is weighed against accuracy is what has to be kept until the question comes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from neuralmem.evaluation.rows import Row
from neuralmem.evaluation.stats import Share, wilson
from neuralmem.evaluation.summary import Group, score
from neuralmem.evaluation.tables import reach_note, screen


class Contender(NamedTuple):
    """A memory that was asked, and all its rows under one ablation; those of one `series` differ in size alone."""

    name: str
    rows: Sequence[Row]
    series: str = ""


@dataclass(frozen=True)
class Outcome:
    """One memory in one group of questions.

    Args:
        group: task, protocol, haystack and length
        name: of the memory
        series: what it has in common with others that differ in size
        label: the baseline's, with its choices
        accuracy: the task's own score over all needles
        beyond: over those beyond the first contender's reach
        null: the null model of that reach
        state_bytes: of the model that answers one question, mean
        text_bytes, index_bytes: of what a baseline keeps for it, mean
        read_ms, ask_ms: milliseconds for one question, mean: before it, and from it to the answer
    """

    group: Group
    name: str
    series: str
    label: str
    accuracy: Share
    beyond: Share
    null: float
    state_bytes: float
    text_bytes: float
    index_bytes: float
    read_ms: float
    ask_ms: float

    @property
    def kept_bytes(self) -> float:
        """What has to be kept from the reading to the question: the state, or text and index where those are kept.

        A baseline of text answers from a fresh state, which is needed while it answers and not before.
        """
        return self.text_bytes + self.index_bytes or self.state_bytes


def by_ablation(name: str, series: str, rows: Sequence[Row]) -> Iterator[Contender]:
    """A contender for every ablation that a memory was asked under; the controls are series of their own."""
    for ablation in dict.fromkeys(row.ablation for row in rows):
        title = name if ablation == "none" else f"{name}, memory {ablation}"
        own = [row for row in rows if row.ablation == ablation]
        yield Contender(title, own, series if ablation == "none" else title)


def compare(contenders: Sequence[Contender]) -> list[Outcome]:
    """Outcomes, group by group in the order of the first contender's rows; the first contender's reach counts."""
    first = contenders[0].rows
    beyond = {row.prompt_sha256 for row in first if row.beyond_window}
    found = []
    for group in dict.fromkeys(map(_group, first)):
        null = _mean([row.null for row in first if _group(row) == group])
        for contender in contenders:
            own = [row for row in contender.rows if _group(row) == group]
            if own:
                found.append(_outcome(contender, own, [row for row in own if row.prompt_sha256 in beyond], null))
    return found


def _group(row: Row) -> Group:
    return Group(row.task, row.protocol, row.haystack_id, row.nominal_len)


def _outcome(contender: Contender, rows: Sequence[Row], beyond: Sequence[Row], null: float) -> Outcome:
    return Outcome(
        _group(rows[0]),
        contender.name,
        contender.series or contender.name,
        rows[0].baseline,
        accuracy=_share(rows),
        beyond=_share(beyond),
        null=null,
        state_bytes=_mean([row.state_bytes for row in rows]),
        text_bytes=_mean([row.text_bytes for row in rows]),
        index_bytes=_mean([row.index_bytes for row in rows]),
        read_ms=1000 * _mean([row.read_s for row in rows]),
        ask_ms=1000 * _mean([row.wall_s - row.read_s for row in rows]),
    )


def _share(rows: Sequence[Row]) -> Share:
    return wilson(sum(map(score, rows)), len(rows))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def to_rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One row of a table per group and memory, with accuracies, intervals, n, bytes and milliseconds."""
    rows = []
    for o in outcomes:
        low, high = (o.beyond.low, o.beyond.high) if o.beyond.n else (math.nan, math.nan)
        rows.append(
            {"task": o.group.task, "protocol": o.group.protocol, "haystack": o.group.haystack}
            | {"nominal_len": o.group.length, "memory": o.name, "baseline": o.label, "null": o.null}
            | {"n": o.accuracy.n, "accuracy": o.accuracy.share, "low": o.accuracy.low, "high": o.accuracy.high}
            | {"n_beyond": o.beyond.n, "beyond": o.beyond.share, "beyond_low": low, "beyond_high": high}
            | {"kept_bytes": o.kept_bytes, "state_bytes": o.state_bytes, "text_bytes": o.text_bytes}
            | {"index_bytes": o.index_bytes, "read_ms": o.read_ms, "ask_ms": o.ask_ms}
        )
    return rows


def print_comparison(outcomes: Sequence[Outcome], title: str, reach: int, console: Console | None = None) -> None:
    """Print a table with a section per group."""
    console = console or screen()
    table = Table(title=f"memories side by side: {title}", title_style="bold", title_justify="left")
    for name in ("task\nhaystack", "memory"):
        table.add_column(name)
    heads = ["length\nnull", "accuracy\n95%", "beyond reach\n95% (n)", "state\nbytes", "text\nbytes", "index\nbytes"]
    for name in [*heads, "reading\nms", "asking\nms"]:
        table.add_column(name, justify="right")
    before = None
    for o in outcomes:
        if before not in (None, o.group):
            table.add_section()
        first = o.group != before
        table.add_row(
            f"{o.group.task}\n{o.group.haystack}" if first else "",
            o.name,
            f"{o.group.length:,}\n{100 * o.null:.1f}%" if first else "",
            _cell(o.accuracy),
            _cell(o.beyond, count=True) if o.beyond.n else Text("none\nbeyond", style="dim"),
            *(f"{size:,.0f}" for size in (o.state_bytes, o.text_bytes, o.index_bytes)),
            *(f"{ms:,.1f}" for ms in (o.read_ms, o.ask_ms)),
        )
        before = o.group
    console.print(table)
    console.print(Text(_legend(reach), style="dim"))


def _cell(share: Share, count: bool = False) -> Text:
    interval = f"{100 * share.low:.1f}-{100 * share.high:.1f}" + (f" ({share.n})" if count else "")
    return Text.assemble((f"{100 * share.share:.1f}%", "bold"), "\n", (interval, "dim"))


def _legend(reach: int) -> str:
    return (
        f"{reach_note(reach)} Beyond reach: needles that the first line's model does not see.\n"
        "State: of the model that answers. A baseline keeps text and index until the question, then reads afresh.\n"
        "Reading: before the question is known. Asking: search, question, ten candidates scored, answer."
    )

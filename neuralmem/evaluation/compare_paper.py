"""Own needle scores beside the published ones of the same task and length, and why they cannot be compared.

Special: a remark for everything that is known to part them (training, length rule, kind of value, haystack, samples),
and for what a source does not say; a published cell that is not certain is marked. A table that makes no such remark
does not exist.
Source: `published.py`; evaluation.md sections 1 and 3.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from neuralmem.errors import UserError
from neuralmem.evaluation.pictures import INK, PAPER, REACH, short
from neuralmem.evaluation.prompts import TASKS
from neuralmem.evaluation.published import Published, Source, published
from neuralmem.evaluation.recall import TrainingData
from neuralmem.evaluation.rows import Row
from neuralmem.evaluation.summary import Line, summarise
from neuralmem.tokenizer import ByteTokenizer

OWN = "this checkpoint"
SOURCE_COLOURS = {
    "Titans": "#0f4c66",
    "Gated DeltaNet": "#56a8a3",
    "GDN-2": "#9fcfbb",
    "Nested Learning": "#8a5a9e",
    "Proteus": "#3f7fd0",
    "TTT-E2E": "#c8963e",
    "RWKV-X": "#98a3a8",
    "ATLAS": "#5d6b2f",
}
LEAST = 500  # samples of a published cell, where they can be told


@dataclass(frozen=True)
class Comparison:
    """A line of the own table, the published cells of its task and length, and what keeps them apart."""

    line: Line
    cells: tuple[Published, ...]
    remarks: tuple[str, ...]


def compare(rows: Sequence[Row], training: TrainingData | None = None) -> list[Comparison]:
    """Every line of the rows' table beside what was published.

    Args:
        rows: of one checkpoint
        training: what it was trained on; None: not known

    Raises:
        UserError: rows of more than one checkpoint, or of one read in several ways, or none; rows of a baseline; of
            runs with several seeds, depths or numbers of facts, which are not one score.
    """
    if kept := sorted({row.baseline for row in rows if row.baseline}):
        raise UserError(f"--out has rows of baseline {kept[0]}; it must have those of the checkpoint's own memory only")
    subjects = {(row.ckpt_sha256, row.chunk_size_eval, row.dtype) for row in rows}
    if len(subjects) != 1:
        raise UserError(
            f"--out has rows of {len(subjects)} checkpoints, chunk sizes or dtypes; it must have those of one"
        )
    asked = Counter((r.task, r.protocol, r.haystack_id, r.nominal_len, r.ablation, r.sample_id) for r in rows)
    if twice := next((name for name, count in asked.items() if count > 1), None):
        raise UserError(
            f"--out has rows of several runs of {twice[0]} at {twice[3]:,} tokens, of other seeds, depths or facts; "
            "it must have those of one: give each run an --out of its own"
        )
    bytewise = rows[0].tokenizer_sha256 == ByteTokenizer().fingerprint
    return [_comparison(line, training, bytewise) for line in summarise(rows)]


def _comparison(line: Line, training: TrainingData | None, bytewise: bool) -> Comparison:
    task = [cell for cell in published() if cell.task == line.group.task]
    cells = tuple(cell for cell in task if cell.length == line.group.length)
    return Comparison(line, cells, tuple(_remarks(line, task, cells, training, bytewise)))


def _remarks(
    line: Line, task: Sequence[Published], cells: Sequence[Published], training: TrainingData | None, bytewise: bool
) -> list[str]:
    group, remarks = line.group, []
    if group.task == "s-niah-w-words":
        return ["W-kind: the values are words; the published third task has uuids (s-niah-w), another task."]
    if not task:
        return ["None of the published tables kept here has this task."]
    if not cells:
        lengths = ", ".join(short(length) for length in sorted({cell.length for cell in task}))
        remarks.append(f"Length: no table kept here has {group.length:,} tokens, only {lengths}.")
    if training is None or training.facts is None:
        remarks.append("Training: not known of this checkpoint; facts in its training would make this another test.")
    elif training.facts:
        remarks.append(
            "Training: the checkpoint learned to answer questions about facts in text; the tables are of models that "
            "read text, as far as they say, and for them the same test is another one."
        )
    if group.task == "s-niah-w":
        remarks.append("W-kind: the values are uuids, RULER's third task; Titans calls it W and does not say which.")
    remarks += _protocol(line, cells)
    if round(line.tokens) != group.length:
        remarks.append(f"Length: the prompts have {line.tokens:,.0f} tokens on average, not {group.length:,}.")
    shorter = ", and here a token is a byte: a quarter of the text or less" if bytewise else ""
    remarks.append(
        f"Length: tokens are those of each model's own tokenizer, so equal lengths are not equal texts{shorter}."
    )
    if TASKS[group.task].haystack == "text":
        known = "may or may not be" if group.haystack.startswith("file:") else "is not"
        remarks.append(f"Haystack: {group.haystack} {known} the essays of RULER.")
    elif TASKS[group.task].haystack == "noise" and group.haystack != "noise":
        remarks.append(f"Haystack: {group.haystack} is not the repeated line of RULER.")
    n, width = line.accuracy.n, 50 * (line.accuracy.high - line.accuracy.low)
    less = f", fewer than the {LEAST} of the published cells that can be told" if n < LEAST else ""
    remarks.append(f"Samples: n = {n}{less}; half of the interval is {width:.1f} points, smaller differences are ties.")
    if line.null >= 1:
        remarks.append("Memory: every needle is within reach of attention, so the score says nothing about a memory.")
    return remarks


def _protocol(line: Line, cells: Sequence[Published]) -> list[str]:
    protocol = line.group.protocol
    if protocol == "exact":
        return [
            "Protocol: exact fills the prompt to the token; RULER's rules fill less (up to 44% of 2K). "
            "--protocol ruler2024 is theirs."
        ]
    remarks = []
    older = sorted({cell.source.name for cell in cells if cell.source.before_2025})
    newer = sorted({cell.source.name for cell in cells if not cell.source.before_2025})
    if older and protocol == "ruler2025":
        remarks.append(f"Protocol: {', '.join(older)} used the rule from before June 2025, whose prompts are shorter.")
    if newer:
        remarks.append(f"Protocol: {', '.join(newer)} do not say which length rule they used.")
    return remarks


def table_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """The own score, then the published ones, as rows of a file; scores in percent."""
    line, group = comparison.line, comparison.line.group
    about = {"task": group.task, "length": group.length, "protocol": group.protocol, "haystack": group.haystack}
    low, high = 100 * line.accuracy.low, 100 * line.accuracy.high
    own = {"model": OWN, "score": round(100 * line.accuracy.share, 2), "low": round(low, 2), "high": round(high, 2)}
    own |= {"n": line.accuracy.n, "null": round(100 * line.null, 2), "source": "", "paper": "", "unverified": ""}
    rows = [about | own]
    for cell in comparison.cells:
        rows.append(
            {"task": cell.task, "length": cell.length, "protocol": "", "haystack": ""}
            | {"model": cell.model, "score": cell.score, "low": "", "high": "", "n": cell.source.samples or ""}
            | {"null": "", "source": cell.source.name, "paper": cell.source.paper, "unverified": cell.unverified}
        )
    return rows


def print_comparisons(comparisons: Sequence[Comparison], console: Console) -> None:
    """A table per task and length with its remarks, then what the sources say and leave out."""
    for comparison in comparisons:
        group = comparison.line.group
        title = f"{group.task}, {group.length:,} tokens, {group.protocol}"
        table = Table(title=title, title_style="bold", title_justify="left")
        for name, justify in (("model", "left"), ("score", "right"), ("95%", "right"), ("source", "left")):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        for row in table_rows(comparison):
            score = "not available" if row["score"] is None else f"{row['score']:.1f}"
            interval = f"{row['low']:.1f}-{row['high']:.1f}" if row["model"] == OWN else ""
            source = f"null model {row['null']:.1f}" if row["model"] == OWN else f"{row['source']}, {row['paper']}"
            mark = f" (unverified: {row['unverified']})" if row["unverified"] else ""
            style = "bold" if row["model"] == OWN else ""
            table.add_row(Text(row["model"], style), Text(score, style), interval, Text(source + mark))
        console.print(table)
        for remark in comparison.remarks:
            console.print(Text(f"- {remark}"))
        console.print()
    for about in sources(comparisons):
        text = f"{about.name} ({about.paper}). Stated: {about.stated}. Not stated: {about.unstated}."
        console.print(Text(text, style="dim"))


def sources(comparisons: Sequence[Comparison]) -> list[Source]:
    """Those of the published cells, once each."""
    return list(dict.fromkeys(cell.source for comparison in comparisons for cell in comparison.cells))


def draw(comparisons: Sequence[Comparison], checkpoint: str) -> Any:
    """Own scores with intervals over the published ones of each task, a `matplotlib.figure.Figure`.

    A colour is a source, a line one of its models (the table names them); dashed where it is not certain, thick where
    it is a Titans. Tasks that no table has are left out.
    """
    from matplotlib.figure import Figure

    own = [comparison.line for comparison in comparisons]
    tasks = [task for task in dict.fromkeys(line.group.task for line in own) if any(_lines(task))]
    columns, rows = min(3, max(1, len(tasks))), max(1, -(-len(tasks) // 3))
    figure = Figure(figsize=(4.4 * columns + 0.4, 3.4 * rows + 1.3), facecolor=PAPER, layout="constrained")
    figure.suptitle(f"{checkpoint} over published scores; conditions differ, see the remarks", fontsize=9, color=INK)
    shown: dict[str, Any] = {}
    for place, task in enumerate(tasks):
        axes = figure.add_subplot(rows, columns, place + 1)
        for cells in _lines(task):
            shown[cells[0].source.name] = _draw_published(axes, cells)
        lines = [line for line in own if line.group.task == task]
        shown["null model"] = _draw_own(axes, lines)
        _draw_axes(axes, task, sorted({*(x.group.length for x in lines), *(c.length for x in _lines(task) for c in x)}))
        if place % columns == 0:
            axes.set_ylabel("answers found, %", fontsize=9, color=INK)
    if shown:
        figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure


def _lines(task: str) -> list[list[Published]]:
    """The published cells of a task that have a score, by source and model."""
    lines: dict[tuple[str, str], list[Published]] = {}
    for cell in published():
        if cell.task == task and cell.score is not None:
            lines.setdefault((cell.source.name, cell.model), []).append(cell)
    return list(lines.values())


def _draw_published(axes: Any, cells: Sequence[Published]) -> Any:
    """One model's line; returns it for the legend."""
    (drawn,) = axes.plot(
        [cell.length for cell in cells],
        [cell.score for cell in cells],
        "--" if any(cell.unverified for cell in cells) else "-",
        marker="o",
        markersize=3,
        linewidth=2.2 if "Titans" in cells[0].model else 0.9,
        color=SOURCE_COLOURS[cells[0].source.name],
        alpha=0.85,
    )
    return drawn


def _draw_own(axes: Any, lines: Sequence[Line]) -> Any:
    """Own scores with intervals, and dashes for the null model, which are returned for the legend."""
    lengths = [line.group.length for line in lines]
    shares = [100 * line.accuracy.share for line in lines]
    below = [100 * (line.accuracy.share - line.accuracy.low) for line in lines]
    above = [100 * (line.accuracy.high - line.accuracy.share) for line in lines]
    axes.errorbar(lengths, shares, [below, above], fmt="D", markersize=6, color=REACH, capsize=4, zorder=5)
    (null,) = axes.plot(lengths, [100 * line.null for line in lines], "_", color=INK, markersize=16, zorder=5)
    return null


def _draw_axes(axes: Any, task: str, lengths: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [short(length) for length in lengths])
    axes.minorticks_off()
    axes.set_ylim(-3, 103)
    axes.set_title(task, fontsize=11, weight="bold", color=INK, loc="left")
    axes.set_xlabel("length in tokens (diamonds: own)", fontsize=8, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)

"""The depth-by-length picture: one cell per depth and length, and a line between what attention sees and what not.

Special: needles below the line are in reach of attention, everything above it only the memory can answer; the same
checkpoint's controls stand beside it in the same colours.
Source: the grid is gkamradt/LLMTest_NeedleInAHaystack's; no judge, the score is a match (evaluation.md section 4.2).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuralmem.evaluation.pictures import GREY, INK, PAPER, REACH, fit, save, short
from neuralmem.evaluation.rows import Row
from neuralmem.evaluation.summary import CONTROLS, Grid, is_counted, score

WHOLE = Grid((0.0,), assigned=False)  # where the answer is spread over the whole haystack, depths mean nothing
COLOURS = ["#fbf3e4", "#d9e6cf", "#9fcfbb", "#56a8a3", "#237a86", "#0f4c66"]  # none found to all found
EMPTY = "#ececec"


def write_heatmaps(rows: Sequence[Row], grid: Grid, folder: Path, checkpoint: str) -> list[Path]:
    """One PNG per task and haystack, written whole or not at all; returns their paths."""
    written = []
    for name in sorted({(row.task, row.protocol, row.haystack_id) for row in rows if row.ablation == "none"}):
        own = [row for row in rows if (row.task, row.protocol, row.haystack_id) == name]
        plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in name[2].split(":")[0])
        path = folder / f"heatmap_{name[0]}_{name[1]}_{plain}.png"
        written.append(save(draw(own, WHOLE if is_counted(own[0]) else grid, checkpoint), path))
    return written


def draw(rows: Sequence[Row], grid: Grid, checkpoint: str) -> Any:
    """The figure of one task and haystack, a `matplotlib.figure.Figure`."""
    from matplotlib.figure import Figure

    lengths = sorted({row.nominal_len for row in rows})
    controls = [name for name in CONTROLS if any(row.ablation == name for row in rows)]
    side = 0.36 * len(lengths) + 0.75  # inches of one control's panel
    main = max(0.95 * len(lengths), 3.6)
    widths = [main, *[side] * len(controls)]
    height = 0.5 * len(grid.depths) + 2.3
    figure = Figure(figsize=(sum(widths) + 1.9, height), facecolor=PAPER)
    figure.set_layout_engine(None)
    places = figure.add_gridspec(
        1, len(widths), width_ratios=widths, left=0.8 / figure.get_figwidth(), right=1 - 0.9 / figure.get_figwidth()
    )
    places.update(top=1 - 1.15 / height, bottom=0.95 / height, wspace=0.12)
    image = None
    for column, ablation in enumerate(["none", *controls]):
        axes = figure.add_subplot(places[column])
        image = _panel(axes, rows, ablation, lengths, grid, big=column == 0)
    _colour_bar(figure, image, height)
    _words(figure, rows, checkpoint, height)
    return figure


def _panel(axes: Any, rows: Sequence[Row], ablation: str, lengths: Sequence[int], grid: Grid, big: bool) -> Any:
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    values = np.full((len(grid.depths), len(lengths)), np.nan)
    inside = np.zeros_like(values, dtype=bool)
    for x, length in enumerate(lengths):
        own = [row for row in rows if row.nominal_len == length and row.ablation == ablation]
        for y, some in enumerate(grid.bins(own).values()):
            if some:
                values[y, x] = sum(map(score, some)) / len(some)
                inside[y, x] = sum(row.beyond_window for row in some) * 2 < len(some)
    colours = LinearSegmentedColormap.from_list("found", COLOURS).with_extremes(bad=EMPTY)
    image = axes.imshow(values, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for y, x in zip(*np.nonzero(~np.isnan(values)), strict=True):
        share = values[y, x]
        axes.text(
            x,
            y,
            f"{100 * share:.0f}",
            ha="center",
            va="center",
            fontsize=10.5 if big else 6,
            color=PAPER if share > 0.55 else INK,
        )
    _reach_line(axes, inside, 2.4 if big else 1.2)
    _axes(axes, rows, lengths, grid, big)
    label = "memory on" if ablation == "none" else f"memory {ablation}"
    axes.set_title(label, fontsize=9.5 if big else 8, color=INK, loc="left", pad=5)
    return image


def _reach_line(axes: Any, inside: Any, width: float) -> None:
    """A staircase along the edges between cells in reach and cells beyond it."""
    rows, columns = inside.shape
    segments = []
    for y in range(rows):
        for x in range(columns):
            if y + 1 < rows and inside[y, x] != inside[y + 1, x]:
                segments.append(((x - 0.5, x + 0.5), (y + 0.5, y + 0.5)))
            if x + 1 < columns and inside[y, x] != inside[y, x + 1]:
                segments.append(((x + 0.5, x + 0.5), (y - 0.5, y + 0.5)))
    for xs, ys in segments:
        axes.plot(xs, ys, color=REACH, linewidth=width, solid_capstyle="round", clip_on=False, zorder=5)


def _axes(axes: Any, rows: Sequence[Row], lengths: Sequence[int], grid: Grid, big: bool) -> None:
    import numpy as np

    axes.set_xticks(np.arange(-0.5, len(lengths)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(grid.depths)), minor=True)
    axes.grid(which="minor", color=PAPER, linewidth=2 if big else 1)
    axes.tick_params(which="both", length=0, colors=INK, labelsize=9 if big else 6.5)
    for spine in axes.spines.values():
        spine.set_visible(False)
    names = [short(n) for n in lengths]
    if big:
        for i, length in enumerate(lengths):
            nulls = [row.null for row in rows if row.nominal_len == length]
            names[i] += f"\nnull {100 * sum(nulls) / len(nulls):.0f}%"
        axes.set_xlabel("length in tokens", fontsize=9.5, color=INK, labelpad=5)
        axes.set_ylabel("" if grid is WHOLE else "depth of the needle", fontsize=9.5, color=INK)
        axes.set_yticks(range(len(grid.depths)), ["all" if grid is WHOLE else f"{depth:g}%" for depth in grid.depths])
    else:
        axes.set_yticks([])
    axes.set_xticks(range(len(lengths)), names, rotation=0 if big or len(lengths) < 6 else 90)


def _colour_bar(figure: Any, image: Any, height: float) -> None:
    width = figure.get_figwidth()
    axes = figure.add_axes((1 - 0.72 / width, 0.95 / height, 0.13 / width, 1 - 2.1 / height))
    bar = figure.colorbar(image, cax=axes, ticks=[0, 0.5, 1])
    bar.ax.set_yticklabels(["0%", "50%", "100%"], fontsize=7.5, color=INK)
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)


def _words(figure: Any, rows: Sequence[Row], checkpoint: str, height: float) -> None:
    plain = [row for row in rows if row.ablation == "none"]
    counts = sorted({len([r for r in plain if r.nominal_len == n]) for n in {r.nominal_len for r in plain}})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
    row, left = plain[0], 0.8 / figure.get_figwidth()
    figure.text(left, 1 - 0.34 / height, row.task, fontsize=14, weight="bold", color=INK, va="center")
    measure = "exact answers" if row.task == "recall" else "answers found"
    about = f"{measure}, %  ·  haystack {row.haystack_id}  ·  {row.protocol} lengths  ·  n = {n} per length"
    fit(figure.text(left, 1 - 0.62 / height, f"{checkpoint}  ·  {about}", fontsize=8, color=GREY, va="center"))
    note = _note(row, {r.beyond_window for r in plain})
    fit(figure.text(left, 0.2 / height, note, fontsize=8, color=REACH, va="center"))


def _note(row: Row, beyond: set[bool]) -> str:
    """What the line parts, or why there is none."""
    if is_counted(row):
        return (
            f"the answer is spread over the whole text; null: counted in the {row.reach:,} tokens that attention sees"
        )
    if len(beyond) == 2:
        what = "a needle is in reach" if len(row.needle_spans) > 1 else "in reach"
        return f"below the line: {what} of attention ({row.reach:,} tokens); above it only memory can answer"
    if beyond == {True}:
        return f"every needle lies beyond the reach of attention ({row.reach:,} tokens)"
    return "a needle of every prompt lies in reach of attention"

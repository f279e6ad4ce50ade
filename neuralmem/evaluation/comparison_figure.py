"""Accuracy against bytes kept: a panel per task and length, a point per memory, a line through those of one kind."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuralmem.evaluation.comparison import Outcome
from neuralmem.evaluation.pictures import INK, PAPER, save, short
from neuralmem.evaluation.summary import Group

COLOURS = ["#0f4c66", "#56a8a3", "#e9a23b", "#7a5195", "#e4572e", "#5c6b73", "#8cb369", "#bc5090", "#2f6690", "#a44a3f"]
MARKERS = "osD^vPX*<>"


def write_figure(outcomes: Sequence[Outcome], path: Path, title: str) -> Path:
    """Write the figure as PNG, whole or not at all."""
    return save(draw(outcomes, title), path)


def draw(outcomes: Sequence[Outcome], title: str) -> Any:
    """The figure, a `matplotlib.figure.Figure`: over needles beyond reach, or over all where a group has none."""
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(o.group for o in outcomes))
    series = list(dict.fromkeys(o.series for o in outcomes))
    rows = list(dict.fromkeys(group[:3] for group in groups))
    lengths = sorted({group.length for group in groups})
    words = 0.22 * -(-len(series) // 3)  # inches for three names side by side
    width, height = max(3.1 * len(lengths), 4.5) + 0.9, 2.7 * len(rows) + 0.9 + words
    figure, left = Figure(figsize=(width, height), facecolor=PAPER), 0.85 / width
    grid = figure.subplots(len(rows), len(lengths), sharex=True, sharey=True, squeeze=False)
    bottom, top = (0.65 + words) / height, 1 - 0.75 / height
    figure.subplots_adjust(left=left, right=0.97, top=top, bottom=bottom, hspace=0.35, wspace=0.1)
    for y, row in enumerate(rows):
        for x, length in enumerate(lengths):
            own = [o for o in outcomes if o.group == Group(*row, length)]
            _panel(grid[y][x], own, series, f"{row[0]}, {short(length)} tokens")
    for axes in grid[:, 0]:
        axes.set_ylabel("found, %", fontsize=8.5, color=INK)
    for axes in grid[-1]:
        axes.set_xlabel("bytes kept until the question", fontsize=8.5, color=INK)
    figure.text(left, 1 - 0.3 / height, title, fontsize=10, weight="bold", color=INK, va="center")
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        found, labels = axes.get_legend_handles_labels()
        handles.update(zip(labels, found, strict=True))
    style = {"fontsize": 7.5, "frameon": False, "labelcolor": INK, "ncols": 3, "borderaxespad": 0}
    place = (left, 0.1 / height)
    figure.legend([handles[name] for name in series], series, loc="lower left", bbox_to_anchor=place, **style)
    return figure


def _panel(axes: Any, outcomes: Sequence[Outcome], series: Sequence[str], title: str) -> None:
    any_beyond = any(o.beyond.n for o in outcomes)
    for number, name in enumerate(series):
        own = sorted((o for o in outcomes if o.series == name), key=lambda o: o.kept_bytes)
        shares = [o.beyond if any_beyond else o.accuracy for o in own]
        if own:
            axes.errorbar(
                [o.kept_bytes for o in own],
                [100 * s.share for s in shares],
                yerr=[[100 * (s.share - s.low) for s in shares], [100 * (s.high - s.share) for s in shares]],
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                markersize=6,
                elinewidth=1,
                capsize=2,
                linewidth=1,
                label=name,
            )
    axes.set_xscale("log")
    axes.set_ylim(-5, 105)
    what = "beyond reach" if any_beyond else "all needles"
    axes.set_title(f"{title}, {what}", fontsize=8.5, color=INK, loc="left")
    axes.grid(color="#ececec", linewidth=0.8)
    axes.tick_params(which="both", labelsize=7.5, colors=INK, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)

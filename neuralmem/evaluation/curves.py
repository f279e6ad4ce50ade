"""Figures of curves: a quantity over lengths or counts, the model beside its controls, with intervals.

Special: the same colours as the heat map; what attention can see by itself is shaded.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

from neuralmem.evaluation.heatmap import INK, PAPER, REACH, short
from neuralmem.evaluation.stats import Share

STYLES = {
    "memory on": ("#0f4c66", "-", 2.2),
    "frozen": ("#56a8a3", "--", 1.3),
    "off": ("#8a8f3c", "--", 1.3),
    "reset": ("#9b6a8f", "--", 1.3),
}
OTHERS = ("#e08e0b", "#237a86", "#a23b3b", "#6b7280", "#7a5195", "#b5b52f", "#c06c9b", "#3b5fa2")
GREY = "#5c6b73"


@dataclass(frozen=True)
class Curve:
    """One line.

    Args:
        name: in the legend; those of `STYLES` have colours of their own
        points: x, y, and the ends of an interval or None
        line: "-" or as matplotlib calls it; None: as the name's style
        marks: whether points are marked
    """

    name: str
    points: Sequence[tuple[float, float, float | None, float | None]]
    line: str | None = None
    marks: bool = True


@dataclass(frozen=True)
class Curves:
    """A figure.

    Args:
        title: what was measured
        x: label of the axis, which is logarithmic to base 2 unless `linear`
        y: label of the axis; `share` makes it 0 to 100%
        curves: in the order of the legend
        reach: tokens on the x axis that attention can see by itself; None: the axis is no distance
        note: below the figure
    """

    title: str
    x: str
    y: str
    curves: Sequence[Curve]
    reach: int | None = None
    note: str = ""
    linear: bool = False
    share: bool = True


def share_curve(name: str, points: Sequence[tuple[float, Share]]) -> Curve:
    """A curve of shares with their intervals; those of nothing are left out."""
    return Curve(name, [(x, s.share, s.low, s.high) for x, s in points if s.n])


def write_curves(curves: Curves, path: Path, about: str) -> Path:
    """Write a PNG whole or not at all.

    Args:
        curves: the figure
        path: the file
        about: second line of the title: the checkpoint
    """
    partial = path.with_suffix(".png.partial")
    draw(curves, about).savefig(partial, dpi=160, format="png", facecolor=PAPER)
    os.replace(partial, path)
    return path


def draw(curves: Curves, about: str) -> Any:
    """The figure, a `matplotlib.figure.Figure`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

    figure = Figure(figsize=(7.2, 4.4), facecolor=PAPER)
    axes = figure.add_axes((0.1, 0.19, 0.64, 0.63))
    others = iter(OTHERS * 4)
    for curve in curves.curves:
        _line(axes, curve, next(others))
    xs = sorted({x for curve in curves.curves if curve.marks for x, *_ in curve.points})
    if not curves.linear:
        axes.set_xscale("log", base=2)
        axes.set_xticks(xs if len(xs) < 12 else xs[:: -(-len(xs) // 12)], minor=False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(round(x))))
        axes.minorticks_off()
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if curves.share:
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    else:
        axes.set_ylim(bottom=0)
    _reach(axes, curves, xs)
    axes.set_xlabel(curves.x, fontsize=9.5, color=INK)
    axes.set_ylabel(curves.y, fontsize=9.5, color=INK)
    axes.tick_params(colors=INK, labelsize=8.5)
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, fontsize=8.5, labelcolor=INK)
    figure.text(0.1, 0.935, curves.title, fontsize=13, weight="bold", color=INK)
    figure.text(0.1, 0.88, about, fontsize=8, color=GREY)
    figure.text(0.1, 0.06, "\n".join(wrap(curves.note, 115)), fontsize=7.5, color=GREY, va="top")
    return figure


def _line(axes: Any, curve: Curve, other: str) -> None:
    colour, style, width = STYLES.get(curve.name, (other, "-", 1.6))
    points = sorted(curve.points)
    if not points:
        return
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    marker = {"marker": "o", "markersize": 4} if curve.marks else {}
    axes.plot(xs, ys, color=colour, linestyle=curve.line or style, linewidth=width, label=curve.name, **marker)
    if all(low is not None for _, _, low, _ in points):
        axes.fill_between(
            xs,
            [p[2] for p in points],
            [p[3] for p in points],
            color=colour,
            alpha=0.13 if width > 1.5 else 0.05,
            linewidth=0,
        )


def _reach(axes: Any, curves: Curves, xs: Sequence[float]) -> None:
    if curves.reach is None or not xs or curves.reach < xs[0]:
        return
    axes.axvspan(axes.get_xlim()[0], min(curves.reach, axes.get_xlim()[1]), color=REACH, alpha=0.08, linewidth=0)
    axes.annotate(
        f"in reach of attention\n({curves.reach:,} tokens)" if curves.reach < xs[-1] else "all in reach of attention",
        (0.02, 0.04),
        xycoords="axes fraction",
        fontsize=7.5,
        color=REACH,
    )

"""Figures of curves: a quantity over lengths or counts, the model beside its controls, with intervals.

Special: the model and its controls look the same in all of them; what attention can see by itself is shaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal

from neuralmem.evaluation.pictures import GREY, INK, PAPER, REACH, SERIES, dress, save, short, write_titles
from neuralmem.evaluation.stats import Share

STYLES = {
    "memory on": ("#0f4c66", "-", 2.2),
    "frozen": ("#56a8a3", "--", 1.3),
    "off": ("#8a8f3c", "--", 1.3),
    "reset": ("#9b6a8f", "--", 1.3),
    "shuffled": ("#b98a5a", "--", 1.3),
    "window": ("#6d8fc0", "--", 1.3),
}


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
        x: label of the axis, which is logarithmic to base 2 (as far down as it can, where 0 is among its values)
        y: label of the axis
        curves: in the order of the legend
        reach: tokens on the x axis that attention can see by itself; None: the axis is no distance
        marks: names of places on the x axis, shown as dotted lines where they lie in the picture
        note: below the figure
        linear: the x axis is
        scale: y goes from 0 to 100% ("share"), begins at 0 ("amount"), or is as wide as what it shows ("any")
    """

    title: str
    x: str
    y: str
    curves: Sequence[Curve]
    reach: int | None = None
    marks: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    linear: bool = False
    scale: Literal["share", "amount", "any"] = "share"


def share_curve(name: str, points: Sequence[tuple[float, Share]]) -> Curve:
    """A curve of shares with their intervals; those of nothing are left out."""
    return Curve(name, [(x, s.share, s.low, s.high) for x, s in points if s.n])


def write_curves(curves: Curves, path: Path, about: str) -> Path:
    """Write a PNG whole or not at all.

    Args:
        curves: the figure
        path: the file
        about: second line of the title: the checkpoint, and what else is to be known
    """
    return save(draw(curves, about), path)


def draw(curves: Curves, about: str) -> Any:
    """The figure, a `matplotlib.figure.Figure`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

    figure = Figure(figsize=(7.2, 4.4), facecolor=PAPER)
    axes = figure.add_axes((0.1, 0.19, 0.64, 0.63))
    others = iter(SERIES * 4)
    for curve in curves.curves:
        _line(axes, curve, next(others))
    xs = sorted({x for curve in curves.curves if curve.marks for x, *_ in curve.points})
    if not curves.linear:
        if xs and xs[0] <= 0:  # has no place on a logarithmic axis
            axes.set_xscale("symlog", base=2, linthresh=xs[1] if len(xs) > 1 else 1)
        else:
            axes.set_xscale("log", base=2)
        axes.set_xticks(xs if len(xs) < 12 else xs[:: -(-len(xs) // 12)], minor=False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(round(x))))
        axes.minorticks_off()
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if curves.scale == "share":
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    elif curves.scale == "amount":
        axes.set_ylim(bottom=0)
    _reach(axes, curves, xs)
    _marks(axes, curves, xs)
    dress(axes, curves.x, curves.y)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, fontsize=8.5, labelcolor=INK)
    write_titles(figure, curves.title, about)
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
    left, right = axes.get_xlim()
    axes.axvspan(left, min(curves.reach, right), color=REACH, alpha=0.08, linewidth=0)
    axes.set_xlim(left, right)  # the shade would make room for itself
    axes.annotate(
        f"in reach of attention\n({curves.reach:,} tokens)" if curves.reach < xs[-1] else "all in reach of attention",
        (0.02, 0.04),
        xycoords="axes fraction",
        fontsize=7.5,
        color=REACH,
    )


def _marks(axes: Any, curves: Curves, xs: Sequence[float]) -> None:
    for name, place in curves.marks.items():
        if xs and xs[0] < place < xs[-1]:
            axes.axvline(place, color=GREY, linestyle=":", linewidth=1.2)
            at = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom"}
            axes.text(place, 1.01, f"{name} {short(round(place))}", fontsize=7.5, color=GREY, **at)

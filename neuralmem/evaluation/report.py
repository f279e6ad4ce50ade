"""What measures over a checkpoint have in common at the end: a table on screen, a CSV, and a picture of lines.

Special: lines are drawn with the band of their interval over a logarithmic axis, with dotted lines where the reach of
attention and the training length lie, in the colours of the heat map.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from neuralmem.evaluation.bootstrap import Mean
from neuralmem.evaluation.heatmap import INK, PAPER, REACH, short

COLOURS = ("#0f4c66", "#e08a1e", "#8a5fa8", "#56a8a3", "#7a8790", "#b3446c")
_FAR = 1 << 30  # a reach beyond this is none that a picture could show


class Line(NamedTuple):
    """A line of a picture: x, y, and the ends of the interval at each, NaN for none; dashed: without a band."""

    points: Sequence[tuple[float, float, float, float]]
    dashed: bool = False


def write_lines(
    path: Path,
    lines: Mapping[str, Line],
    title: str,
    about: str,
    axes: tuple[str, str],
    marks: Mapping[str, float] | None = None,
    unit_range: bool = False,
) -> Path:
    """Write a PNG of lines over a logarithmic axis, whole or not at all; returns the path.

    Args:
        path: of the PNG
        lines: by name
        title: large, above
        about: small, below the title
        axes: names of x and y
        marks: names of places on the x axis, shown as dotted lines where they lie in the picture
        unit_range: y is a share, 0 to 1
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.6), facecolor=PAPER)
    figure.set_layout_engine(None)
    panel = figure.add_axes((0.1, 0.13, 0.87, 0.69))
    xs = sorted({x for line in lines.values() for x, *_ in line.points})
    for colour, (name, line) in zip(COLOURS * len(lines), lines.items(), strict=False):
        x, y, low, high = zip(*line.points, strict=True)
        if not line.dashed:
            panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        style = {"linestyle": "--"} if line.dashed else {"marker": "o", "markersize": 4}
        panel.plot(x, y, color=colour, linewidth=1.8, label=name, **style)
    if xs[0] > 0:
        panel.set_xscale("log", base=2)
    else:  # 0 has no place on a logarithmic axis
        panel.set_xscale("symlog", base=2, linthresh=xs[1] if len(xs) > 1 else 1)
    ticks = xs[:: -(-len(xs) // 16)]
    panel.set_xticks(ticks, [short(int(x)) for x in ticks])
    panel.minorticks_off()
    for name, place in (marks or {}).items():
        if xs[0] < place < min(xs[-1], _FAR):
            panel.axvline(place, color=REACH, linestyle=":", linewidth=1.2)
            panel.text(
                place,
                1.01,
                f" {name} {short(int(place))}",
                transform=panel.get_xaxis_transform(),
                fontsize=7.5,
                color=REACH,
                ha="center",
                va="bottom",
            )
    if unit_range:
        panel.set_ylim(-0.03, 1.03)
    _dress(panel, axes, grid="y")
    panel.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    _titles(figure, title, about)
    return _save(figure, path)


def write_points(
    path: Path, points: Mapping[str, Mean], title: str, about: str, axis: str, nulls: Mapping[str, float]
) -> Path:
    """Write a PNG of one value with its interval per name, and null models as dashed lines; returns the path."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 1.9 + 0.42 * len(points)), facecolor=PAPER)
    figure.set_layout_engine(None)
    panel = figure.add_axes((0.1, 0.6 / figure.get_figheight(), 0.87, 1 - 1.45 / figure.get_figheight()))
    for place, (colour, point) in enumerate(zip(COLOURS * len(points), points.values(), strict=False)):
        panel.plot([point.low, point.high], [place, place], color=colour, linewidth=3, alpha=0.35)
        panel.plot([point.value], [place], "o", color=colour, markersize=7)
        panel.text(point.value, place - 0.28, f"{point.value:.3f}", fontsize=8, color=INK, ha="center")
    for name, value in nulls.items():
        panel.axvline(value, color=REACH, linestyle="--", linewidth=1.2)
        panel.text(value, 1.01, name, transform=panel.get_xaxis_transform(), fontsize=7.5, color=REACH, ha="center")
    panel.set_yticks(range(len(points)), list(points))
    panel.set_ylim(len(points) - 0.5, -0.6)
    panel.margins(x=0.08)
    _dress(panel, (axis, ""), grid="x")
    _titles(figure, title, about)
    return _save(figure, path)


def _titles(figure: Any, title: str, about: str) -> None:
    height = figure.get_figheight()
    figure.text(0.1, 1 - 0.25 / height, title, fontsize=13, weight="bold", color=INK, va="center")
    figure.text(0.1, 1 - 0.49 / height, about, fontsize=8, color="#5c6b73", va="center")


def _save(figure: Any, path: Path) -> Path:
    partial = path.with_suffix(".png.partial")
    figure.savefig(partial, dpi=160, format="png", facecolor=PAPER)
    os.replace(partial, path)
    return path


def _dress(panel: Any, axes: tuple[str, str], grid: str) -> None:
    panel.set_xlabel(axes[0], fontsize=9.5, color=INK)
    panel.set_ylabel(axes[1], fontsize=9.5, color=INK)
    panel.grid(axis=grid, color="#e3e6e8", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(length=0, colors=INK, labelsize=8.5)
    for name, spine in panel.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color("#c3cacf")

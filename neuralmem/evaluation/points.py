"""Figure of points: one value with its interval per name, and null models as dashed lines."""

from collections.abc import Mapping
from typing import Any

from neuralmem.evaluation.bootstrap import Mean
from neuralmem.evaluation.pictures import INK, PAPER, REACH, SERIES, dress, write_titles


def draw(points: Mapping[str, Mean], nulls: Mapping[str, float], axis: str, title: str, about: str) -> Any:
    """The figure, a `matplotlib.figure.Figure`.

    Args:
        points: values by name, from above
        nulls: values of null models by name
        axis: name of the axis of values
        title: large, above
        about: small, below the title
    """
    from matplotlib.figure import Figure

    height = 1.9 + 0.42 * len(points)
    figure = Figure(figsize=(7.6, height), facecolor=PAPER)
    axes = figure.add_axes((0.1, 0.6 / height, 0.87, 1 - 1.45 / height))
    for place, (colour, point) in enumerate(zip(SERIES * len(points), points.values(), strict=False)):
        axes.plot([point.low, point.high], [place, place], color=colour, linewidth=3, alpha=0.35)
        axes.plot([point.value], [place], "o", color=colour, markersize=7)
        axes.text(point.value, place - 0.28, f"{point.value:.3f}", fontsize=8, color=INK, ha="center")
    for name, value in nulls.items():
        axes.axvline(value, color=REACH, linestyle="--", linewidth=1.2)
        axes.text(value, 1.01, name, transform=axes.get_xaxis_transform(), fontsize=7.5, color=REACH, ha="center")
    axes.set_yticks(range(len(points)), list(points))
    axes.set_ylim(len(points) - 0.5, -0.6)
    axes.margins(x=0.08)
    dress(axes, axis, "")
    write_titles(figure, title, about)
    return figure

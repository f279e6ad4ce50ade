"""What pictures of results have in common: colours, titles, axes, how a length is written, and how a file is."""

import os
from pathlib import Path
from typing import Any

INK, GREY, PAPER, REACH = "#1d2b33", "#5c6b73", "#ffffff", "#e4572e"
SERIES = ("#e08e0b", "#237a86", "#a23b3b", "#6b7280", "#7a5195", "#b5b52f", "#c06c9b", "#3b5fa2")


def save(figure: Any, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all; returns the path."""
    partial = path.with_suffix(".png.partial")
    figure.savefig(partial, dpi=160, format="png", facecolor=PAPER)
    os.replace(partial, path)
    return path


def write_titles(figure: Any, title: str, about: str) -> None:
    """Put a title, large, and what it is about, small, on top of a figure whose panel begins at a tenth of it."""
    height = figure.get_figheight()
    figure.text(0.1, 1 - 0.25 / height, title, fontsize=13, weight="bold", color=INK, va="center")
    fit(figure.text(0.1, 1 - 0.49 / height, about, fontsize=8, color=GREY, va="center"))


def fit(line: Any) -> None:
    """Smaller letters for a line that would run out of its picture at the right."""
    edges = line.get_window_extent()
    room = line.figure.bbox.width * 0.96 - edges.x0  # letters do not shrink quite as much as their size
    if edges.width > room:
        line.set_fontsize(line.get_fontsize() * room / edges.width)


def dress(axes: Any, x: str, y: str) -> None:
    """Name the axes, and draw a grid and two spines that do not distract."""
    axes.set_xlabel(x, fontsize=9.5, color=INK)
    axes.set_ylabel(y, fontsize=9.5, color=INK)
    axes.tick_params(colors=INK, labelsize=8.5)
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def short(length: int) -> str:
    """A length as one reads it.

    Example:
        >>> short(1024), short(65536), short(1 << 20), short(1000), short(96)
        ('1k', '64k', '1m', '1,000', '96')
    """
    for size, letter in ((1 << 20, "m"), (1 << 10, "k")):
        if length >= size and length % size == 0:
            return f"{length // size}{letter}"
    return f"{length:,}"

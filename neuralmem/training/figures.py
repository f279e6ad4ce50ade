"""The pictures of a run's report, drawn from the rows of metrics.csv and the lines of probes.jsonl.

Special: each is a `matplotlib.figure.Figure`; nothing is drawn of what was not logged. Layers have colours from shallow
to deep, so that many are as readable as two.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

Rows = Sequence[dict[str, float]]
BLUE, ORANGE, GREEN, FAINT, INK = "#237a86", "#e4572e", "#5b8c3e", "#b9c4c9", "#1d2b33"
WIDTH = 9.0  # inches of every picture
SMOOTH = 0.02  # of the run: what a smoothed line averages over
LEGEND: dict[str, Any] = {"fontsize": 8.5, "frameon": True, "framealpha": 0.8, "edgecolor": "none"}
MOST_NAMED = 8  # layers that a legend names; with more a scale says how deep they are

PER_LINE = "restarted_memories"  # since the line before; the others are since the run began
FAULTS = {"skipped_steps": "steps", "loss_spikes": "steps", PER_LINE: "rows"}  # with their units
SATURATED = "share below 1% or above 99%"
HEALTH = {
    "state_norm": ("State norm", "norm of a head's weights"),
    "surprise": ("Surprise", "what writing lowers, mean"),
    "theta": ("Theta, inner learning rate", "mean over tokens"),
    "eta": ("Eta, surprise decay", "mean over tokens"),
    "alpha": ("Alpha, forget fraction", "mean over tokens"),
    "theta_saturated": ("Theta's gate, saturated", SATURATED),
    "eta_saturated": ("Eta's gate, saturated", SATURATED),
    "alpha_saturated": ("Alpha's gate, saturated", SATURATED),
}


def loss(rows: Rows) -> Any:
    """Loss of training and validation, and exact answers where there are questions."""
    answers = any("answers" in row or "val_answers" in row for row in rows)
    figure, axes = _panels(["loss", "answers"] if answers else ["loss"])
    _smoothed(axes[0], rows, "loss", BLUE, "training")
    _line(axes[0], rows, "val_loss", ORANGE, "validation", marker="o", markersize=3)
    _name(axes[0], "Loss", "nats per token")
    if answers:
        _smoothed(axes[1], rows, "answers", BLUE, "training")
        _line(axes[1], rows, "val_answers", ORANGE, "validation", marker="o", markersize=3)
        _name(axes[1], "Exact answers", "share", share=True)
    _stages(axes, rows)
    return figure


def speed(rows: Rows) -> Any:
    """Tokens per second and utilisation."""
    known = any("mfu" in row for row in rows)
    figure, axes = _panels(["tokens", "mfu"] if known else ["tokens"])
    _smoothed(axes[0], rows, "tokens_per_second", BLUE, None)
    _name(axes[0], "Speed", "tokens per second, all devices")
    _from_zero(axes[0])
    if known:
        _smoothed(axes[1], rows, "mfu", GREEN, None)
        _name(axes[1], "Model FLOPs utilisation (MFU)", "share of the peak")
        _from_zero(axes[1])
        axes[1].yaxis.set_major_formatter(_percent)
    return figure


def faults(rows: Rows) -> list[str]:
    """The columns that count what went wrong, those in which something did."""
    named = [name for name in _columns(rows) if name in FAULTS or name.endswith("_documents")]
    return [name for name in named if any(row.get(name, 0) for row in rows)]


def gradients(rows: Rows) -> Any:
    """Gradient norm, learning rate, and whatever went wrong: skipped steps, loss spikes, memories begun anew."""
    wrong = [name for name in faults(rows) if not name.endswith("_documents")]
    figure, axes = _panels(["norm", "rate", *wrong])
    _smoothed(axes[0], rows, "gradient_norm", BLUE, None)
    _name(axes[0], "Gradient norm", "before clipping, log scale")
    if any(row.get("gradient_norm", 0) > 0 for row in rows):
        _log_scale(axes[0])
    _line(axes[1], rows, "lr", GREEN, None)
    _name(axes[1], "Learning rate", "of the first group")
    _from_zero(axes[1])
    for place, name in zip(axes[2:], wrong, strict=True):
        _line(place, rows, name, ORANGE, None, drawstyle="steps-post")
        _name(place, name.replace("_", " ").capitalize(), FAULTS[name])
    return figure


def health(rows: Rows) -> Any | None:
    """What every memory showed of itself, a line per layer; None where no layer has a memory."""
    found: dict[str, list[str]] = defaultdict(list)
    for column in _columns(rows):
        quantity = column.rpartition("/")[2]
        if "/" in column and quantity in HEALTH and not column.startswith("probe/"):
            found[quantity].append(column)
    shown = [quantity for quantity in HEALTH if quantity in found]
    if not shown:
        return None
    figure, axes = _panels(shown)
    layers = sorted({_layer(column) for columns in found.values() for column in columns})
    colours = dict(zip(layers, _shades(len(layers)), strict=True))
    for place, quantity in zip(axes, shown, strict=True):
        for column in found[quantity]:
            _line(place, rows, column, colours[_layer(column)], None)
        title, unit = HEALTH[quantity]
        _name(place, title, unit, share=quantity.endswith("_saturated"))
        if not quantity.endswith("_saturated"):
            _from_zero(place)
    _legend_of_layers(figure, colours)
    return figure


def probe(lines: Sequence[dict[str, Any]]) -> Any:
    """One probe: its curves as they were last, with the first ones faint, and its numbers over the steps."""
    figure, (left, right) = _panels(["curves", "values"])
    first, last = lines[0], lines[-1]
    for number, (name, points) in enumerate(last["curves"].items()):
        colour = (BLUE, ORANGE, GREEN)[number % 3]
        if first is not last and name in first["curves"]:
            left.plot(*zip(*first["curves"][name], strict=True), color=colour, alpha=0.3, linewidth=1.2)
        # Ever thinner: of two curves that coincide both are seen.
        style = {"marker": "o", "markersize": 3.5, "linewidth": 2.6 / (1 + number)}
        left.plot(*zip(*points, strict=True), color=colour, label=name, **style)
    xs = [x for points in last["curves"].values() for x, _ in points]
    if xs and max(xs) > 3 * max(min(xs), 1e-9):
        left.set_xscale("log", base=2)
    if xs:
        left.set_xticks(sorted(set(xs)), [f"{x:,.0f}" for x in sorted(set(xs))])
        left.minorticks_off()
    before = f" (faint: step {first['step']:,})" if first is not last else ""
    _name(left, f"At step {last['step']:,}{before}", last["axes"][1], x=last["axes"][0])
    if "share" in last["axes"][1]:
        _as_share(left)
    names = list(last["values"])
    for name, colour in zip(names, _shades(len(names)), strict=True):
        points = [(line["step"], line["values"][name]) for line in lines if name in line["values"]]
        right.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, label=name.replace("_", " "))
    _name(right, "Over the run", last["axes"][1])
    if names:
        right.legend(**LEGEND, loc="upper left", bbox_to_anchor=(1, 1.03))
    if "share" in last["axes"][1]:
        _as_share(right)
    return figure


def _panels(names: Sequence[str]) -> tuple[Any, list[Any]]:
    """A figure with a panel for each name, two in a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = math.ceil(len(names) / 2)
    figure = Figure(figsize=(WIDTH, 2.7 * rows), facecolor="white")
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", hspace=0.06, wspace=0.05)
    columns = 1 if len(names) == 1 else 2
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(len(names))]


def _name(axes: Any, title: str, unit: str, *, x: str = "step", share: bool = False) -> None:
    axes.set_title(title, loc="left", fontsize=10.5, color=INK, weight="bold")
    axes.set_ylabel(unit, fontsize=9, color=INK)
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.tick_params(labelsize=8.5, colors=INK)
    axes.grid(color="#e8ecee", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if share:
        _as_share(axes)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(**LEGEND)


def _from_zero(axes: Any) -> None:
    top = max((float(y) for line in axes.lines for y in line.get_ydata() if math.isfinite(y)), default=0.0)
    axes.set_ylim(0, 1.08 * top or 1)


def _log_scale(axes: Any) -> None:
    """Plain numbers at its ticks, not powers of ten."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _as_share(axes: Any) -> None:
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(_percent)


def _percent(value: float, _: object = None) -> str:
    return f"{100 * value:.3g}%"


def _points(rows: Rows, name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in rows if name in row]


def _line(axes: Any, rows: Rows, name: str, colour: Any, label: str | None, **style: Any) -> None:
    if points := _points(rows, name):
        only = {"marker": "o", "markersize": 3} if len(points) == 1 else {}
        axes.plot(*zip(*points, strict=True), color=colour, label=label, linewidth=1.3, **only | style)


def _smoothed(axes: Any, rows: Rows, name: str, colour: str, label: str | None) -> None:
    """Every value faint, and over it their running mean where there are enough of them."""
    points = [(x, y) for x, y in _points(rows, name) if math.isfinite(y)]
    span = round(SMOOTH * len(points))
    if span < 2:
        _line(axes, rows, name, colour, label)
        return
    xs, ys = zip(*points, strict=True)
    axes.plot(xs, ys, color=FAINT, linewidth=0.7)
    means, mean = [], ys[0]
    for y in ys:
        mean += (y - mean) / span
        means.append(mean)
    axes.plot(xs, means, color=colour, linewidth=1.6, label=label)


def _stages(axes: Iterable[Any], rows: Rows) -> None:
    """A thin line where the stage of a curriculum changes."""
    steps = _points(rows, "stage")
    changes = [now for (_, before), (now, stage) in pairwise(steps) if stage != before]
    for place in axes:
        for number, step in enumerate(changes):
            label = "next stage" if number == 0 else None
            place.axvline(step, color=INK, linewidth=0.7, linestyle=":", label=label)
        if changes:
            place.legend(**LEGEND)


def _columns(rows: Rows) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _layer(column: str) -> tuple[int, str]:
    """Depth and the rest of a module's path: "layers.3.memory/theta" -> (3, "memory")."""
    parts = column.rpartition("/")[0].split(".")
    if len(parts) > 1 and parts[0] == "layers" and parts[1].isdigit():
        return int(parts[1]), ".".join(parts[2:])
    return -1, ".".join(parts)


def _shades(count: int) -> list[Any]:
    from matplotlib import colormaps

    shade: Callable[[float], Any] = colormaps["viridis"]
    return [shade(0.85 * i / max(1, count - 1)) for i in range(count)]


def _legend_of_layers(figure: Any, colours: dict[tuple[int, str], Any]) -> None:
    from matplotlib.lines import Line2D

    layers = list(colours)
    if len(layers) > MOST_NAMED:
        step = (len(layers) - 1) / (MOST_NAMED - 1)
        layers = [layers[round(i * step)] for i in range(MOST_NAMED)]
    several = len({part for _, part in colours}) > 1
    names = [f"layer {depth}" + (f", {part}" if several else "") if depth >= 0 else part for depth, part in layers]
    lines = [Line2D([], [], color=colours[layer]) for layer in layers]
    figure.legend(lines, names, loc="outside lower center", ncols=4, frameon=False, fontsize=9)

"""What attribution rows come to: the share of answers whose needle's part ranks first, and a picture of the falls.

Special: the share stands beside chance (the needle's parts among all parts) and beside the same with the memory off,
where it must be chance.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from neuralmem.evaluation.heatmap import COLOURS, EMPTY
from neuralmem.evaluation.pictures import INK, PAPER, REACH, save, short
from neuralmem.evaluation.stats import wilson

SHOWN = 32  # prompts of a picture, at most
Row = Mapping[str, Any]


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line per task, haystack, length and ablation.

    Columns: n; hit1 with its 95% interval; chance; rank, the mean; parts, their mean number; drop_needle and
    drop_others, mean falls of the answer's log-likelihood in nats.
    """
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        key = (row["task"], row["protocol"], row["haystack_id"], row["nominal_len"], row["ablation"])
        groups.setdefault(key, []).append(row)
    lines = []
    for key, own in groups.items():
        share = wilson(sum(row["hit"] for row in own), len(own))
        line = dict(zip(("task", "protocol", "haystack", "nominal_len", "ablation"), key, strict=True))
        line |= {"part_tokens": own[0]["part_tokens"], "reach": own[0]["reach"], "n": len(own)}
        line |= {"hit1": share.share, "hit1_low": share.low, "hit1_high": share.high}
        line |= {"chance": fmean(row["chance"] for row in own), "rank": fmean(row["rank"] for row in own)}
        line |= {"parts": fmean(len(row["drops"]) for row in own)}
        line |= {"drop_needle": _mean_drop(own, True), "drop_others": _mean_drop(own, False)}
        lines.append(line)
    return lines


def _mean_drop(rows: Sequence[Row], needle: bool) -> float:
    """The mean fall over the parts that hold the needle, or over the others; NaN where none is a number."""
    found = [
        drop
        for row in rows
        for i, drop in enumerate(row["drops"])
        if (i in row["needle_parts"]) == needle and drop is not None
    ]
    return fmean(found) if found else float("nan")


def draw(rows: Sequence[Row], folder: Path, checkpoint: str) -> list[Path]:
    """A picture per task, haystack and length: a row per prompt, a column per part; returns the paths."""
    written = []
    for name in dict.fromkeys((row["task"], row["haystack_id"], row["nominal_len"]) for row in rows):
        own = [row for row in rows if (row["task"], row["haystack_id"], row["nominal_len"]) == name]
        plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in name[1].split(":")[0])
        path = folder / f"attribution_{name[0]}_{plain}_{name[2]}.png"
        written.append(save(picture(own, checkpoint), path))
    return written


def picture(rows: Sequence[Row], checkpoint: str) -> Any:
    """The figure of one task, haystack and length, a `matplotlib.figure.Figure`."""
    from matplotlib.figure import Figure

    ablations = list(dict.fromkeys(row["ablation"] for row in rows))
    asked = max(sum(row["ablation"] == name for row in rows) for name in ablations)
    count = min(SHOWN, asked)
    figure = Figure(figsize=(1.2 + 4.2 * len(ablations), 1.9 + 0.14 * count), facecolor=PAPER, layout="constrained")
    falls = sorted(x for row in rows for x in row["drops"] if x is not None)
    top = max(falls[-1] if falls else 0.0, 1e-6)
    panels = figure.subplots(1, len(ablations), squeeze=False)[0]
    images = []
    for axes, ablation in zip(panels, ablations, strict=True):
        own = [row for row in rows if row["ablation"] == ablation]
        images.append(_panel(axes, sorted(own[:SHOWN], key=lambda row: row["needle_span"]), top))
        share = wilson(sum(row["hit"] for row in own), len(own))
        mode = "memory on" if ablation == "none" else f"memory {ablation}"
        chance = fmean(row["chance"] for row in own)
        title = f"{mode}: first in {100 * share.share:.0f}% of {share.n} (chance {100 * chance:.0f}%)"
        axes.set_title(title, fontsize=9, color=INK, loc="left")
    panels[0].set_ylabel(f"{count} of {asked} prompts, needle early to late", fontsize=8.5, color=INK)
    bar = figure.colorbar(images[0], ax=list(panels), fraction=0.03, pad=0.01)
    bar.set_label("fall without the part, nats", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7.5, length=0, colors=INK)
    bar.outline.set_visible(False)
    row = rows[0]
    about = f"{checkpoint}  ·  {row['task']}, {short(row['nominal_len'])} tokens, parts of {row['part_tokens']}"
    figure.suptitle(f"{about}  ·  outlined: the needle's part", fontsize=9.5, color=INK, x=0.01, ha="left")
    return figure


def _panel(axes: Any, rows: Sequence[Row], top: float) -> Any:
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    values = np.full((len(rows), max(len(row["drops"]) for row in rows)), np.nan)
    for y, row in enumerate(rows):
        values[y, : len(row["drops"])] = [np.nan if x is None else max(x, 0.0) for x in row["drops"]]
    colours = LinearSegmentedColormap.from_list("fall", COLOURS).with_extremes(bad=EMPTY)
    image = axes.imshow(values, cmap=colours, vmin=0, vmax=top, aspect="auto", interpolation="nearest")
    for y, row in enumerate(rows):
        first, last = row["needle_parts"][0], row["needle_parts"][-1]
        axes.add_patch(Rectangle((first - 0.5, y - 0.5), last - first + 1, 1, fill=False, edgecolor=REACH, linewidth=1))
    size, start = rows[0]["part_tokens"], rows[0]["first_token"]
    places = range(0, values.shape[1], max(1, values.shape[1] // 6))
    axes.set_xticks([x - 0.5 for x in places], [f"{start + x * size:,}" for x in places])
    axes.set_yticks([])
    axes.set_xlabel("first token of the part that is left out", fontsize=8.5, color=INK)
    axes.tick_params(length=0, colors=INK, labelsize=8)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image

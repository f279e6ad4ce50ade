"""What a memory does while it reads one text: surprise and gates of every token, the size of its state.

Special: the text is read twice. Once in one call from a fresh state, where every token is observed exactly once, and
once chunk by chunk, for what only the end of a call shows (the norm of the state, as of the last chunk's start).
Looking changes nothing that is computed: a test compares logits and states bit by bit.
Source: evaluation.md section 9, number 5.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from neuralmem import probe
from neuralmem.data.needle_format import NeedleFormat
from neuralmem.evaluation.heatmap import COLOURS
from neuralmem.evaluation.pictures import INK, PAPER, REACH
from neuralmem.generation.protocol import TokenizerLike, device_of
from neuralmem.models.causal_lm import CausalLM

Span = tuple[int, int]
UNITS = {
    "surprise": "surprise\n(inner loss)",
    "write": "write gate\n(0 to 1)",
    "theta": "theta\n(inner rate)",
    "eta": "eta\n(momentum)",
    "alpha": "alpha\n(forgets)",
    "state_norm": "state norm",
}
LINES = 6  # modules that are drawn as lines; more become rows of an image
SMOOTH = 256  # tokens; longer texts get a running mean over their values


@dataclass(frozen=True)
class Seen:
    """What one module showed.

    Args:
        module: its path in the model
        tokens: one value per token, by what it is; means over heads
        steps: one value per chunk, of what is not observed of single tokens
    """

    module: str
    tokens: dict[str, list[float]]
    steps: dict[str, list[float]]


@torch.no_grad()
def look(model: CausalLM, ids: Tensor, step: int) -> list[Seen]:
    """Read a text and observe every memory in the model, in the order of its modules.

    Args:
        model: any; without a memory nothing is seen
        ids: Int [T]
        step: tokens per call of the second reading; a chunk
    """
    text = ids.long().to(device_of(model))[None]
    with probe.recording(model, per_token=True) as record:
        model(text, select=torch.zeros_like(text, dtype=torch.bool))
    tokens: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for name, values in record.tokens().items():
        module, _, quantity = name.rpartition("/")
        # Several memories under one name, as the local ones of TNT, follow upon each other: their mean.
        tokens[module][quantity] = values.view(-1, len(ids)).mean(0).tolist()
    steps: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    state = None
    for piece in text.split(step, dim=1):
        with probe.recording(model) as record:
            _, state = model(piece, state, select=torch.zeros_like(piece, dtype=torch.bool))
        for name, value in record.means().items():
            module, _, quantity = name.rpartition("/")
            if quantity not in tokens[module] and not quantity.endswith("_saturated"):
                steps[module][quantity].append(value)
    found = [name for name, _ in model.named_modules() if tokens.get(name) or steps.get(name)]
    return [Seen(name, tokens[name], dict(steps[name])) for name in found]


def find_facts(ids: Sequence[int], tokenizer: TokenizerLike, form: NeedleFormat) -> list[Span]:
    """Token spans of everything in a text that is written like a fact of training."""
    pieces = [tokenizer.decode([i]) for i in ids]
    token = [n for n, piece in enumerate(pieces) for _ in piece]
    known = {"{key}": r"\S+", "{value}": rf"\d{{{form.digits}}}"}
    parts = re.split(r"(\{key\}|\{value\})", form.fact)
    pattern = "".join(known.get(part, re.escape(part)) for part in parts)
    return [(token[m.start()], token[m.end() - 1] + 1) for m in re.finditer(pattern, "".join(pieces))]


def summarise(seen: Sequence[Seen], facts: Sequence[Span], asked: Span | None, total: int) -> list[dict[str, Any]]:
    """One line per module and quantity of tokens: the mean over the text, over facts, the asked one and all else."""
    inside = {i for start, stop in facts for i in range(start, stop)}
    lines = []
    for one in seen:
        for quantity, values in one.tokens.items():
            if quantity.endswith("_saturated"):
                continue
            groups = {
                "text": range(total),
                "facts": sorted(inside),
                "asked": range(*asked) if asked else [],
                "elsewhere": [i for i in range(total) if i not in inside],
            }
            means = {name: fmean(values[i] for i in some) if some else None for name, some in groups.items()}
            lines.append({"module": one.module, "quantity": quantity} | means)
    return lines


def draw(seen: Sequence[Seen], facts: Sequence[Span], asked: Span | None, step: int, title: str) -> Any:
    """A panel per quantity over the text, a line (of many modules: a row of an image) per module.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure

    shown = [name for name in UNITS if any(name in one.tokens or name in one.steps for one in seen)]
    others = dict.fromkeys(name for one in seen for name in (*one.tokens, *one.steps))
    shown += [name for name in others if name not in shown and not name.endswith("_saturated")]
    figure = Figure(figsize=(10, 1.0 + 1.35 * len(shown)), facecolor=PAPER, layout="constrained")
    panels = figure.subplots(len(shown), 1, squeeze=False, sharex=True)[:, 0]
    colours = _shades(len(seen))
    for axes, quantity in zip(panels, shown, strict=True):
        curves = {one.module: curve for one in seen if (curve := _curve(one, quantity, step))}
        if len(seen) > LINES:
            _image(figure, axes, curves)
        else:
            for one, colour in zip(seen, colours, strict=True):
                if one.module in curves:
                    _line(axes, *curves[one.module], colour, one.module)
        for span in dict.fromkeys([*facts, *([asked] if asked else [])]):
            place = axes.axvspan(*span, color=REACH, alpha=0.55 if span == asked else 0.16, linewidth=0, zorder=0)
            place.set_gid("asked" if span == asked else "fact")
        axes.set_ylabel(UNITS.get(quantity, quantity), fontsize=8, color=INK)
        axes.tick_params(labelsize=7.5, colors=INK, length=2)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[-1].set_xlabel("token", fontsize=8.5, color=INK)
    about = "  ·  shaded: facts, the asked one darker" if asked else "  ·  shaded: facts" if facts else ""
    figure.suptitle(title + about, fontsize=9.5, color=INK, x=0.01, ha="left")
    if 1 < len(seen) <= LINES:
        panels[0].legend(fontsize=7.5, frameon=False, loc="upper right")
    return figure


def _curve(one: Seen, quantity: str, step: int) -> tuple[list[float], list[float]] | None:
    """Places and values of what a module showed, those of a chunk at the chunk's last token."""
    if quantity in one.tokens:
        return list(range(len(one.tokens[quantity]))), one.tokens[quantity]
    if quantity in one.steps:
        values = one.steps[quantity]
        return [(i + 1) * step - 1 for i in range(len(values))], values
    return None


def _line(axes: Any, places: list[float], values: list[float], colour: Any, name: str) -> None:
    import numpy as np

    if len(places) <= SMOOTH:
        axes.plot(places, values, color=colour, linewidth=1.1, label=name)
        return
    axes.plot(places, values, color=colour, linewidth=0.5, alpha=0.4)
    width = max(3, len(places) // 100)
    smooth = np.convolve(values, np.ones(width) / width, mode="valid")
    axes.plot(places[width // 2 :][: len(smooth)], smooth, color=colour, linewidth=1.4, label=name)


def _image(figure: Any, axes: Any, curves: Mapping[str, tuple[list[float], list[float]]]) -> None:
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    values = np.array([values for _, values in curves.values()])
    places = next(iter(curves.values()))[0]
    colours = LinearSegmentedColormap.from_list("seen", COLOURS)
    extent = (0, places[-1] + 1, len(values) - 0.5, -0.5)
    image = axes.imshow(values, cmap=colours, aspect="auto", interpolation="nearest", extent=extent)
    marks = sorted({0, len(values) - 1})
    axes.set_yticks(marks, [list(curves)[i] for i in marks])
    figure.colorbar(image, ax=axes, fraction=0.02, pad=0.01).ax.tick_params(labelsize=7, colors=INK)


def _shades(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["viridis"](0.35 + 0.5 * i / max(1, count - 1)) for i in range(count)]

"""The tables of the trained models in the package, made from the `made.json` of each and from nowhere else.

Run by checkpoints.py, `--step docs`.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from record import fill

from neuralmem.models.checkpoint import load
from neuralmem.models.pretrained import FOLDER

ROOT = Path(__file__).parent.parent
MODELS = {
    "mag-tiny": "Titans MAG",
    "mac-tiny": "Titans MAC",
    "hope-tiny": "HOPE",
    "window-tiny": "sliding window, no memory",
}
TEXT = {"mal-tiny": "Titans MAL, taught text and no facts"}
CONTROLS = "frozen,off,reset,shuffled"


def share(line: dict[str, str], name: str, n: str) -> str:
    """A share in percent with its interval and n."""
    value, low, high = (100 * float(line[key]) for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value:.1f}% ({low:.1f}-{high:.1f}, n={line[n]})"


def lines_of(scores: dict[str, Any], name: str, **wanted: str) -> list[dict[str, str]]:
    """The lines of an answered question whose columns hold what is wanted."""
    found = scores.get(name, {}).get("lines", ())
    return [line for line in found if all(line[column] == value for column, value in wanted.items())]


def needle(name: str, ablation: str = "none") -> Callable[[dict[str, Any]], str]:
    """A cell: needles found beyond reach."""

    def cell(scores: dict[str, Any]) -> str:
        lines = lines_of(scores, name, ablation=ablation)
        return share(lines[0], "beyond", "n_beyond") if lines else ""

    return cell


def within(scores: dict[str, Any]) -> str:
    """A cell: facts said that attention can still see."""
    lines = lines_of(scores, "within_reach", ablation="none")
    named = [{**line, "accuracy_low": line["low"], "accuracy_high": line["high"]} for line in lines]
    return share(named[0], "accuracy", "n") if named else ""


def overwritten(column: str, updates: str) -> Callable[[dict[str, Any]], str]:
    """A cell: answers for keys whose value changed so often."""

    def cell(scores: dict[str, Any]) -> str:
        lines = lines_of(scores, "overwrite", updates=updates)
        return share(lines[0], column, f"{column}_n") if lines else ""

    return cell


def hit(scores: dict[str, Any]) -> str:
    """A cell: how often the needle's part is the one that the answer hangs on most."""
    lines = lines_of(scores, "attribution", ablation="none")
    return share(lines[0], "hit1", "n") if lines else ""


def bits(scores: dict[str, Any], memory: str = "on") -> str:
    """A cell: bits per byte of held-out sources."""
    lines = lines_of(scores, "perplexity", memory=memory)
    return f"{float(lines[0]['bits_per_byte']):.3f}" if lines else ""


def falls(memory: str) -> Callable[[dict[str, Any]], str]:
    """A cell: change of the loss from the training length to the last bucket, nats."""

    def cell(scores: dict[str, Any]) -> str:
        lines = lines_of(scores, "positions", memory=memory)
        if not lines:
            return ""
        return nats(lines[-1], "change")

    return cell


def nats(line: dict[str, str], name: str) -> str:
    """A difference in nats with its interval."""
    value, low, high = (float(line[key]) for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"


ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "needle in noise (s-niah-pk), 16K": needle("needle_16k"),
    "the same, 256K": needle("needle_256k"),
    "the same, 1M": needle("needle_1m"),
    "number in text (s-niah-n), 16K": needle("number_16k"),
    "one of five facts in 128 bytes, within reach": within,
    "eight keys told once": overwritten("accuracy", "0"),
    "told again with another value: the latest": overwritten("accuracy", "1"),
    "the old one": overwritten("stale", "1"),
}
CONTROL_ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    f"{about}, memory {control}": needle(f"{name}_controls", control)
    for about, name in (("needle in noise, 16K", "needle_16k"), ("number in text, 16K", "number_16k"))
    for control in CONTROLS.split(",")
}
MORE_ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "keys told again four times: the latest": overwritten("accuracy", "4"),
    "an old one": overwritten("stale", "4"),
    "the needle's part ranks first (attribution, 4K)": hit,
    "bits per byte of held-out sources": bits,
    "bits per byte, memory off": lambda scores: bits(scores, "off"),
    "loss at 8K to 16K less that at the training length, lines shuffled, nats": falls("on"),
    "that loss difference, memory off": falls("off"),
}


def compare(rows: dict[str, Callable[[dict[str, Any]], str]]) -> str:
    """A column per shipped model, a row per figure; what was not asked is a blank."""
    models = shipped()
    lines = [
        "| | " + " | ".join(f"`{name}`, {MODELS[name]}" for name in models) + " |",
        "|---" * (len(models) + 1) + "|",
    ]
    lines += [
        f"| {about} | {' | '.join(cell(made['scores']) for made in models.values())} |" for about, cell in rows.items()
    ]
    return "\n".join(lines)


def side_by_side() -> str:
    """A row per memory: what it answers on the same questions, what it keeps, and how long it takes; none: ""."""
    heads = ["memory", "beyond reach", "kept, bytes", "reading, ms", "asking, ms"]
    lines = []
    for name, made in shipped().items():
        for line in made["scores"].get("baselines", {}).get("lines", ()):
            memory = f"`{name}`" if not line["baseline"] else f"`{line['memory']}`"
            cells = [memory, share(line, "beyond", "n_beyond"), f"{float(line['kept_bytes']):,.0f}"]
            cells += [f"{float(line[key]):,.0f}" for key in ("read_ms", "ask_ms")]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines] if lines else [])


def by_position() -> str:
    """A row per bucket of positions of the model that was taught text, lines in random order; none: ""."""
    heads = ["tokens read before", "loss, nats", "against the training length", "memory frozen", "memory off"]
    lines = []
    for made in shipped(TEXT).values():
        found = {
            (line["memory"], line["start"], line["end"]): line
            for line in lines_of(made["scores"], "positions_shuffled")
        }
        for (memory, start, end), line in found.items():
            if memory != "on":
                continue
            cells = [f"{int(start) + 1:,} to {int(end):,}", f"{float(line['loss']):.3f}", nats(line, "change")]
            cells += [nats(found[control, start, end], "gain") for control in ("frozen", "off")]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines] if lines else [])


def about() -> str:
    """A row per shipped model: how it was made."""
    heads = ["model", "parameters", "reach, tokens", "steps", "tokens read", "seed", "commit", "file", "data, sha256"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, made in shipped(MODELS | TEXT).items():
        size = (FOLDER / name / "model.safetensors").stat().st_size / 1e6
        seen, before = made["training"], made.get("origin")
        cells = [
            f"`{name}`",
            f"{made['parameters']:,}",
            f"{load(FOLDER / name)[0].reach:,}",
            " + ".join(f"{part['step']:,.0f}" for part in (before, seen) if part),
            " + ".join(f"{part['tokens'] / 1e6:.1f}M" for part in (before, seen) if part),
        ]
        commit, *dirty = made["trained"]["commit"].split("-")
        cells += [
            str(made["seed"]),
            commit[:7] + "+changes" * bool(dirty),
            f"{size:.1f} MB",
            made["data"]["train"][:12],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shipped(names: Iterable[str] = MODELS) -> dict[str, dict[str, Any]]:
    """made.json of every one of these models that is shipped."""
    return {name: json.loads(file.read_text()) for name in names if (file := FOLDER / name / "made.json").exists()}


def update_docs() -> None:
    """Put the tables between the markers of the README and of the page."""
    pages = {
        "README.md": compare(ROWS),
        "docs/baselines.md": side_by_side(),
        "docs/checkpoints.md": f"{about()}\n\n{compare(ROWS | CONTROL_ROWS | MORE_ROWS)}",
    }
    for page, tables in pages.items():
        fill(ROOT / page, "checkpoints", f"{tables}\n")
    fill(ROOT / "docs" / "checkpoints.md", "positions", f"{by_position()}\n")

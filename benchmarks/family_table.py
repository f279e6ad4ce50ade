"""The results of family.py as one table and one plot: docs/family.md and its picture, made of nothing else."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, median
from typing import Any

from record import RESULTS, fill

DOCS = Path(__file__).parent.parent / "docs" / "family.md"
PICTURE = DOCS.parent / "images" / "family.png"
CHANCE = 1 / 64  # a value guessed

Row = dict[str, Any]
COLUMNS = (
    "parameters",
    "state",
    "tokens",
    "1x",
    "4x",
    "16x",
    "64x",
    "latest",
    "outdated",
    "bits/byte",
    "held bits",
    "bits per state byte",
    "µs per token: train",
    "read",
)


def update_docs() -> None:
    """Write the tables between the markers of docs/family.md, and the plot."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*/family.json"))]
    parts = [f"### {one['machine']['processor']}\n\n{provenance(one)}\n\n{table(one)}\n" for one in found]
    if parts and DOCS.exists():
        picture = "![recall over the gap, member by member](images/family.png)\n"
        text = "\n".join([*parts, picture])
        fill(DOCS, "results", f"\n{text}\n")
        draw(found[-1]["rows"]).savefig(PICTURE, dpi=150)


def update_hope() -> None:
    """Write the tables of hope.py between their markers."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*/hope.json"))]
    if found and DOCS.exists():
        text = "\n".join(f"{provenance(one)}\n\n{hope_tables(one['rows'])}\n" for one in found)
        fill(DOCS, "hope", f"\n{text}\n")


def hope_tables(rows: list[Row]) -> str:
    """Perplexity, then tasks in sequence."""
    columns = {
        "perplexity": {"bits/byte": "bits_per_byte", "first 128 bytes": "first", "last 128 of 4,096": "last"},
        "sequence": {key.replace("_", " "): key for key in ("learned", "accuracy", "backward_transfer", "forgetting")},
    }
    parts = []
    for claim, shown in columns.items():
        header = ["member", "parameters", "state", "tokens", *shown]
        lines = ["| " + " | ".join(header) + " |", "|---" + "|--:" * (len(header) - 1) + "|"]
        groups: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            if row["claim"] == claim and "failed" not in row:
                groups[row["member"]].append(row)
        failed = [row for row in rows if row["claim"] == claim and "failed" in row]
        lines += [f"| {row['member']} (seed {row['seed']}) | {row['failed']} |" for row in failed]
        for name, own in groups.items():
            sizes = [f"{own[0]['parameters'] / 1e3:.0f}K", f"{own[0]['state_bytes'] / 1024:.0f} KB"]
            seen = f"{median(row['tokens'] for row in own) / 1e6:.1f}M"
            found = ([row[key] for row in own] for key in shown.values())
            cells = [f"{mean(x):.3f} ({min(x):.3f} to {max(x):.3f})" for x in found]
            lines.append("| " + " | ".join([name, *sizes, seen, *cells]) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def provenance(result: Row) -> str:
    made, settings = result["machine"], result["settings"]
    commits = ", ".join(sorted({row["commit"] for row in result["rows"]}))
    seeds = len({row["seed"] for row in result["rows"]})
    return (
        f"torch {made['torch']}, commit {commits}; {seeds} seeds, at most "
        f"{settings['steps']} steps or {settings['seconds']:g} s of CPU time each. "
        "Means over seeds, in brackets the least and the most."
    )


def by_member(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows of every member, best recall at the longest gap first, baselines in front."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["member"]].append(row)

    def rank(name: str) -> tuple[bool, float]:
        good = [row for row in groups[name] if "failed" not in row]
        return groups[name][0]["kind"] != "baseline", -mean(score(row) for row in good) if good else 1.0

    return {name: groups[name] for name in sorted(groups, key=rank)}


def score(row: Row) -> float:
    """Recall over all gaps."""
    return mean(row["recall"].values())


def table(result: Row) -> str:
    """Markdown, a line per member."""
    rows, costs = result["rows"], result.get("costs", {}).get("us_per_token", {})
    lines = ["| member | " + " | ".join(COLUMNS) + " |", "|---" + "|--:" * len(COLUMNS) + "|"]
    for name, own in by_member(rows).items():
        good = [row for row in own if "failed" not in row]
        if good:
            lines.append(f"| {name} | " + " | ".join([*cells(good), *spent(costs.get(name))]) + " |")
        lines += [f"| {name} (seed {row['seed']}) | {row['failed']} |" for row in own if "failed" in row]
    return "\n".join(lines)


def cells(rows: list[Row]) -> list[str]:
    """One member's line."""
    first, held = rows[0], [max(row["held_bits"].values()) for row in rows]
    return [
        f"{first['parameters'] / 1e3:.0f}K",
        f"{first['state_bytes'] / 1024:.0f} KB",
        f"{median(row['tokens'] for row in rows) / 1e6:.2f}M{' (cut)' if any(row['cut'] for row in rows) else ''}",
        *(percent([row["recall"].get(times) for row in rows]) for times in ("1", "4", "16", "64")),
        percent([row["latest"] for row in rows]),
        percent([row["outdated"] for row in rows]),
        f"{mean(row['bits_per_byte'] for row in rows):.2f}",
        f"{mean(held):.0f}",
        # Full attention's state grows with what it read: there is no one size to divide by.
        "-" if first["config"]["attention"]["window"] is None else f"{mean(held) / first['state_bytes']:.4f}",
    ]


def spent(cost: Row | None) -> list[str]:
    """CPU time per token of training and reading, measured side by side; dashes where it was not."""
    return [f"{cost[kind]['median']:.0f}" if cost else "-" for kind in ("train", "read")]


def percent(shares: list[float | None]) -> str:
    """Mean (least-most); a dash where nothing was measured."""
    known = [share for share in shares if share is not None]
    if not known:
        return "-"
    spread = f" ({min(known):.0%}-{max(known):.0%})" if len(known) > 1 else ""
    return f"{mean(known):.0%}{spread}"


def draw(rows: list[Row]) -> Any:
    """Recall over the gap, a small picture per member against the window alone."""
    from matplotlib.figure import Figure

    groups = by_member([row for row in rows if "failed" not in row])
    columns = 4
    figure = Figure(figsize=(11, 2.1 * -(-len(groups) // columns)), layout="constrained")
    axes = figure.subplots(-(-len(groups) // columns), columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, (name, own) in zip(axes, groups.items(), strict=False):
        axis.axhline(CHANCE, color="#bbbbbb", linewidth=1)
        for row in own:
            axis.plot([int(t) for t in row["recall"]], list(row["recall"].values()), color="#237a86", alpha=0.8)
            if row["frozen"]:
                axis.plot([int(t) for t in row["frozen"]], list(row["frozen"].values()), color="#e4572e", alpha=0.8)
        axis.set_title(name, fontsize=9, loc="left")
        axis.set_xscale("log", base=2)
        axis.set_ylim(0, 1.02)
        axis.grid(alpha=0.2)
    for axis in axes[len(groups) :]:
        axis.set_axis_off()
    figure.supxlabel("gap in training lengths of 128 tokens", fontsize=9)
    figure.supylabel("recall; orange: memory frozen; grey: chance", fontsize=9)
    return figure

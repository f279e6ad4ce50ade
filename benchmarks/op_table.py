"""Results of op.py as Markdown, and docs/benchmarks.md, which is made of results/*/op.json and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from record import RESULTS, fill

DOCS = Path(__file__).parent.parent / "docs" / "benchmarks.md"
PEER = "titans-pytorch"  # what ratios are of
MODES = ("forward", "forward+backward")

Row = dict[str, Any]


def grid(
    rows: list[Row], line: Callable[[Row], str], column: Callable[[Row], str], cell: Callable[[Row], str]
) -> list[str]:
    """A table; lines and columns stand in the order in which the rows bring them up, what is missing is a dash."""
    cells = {(line(row), column(row)): cell(row) for row in rows}
    lines, columns = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    shown = ["| " + " | ".join(["", *columns]) + " |", "|---" + "|--:" * len(columns) + "|"]
    return [
        *shown,
        *("| " + " | ".join([name, *(cells.get((name, c), "-") for c in columns)]) + " |" for name in lines),
    ]


def seconds(row: Row) -> float:
    """Of the CPU with one thread, else of the clock; NaN where it failed."""
    return row["cpu" if row["threads"] == 1 else "wall"]["median"] if "failed" not in row else float("nan")


def duration(row: Row) -> str:
    """Milliseconds to three digits."""
    return row["failed"] if "failed" in row else f"{1000 * seconds(row):,.{digits(1000 * seconds(row))}f} ms"


def digits(x: float) -> int:
    """Decimals that leave three digits, two at most."""
    return 0 if x >= 100 else 1 if x >= 10 else 2


def times_faster(row: Row, rows: list[Row], than: str, same: tuple[str, ...]) -> str:
    """ " (3.1x)": how much faster than the contender `than` in the row that agrees in the fields `same`."""
    others = [r for r in rows if r["contender"] == than and all(r[key] == row[key] for key in same)]
    if row["contender"] == than or not others or "failed" in row or "failed" in others[0]:
        return ""
    return f" ({seconds(others[0]) / seconds(row):.1f}x)"


def spread(rows: list[Row]) -> str:
    """How far rounds lay apart, in percent of their median."""
    kinds = ["cpu" if row["threads"] == 1 else "wall" for row in rows]
    found = [row[kind] for row, kind in zip(rows, kinds, strict=True) if row.get("rounds", 0) > 1]
    wide = [100 * (x["most"] - x["least"]) / x["median"] for x in found]
    return f"Most less least, of the median: usually {median(wide):.0f}%, at worst {max(wide):.0f}%." if wide else ""


def layer(rows: list[Row]) -> list[str]:
    rows = [row for row in rows if row["section"] == "layer"]
    rows.sort(key=lambda row: "gemm" in row["contender"])  # the contenders first
    same = ("threads", "chunk", "mode")

    def cell(row: Row) -> str:
        if "gemm" in row["contender"]:
            return f"{row['gflops']:.0f} GFLOP/s"
        return duration(row) + times_faster(row, rows, PEER, same)

    return grid(rows, lambda r: r["contender"], lambda r: f"chunk {r['chunk']}, {r['mode']}", cell)


def share(row: Row) -> str:
    return row["failed"] if "failed" in row else f"{duration(row)}, {100 * row['of_gemm']:.0f}%"


def op(rows: list[Row], mode: str) -> list[list[str]]:
    """By length and chunk at the sizes that were measured most, then by head and expansion."""
    rows = [r for r in rows if r["section"] == "op" and r["mode"] == mode and "gemm" not in r["contender"]]
    if not rows:
        return []
    kinds = [(r["width"], r["expansion"]) for r in rows]
    most = max(kinds, key=kinds.count)
    main, others = ([r for r in rows if ((r["width"], r["expansion"]) == most) == same] for same in (True, False))
    main.sort(key=lambda r: r["chunk"])  # stable: within a chunk as measured
    grids = [grid(main, lambda r: f"chunk {r['chunk']}, {r['contender']}", lambda r: f"{r['total']:,} tokens", share)]
    if others:
        grids.append(grid(others, lambda r: r["contender"], lambda r: f"d {r['width']}, e {r['expansion']}", share))
    return grids


def decode(rows: list[Row]) -> list[str]:
    rows = [row for row in rows if row["section"] == "decode"]
    return grid(rows, lambda r: r["contender"], lambda r: f"after {r['position']:,}", duration)


def memory(rows: list[Row]) -> list[str]:
    rows = [row for row in rows if row["section"] == "memory"]

    def cell(row: Row) -> str:
        return row["failed"] if "failed" in row else f"{row['bytes'] / 2**20:,.0f} MiB"

    return grid(rows, lambda r: r["contender"], lambda r: f"{r['level']}, {r['total']:,} tokens", cell)


def quickstart(rows: list[Row]) -> list[str]:
    rows = [row for row in rows if row["section"] == "quickstart"]

    def cell(row: Row) -> str:
        return duration(row) + times_faster(row, rows, "chunked", ("threads", "stage"))

    return grid(rows, lambda r: r["contender"], lambda r: f"{r['stage']} stage", cell)


def tables(rows: list[Row]) -> list[str]:
    """All tables that there are rows for, as Markdown."""
    shown: list[str] = []
    for threads in sorted({row["threads"] for row in rows}):
        mine = [row for row in rows if row["threads"] == threads]
        kind = "CPU time" if threads == 1 else "time by the clock"
        where = "GPU time" if mine[0]["device"] == "cuda" else f"{threads} thread{'s' * (threads > 1)}, {kind}"
        parts: list[tuple[str, str, list[list[str]]]] = [
            ("layer", f"Whole memory layers (in brackets: times faster than {PEER})", [layer(mine)]),
            *(
                ("op", f"The update alone, {mode}, and share of a large matrix product's rate", op(mine, mode))
                for mode in MODES
            ),
            ("decode", "One more token, by what was read before", [decode(mine)]),
            ("memory", "Peak memory of forward and backward", [memory(mine)]),
            (
                "quickstart",
                "A training step of the quickstart (in brackets: times faster than chunked)",
                [quickstart(mine)],
            ),
        ]
        for section, title, grids in parts:
            own = [row for row in mine if row["section"] == section]
            if own:
                shown += [f"**{title}** ({where}{sizes(own[0])}). {spread(own)}".strip(), ""]
                shown += [text for one in grids for text in (*one, "")]
    return shown


def sizes(row: Row) -> str:
    """What all rows of a section share."""
    if row["section"] not in ("layer", "decode", "memory"):
        return ""
    length = f", {row['total']:,} tokens" if row["section"] == "layer" else f", chunk {row['chunk']}"
    return f"; batch {row['batch']}, {row['heads']} heads of {row['width']}, expansion {row['expansion']}{length}"


def page(path: Path) -> str:
    """The results of one machine."""
    content = json.loads(path.read_text())
    machine, rows = content["machine"], content["rows"]
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    versions = (
        f"torch {machine['torch']}, titans-pytorch {machine['titans_pytorch'] or 'not installed'}, commit {commits}"
    )
    head = [
        f"### {machine['gpu'] or machine['processor']}",
        "",
        f"{versions}. Source: `{path.relative_to(RESULTS.parent.parent)}`.",
        "",
    ]
    return "\n".join([*head, *tables(rows)]).rstrip()


def update_docs(docs: Path = DOCS) -> None:
    """Put every machine's results between the markers."""
    pages = [page(path) for path in sorted(RESULTS.glob("*/op.json"))]
    fill(docs, "results", "".join(f"\n{one}\n" for one in pages))

"""The report of an evaluation: one HTML file made of what lies in its folder, whatever the evaluation was.

Special: it knows only the form that all evaluations share, rows as JSON lines, a table as CSV, pictures as PNG, so it
can be made of any results folder, later, elsewhere, and of a run that was stopped. All that it shows is inside the file
and escaped; it says to the browser that nothing may be fetched.
"""

import csv
import hashlib
import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from neuralmem import durable, page, provenance
from neuralmem.errors import UserError
from neuralmem.evaluation.journal import MACHINE, read_lines

FILE = "report.html"
MOST_ROWS, MOST_VALUES, LONGEST = 200, 8, 80  # rows of a table; values of a setting, and characters of one
HIDDEN = {"wall_s", "read_s", "seconds", "hit", "state_bytes", "text_bytes", "index_bytes"}  # measured: no settings
MEANINGS = {
    "n": "measurements",
    "accuracy": "share of right answers",
    "low": "lower end of the 95% interval",
    "high": "upper end of the 95% interval",
    "null": "null model: what the reach of attention alone finds",
    "reach": "tokens back that attention windows and convolutions see without a memory",
    "n_beyond": "measurements farther back than the reach",
    "beyond": "share of right answers farther back than the reach: only the memory can give them",
    "official": "the task's own score",
    "strict": "the first string of the answer's type is the answer",
    "rank1": "the true answer is the likeliest of ten; chance is 0.1",
    "answer_nll": "nats of the true answer, mean; lower is better",
    "ablation": "control; see below",
    "depth_pct": "depth of the needle in percent of the text",
    "hit1": "share of prompts in which the answer suffers most without the needle's part",
    "chance": "share that a choice at random would have",
    "rank": "mean place of the right one; 1 is best",
    "drop_needle": "fall of the answer's log-likelihood without the needle's part, nats",
    "drop_others": "the same for all other parts",
}
MEASURED = MEANINGS.keys() - {"ablation", "reach"}
CONTROLS = {
    "none": "the model as it is",
    "frozen": "nothing is written, reads see the learned initial weights",
    "off": "the memory's output is zero",
    "reset": "the state is emptied before the question",
    "shuffled": "the state of another text is asked",
}


class Results(NamedTuple):
    """A results folder.

    Args:
        name: of the evaluation
        lines: the file of rows
        rows: its rows
        tables: CSV files
        pictures: PNG files
    """

    name: str
    lines: Path
    rows: list[dict[str, Any]]
    tables: list[Path]
    pictures: list[Path]


def find_lines(folder: Path) -> tuple[str, Path] | None:
    """Name of the evaluation whose rows a folder holds, and their file; None if there are none.

    Needle runs call theirs rows.jsonl, those of several memories as well, all others their own name.
    """
    files = sorted(folder.glob("*.jsonl"))
    named = [path for path in files if path.with_suffix(".csv").exists()] or files
    if not named:
        return None
    name = named[0].stem.replace("_", "-")
    if name == "rows":
        name = "baselines" if (folder / "baselines.csv").exists() else "niah"
    return name, named[0]


def read_results(folder: Path) -> Results:
    """What a results folder holds.

    Raises:
        UserError: it holds no rows, or something else than rows.
    """
    found = find_lines(folder)
    rows = list(read_lines(found[1])) if found else []
    if not found or not rows:
        raise UserError(f"--out is {str(folder)!r}, which holds no results (rows as .jsonl); give a results folder")
    return Results(*found, rows, sorted(folder.glob("*.csv")), sorted(folder.glob("*.png")))


def write_machine(folder: Path, command: Sequence[str]) -> None:
    """Write down with what and where an evaluation was made: machine.json, of its last call."""
    ended = time.strftime("%Y-%m-%d %H:%M:%S")
    described = {"command": shlex.join(["eval.py", *command]), **provenance.describe(), "ended": ended}
    durable.write_file(folder / MACHINE, json.dumps(described, indent=1) + "\n")


def write_report(folder: Path, docstrings: Mapping[str, str]) -> Path:
    """Make report.html of a results folder.

    Args:
        folder: with rows as JSON lines; tables, pictures, settings.json and machine.json where there are any
        docstrings: what each evaluation does, by name

    Returns:
        The report's path.

    Raises:
        UserError: the folder holds no results.
    """
    results = read_results(folder)
    path = folder / FILE
    durable.write_file(path, page.page(f"{results.name}: {_subject(folder)}", _body(folder, results, docstrings)))
    return path


def _subject(folder: Path) -> str:
    folder = folder.resolve()
    return f"{folder.parent.name}/{folder.name}"


def _body(folder: Path, results: Results, docstrings: Mapping[str, str]) -> Iterator[str]:
    rows, about = results.rows, docstrings.get(results.name, "")
    yield page.heading(f"{results.name}: {_subject(folder)}", 1)
    yield page.paragraph(about.partition("\n")[0])
    yield page.tiles(_headline(rows))
    names: list[str] = []
    for path in results.tables:
        columns, lines = _read_table(path)
        names += columns
        yield from _table(path.name, columns, lines)
    for path in results.pictures:
        yield page.picture(path.name, path.read_bytes())
    yield page.heading("What the numbers mean")
    yield from (page.paragraph(text) for text in [*_explanation(about), *reading(names, rows)])
    if known := {name: MEANINGS[name] for name in dict.fromkeys(names) if name in MEANINGS}:
        yield page.pairs(known)
    if modes := [mode for mode in CONTROLS if any(row.get("ablation") == mode for row in rows)]:
        yield page.heading("Controls") + page.pairs({mode: CONTROLS[mode] for mode in modes})
    yield page.heading("Settings, as the rows have them") + page.pairs(_settings(rows))
    if (path := folder / "settings.json").is_file():
        yield page.folded("settings.json", page.plain(path.read_text(encoding="utf-8")))
    yield page.heading("Where the numbers come from")
    yield page.pairs(_origin(folder, results))


def _headline(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The numbers that one looks at first."""
    found = {"rows": f"{len(rows):,}"}
    if tokens := sum(row.get("prompt_tokens") or 0 for row in rows):
        found["tokens of prompts"] = f"{tokens:,}"
    if seconds := sum(row.get("wall_s") or row.get("seconds") or 0 for row in rows):
        found["seconds"] = f"{seconds:,.0f}"
    if sizes := [row["state_bytes"] for row in rows if row.get("state_bytes")]:
        found["state of a sequence, at most"] = f"{max(sizes) / 1024:,.0f} KiB"
    for name, field in (("checkpoint", "ckpt_sha256"), ("tokenizer", "tokenizer_sha256")):
        if hashes := sorted({str(row[field])[:8] for row in rows if row.get(field)}):
            found[name] = hashes[0] if len(hashes) == 1 else f"{len(hashes)} of them"
    return found


def _read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(encoding="utf-8", newline="") as file:
        columns, *lines = list(csv.reader(file)) or [[]]
    return columns, [[_short(text) for text in line] for line in lines]


def _table(name: str, columns: list[str], lines: list[list[str]]) -> Iterator[str]:
    """A table; where some lines sum up others ("all" in a column), these first, the whole folded away.

    What is the same in all lines stands above them.
    """
    sums = [line for line in lines if "all" in line]
    shown = (sums or lines)[:MOST_ROWS]
    control = columns.index("ablation") if "ablation" in columns else None
    same = [i for i in range(len(columns)) if len(shown) > 1 and len({line[i] for line in shown}) == 1]
    yield page.heading(name)
    if same:
        yield page.paragraph("In all lines: " + ", ".join(f"{columns[i]} {shown[0][i] or 'empty'}" for i in same) + ".")
    kept = [i for i in range(len(columns)) if i not in same]
    faint = [control is not None and line[control] != "none" for line in shown]
    yield page.table([columns[i] for i in kept], ([line[i] for i in kept] for line in shown), faint)
    if len(shown) < len(lines):
        yield page.folded(f"all {len(lines)} lines", page.table(columns, lines[:MOST_ROWS]))


def _short(text: str) -> str:
    """A number as one reads it; anything else as it is."""
    if "." not in text:
        return text
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text


def _explanation(about: str) -> list[str]:
    """The paragraphs of a docstring between its first line and what is no sentence (options, lists of tasks)."""
    paragraphs = [" ".join(part.split()) for part in about.split("\n\n")[1:]]
    return [text for text in paragraphs if text.endswith(".") and not text.startswith("Prints")]


def reading(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """How to read what is there: no score without the one that takes no memory."""
    if "null" in columns or "chance" in columns:
        yield (
            "A score says something about the memory only where it lies above the one that needs none (null, chance), "
            "by more than its interval, and where the controls stay there."
        )
    if any(name == "low" or name.endswith("_low") for name in columns):
        yield "Intervals are at 95%; of two scores whose intervals overlap widely none is better."
    reaches = sorted({row["reach"] for row in rows if isinstance(row.get("reach"), int)})
    if bounded := [f"{reach:,}" for reach in reaches if reach < 1 << 40]:
        yield (
            f"The reach is {' or '.join(bounded)} tokens: attention windows and convolutions of all layers together "
            "see no farther, so what is known from beyond has come through the memory."
        )
    if len(bounded) < len(reaches):
        models = "of some models " if bounded else ""
        yield f"Attention {models}sees the whole text, so no score of theirs has to have come through the memory."


def _settings(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Fields of the rows that are few plain values: what they have in common, or between what they differ."""
    found = {}
    for name in dict.fromkeys(name for row in rows for name in row if name not in HIDDEN):
        values = [row[name] for row in rows if name in row]
        if all(isinstance(value, str | int | float | bool | None) for value in values):
            distinct = list(dict.fromkeys(map(str, values)))
            if len(distinct) == 1 or (len(distinct) <= MOST_VALUES and name not in MEASURED):
                found[name] = ", ".join(value[:LONGEST] for value in distinct)
    return found


def _origin(folder: Path, results: Results) -> dict[str, Any]:
    """Machine, versions and commit of the last call, and the rows' file by its hash."""
    path = folder / MACHINE
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"machine": "not known"}
    digest = hashlib.sha256(results.lines.read_bytes()).hexdigest()
    return found | {f"sha256 of {results.lines.name}": digest}

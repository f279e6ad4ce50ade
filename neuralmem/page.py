"""Parts of a report: one HTML page that holds everything it shows, and says to the browser that it may fetch nothing.

Special: every text that is put into the page is escaped here, so what a model or a user wrote cannot become markup.
"""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1d2b33; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin: 2.2rem 0 .4rem; font-size: 1.15rem; } p { margin: .3rem 0; color: #5c6b73; }
img { max-width: 100%; } table { border-collapse: collapse; } pre { background: #f4f6f7; padding: 1rem; overflow: auto }
td, th { padding: .15rem 1.2rem .15rem 0; text-align: left; vertical-align: top; } td:first-child { color: #5c6b73; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.tiles div { background: #f4f6f7; border-radius: .4rem; padding: .5rem .9rem; min-width: 6.5rem; }
.tiles b { display: block; font-size: 1.3rem; } .tiles span { color: #5c6b73; font-size: .85rem; }
.wide { overflow-x: auto; font-size: .85rem; } .wide td, .wide th { padding-right: .9rem; white-space: nowrap; }
.wide td:first-child { color: inherit; } .wide .number { text-align: right; font-variant-numeric: tabular-nums; }
.wide thead th { border-bottom: 1px solid #b9c4c9; } .wide .faint td { color: #8a979e; }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, body: Iterable[str]) -> str:
    """A whole page of parts.

    Example:
        >>> print(page("a < b", [paragraph("c & d")]).splitlines()[-2])
        <p>c &amp; d</p>
    """
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    head = f'<meta charset="utf-8">{policy}<title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(body) + "\n</body></html>\n"


def heading(text: str, level: int = 2) -> str:
    """A heading, 1 for the page's."""
    return f"<h{level}>{html.escape(text)}</h{level}>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def tiles(values: Mapping[str, str]) -> str:
    """The numbers that one looks at first, each with its name below."""
    pairs = ((html.escape(value), html.escape(name)) for name, value in values.items())
    return (
        f'<div class="tiles">{"".join(f"<div><b>{value}</b><span>{name}</span></div>" for value, name in pairs)}</div>'
    )


def pairs(values: Mapping[str, Any]) -> str:
    """A table of names and values; empty texts are left out."""
    lines = (
        f"<tr><td>{html.escape(str(name))}</td><td>{html.escape(str(value))}</td></tr>"
        for name, value in values.items()
        if value != ""
    )
    return f"<table>{''.join(lines)}</table>"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], faint: Iterable[bool] = ()) -> str:
    """A table with named columns; those of numbers stand to the right.

    Args:
        columns: their names
        rows: of as many texts each
        faint: for each row, whether it stands back; rows beyond the end do not
    """
    rows, pale = list(rows), iter(faint)
    kinds = [" class=number" if all(_is_number(row[i]) for row in rows) else "" for i in range(len(columns))]
    head = "".join(f"<th{kind}>{html.escape(name)}</th>" for name, kind in zip(columns, kinds, strict=True))
    lines = []
    for row in rows:
        cells = (f"<td{kind}>{html.escape(text)}</td>" for text, kind in zip(row, kinds, strict=True))
        lines.append(f"<tr{' class=faint' if next(pale, False) else ''}>{''.join(cells)}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def picture(title: str, png: bytes, note: str = "") -> str:
    """A PNG inside the page, under its title."""
    data = base64.b64encode(png).decode()
    below = paragraph(note) if note else ""
    return f'{heading(title)}{below}<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'


def plain(text: str) -> str:
    """A text as it is, line by line."""
    return f"<pre>{html.escape(text)}</pre>"


def folded(summary: str, part: str) -> str:
    """A part that shows when it is asked for.

    Args:
        summary: the line that always shows
        part: made by the functions here
    """
    return f"<details><summary>{html.escape(summary)}</summary>{part}</details>"


def _is_number(text: str) -> bool:
    try:
        float(text or 0)
    except ValueError:
        return False
    return True

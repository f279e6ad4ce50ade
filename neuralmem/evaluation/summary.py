"""From result rows to the lines of a table: accuracy with its interval, beyond reach, null model and controls.

Special: a needle score says nothing about memory unless the needle was out of attention's reach and the same
checkpoint fails without its memory; so the two stand on every line.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from neuralmem.evaluation.prompts import TASKS
from neuralmem.evaluation.rows import Row
from neuralmem.evaluation.stats import Share, wilson
from neuralmem.evaluation.tables import with_ends

CONTROLS = ("frozen", "off", "reset", "shuffled")


class Group(NamedTuple):
    """What a line of the table is about."""

    task: str
    protocol: str
    haystack: str
    length: int


@dataclass(frozen=True)
class Line:
    """One line of the table, from the rows of one group.

    Args:
        group: task, protocol, haystack and nominal length
        reach: tokens that attention and convolutions see
        accuracy: the task's own score over all needles: official for RULER tasks, exact for recall
        beyond: the same over the needles beyond reach
        official, strict: both scores, over all needles
        first: share of prompts where the true answer is the likeliest of ten; of none where there are several answers
        null: mean expected score of a model that sees only what is in reach
        controls: accuracy of each control that was run, over needles beyond reach, or over all where none is
        tokens: mean real length of the prompts
    """

    group: Group
    reach: int
    accuracy: Share
    beyond: Share
    official: Share
    strict: Share
    first: Share
    null: float
    controls: dict[str, Share]
    tokens: float


def score(row: Row) -> float:
    """The score that a task is known by: exact match for recall, RULER's substring for its tasks.

    The two differ because a small model is trained to stop after the answer and a base model is not.
    """
    return row.strict if row.task == "recall" else row.official


def is_counted(row: Row) -> bool:
    """Whether the answer is spread over the whole haystack, so that there are no depths."""
    return TASKS[row.task].haystack in ("words", "coded")


def summarise(rows: Sequence[Row]) -> list[Line]:
    """Lines in the order of task, haystack and length. Groups without uncontrolled rows are left out."""
    groups: dict[Group, list[Row]] = {}
    for row in rows:
        groups.setdefault(Group(row.task, row.protocol, row.haystack_id, row.nominal_len), []).append(row)
    order = list(TASKS)
    keys = sorted(groups, key=lambda g: (order.index(g.task), g.haystack, g.protocol, g.length))
    return [_line(key, groups[key]) for key in keys if any(row.ablation == "none" for row in groups[key])]


def _line(group: Group, rows: list[Row]) -> Line:
    plain = [row for row in rows if row.ablation == "none"]
    beyond = [row for row in plain if row.beyond_window]
    controls = {}
    for name in CONTROLS:
        ran = [row for row in rows if row.ablation == name and (row.beyond_window or not beyond)]
        if ran:
            controls[name] = _share(score(row) for row in ran)
    return Line(
        group,
        plain[0].reach,
        accuracy=_share(score(row) for row in plain),
        beyond=_share(score(row) for row in beyond),
        official=_share(row.official for row in plain),
        strict=_share(row.strict for row in plain),
        first=_share(int(row.rank_of_10 == 1) for row in plain if row.rank_of_10 is not None),
        null=sum(row.null for row in plain) / len(plain),
        controls=controls,
        tokens=sum(row.prompt_tokens for row in plain) / len(plain),
    )


class Grid(NamedTuple):
    """Depths in percent. `assigned`: the samples went round them; else a row's is the one nearest to its real depth."""

    depths: tuple[float, ...]
    assigned: bool = True

    def bins(self, rows: Iterable[Row]) -> dict[float, list[Row]]:
        """Rows by depth."""
        bins: dict[float, list[Row]] = {depth: [] for depth in self.depths}
        for row in rows:
            near = min(self.depths, key=lambda depth: abs(depth - row.depth_pct))
            bins[self.depths[row.sample_id % len(self.depths)] if self.assigned else near].append(row)
        return bins


def by_depth(rows: Sequence[Row], grid: Grid) -> list[dict[str, object]]:
    """Columns of a line per task, haystack, length, ablation and depth (and "all"): accuracies, intervals and n."""
    lines: list[dict[str, object]] = []
    for line in summarise(rows):
        group = line.group
        about: dict[str, object] = {"task": group.task, "protocol": group.protocol, "haystack": group.haystack}
        about |= {"nominal_len": group.length, "prompt_tokens": line.tokens, "reach": line.reach, "null": line.null}
        own = [r for r in rows if Group(r.task, r.protocol, r.haystack_id, r.nominal_len) == group]
        for ablation in sorted({r.ablation for r in own}, key=("none", *CONTROLS).index):
            ran = [r for r in own if r.ablation == ablation]
            bins = {} if is_counted(ran[0]) else grid.bins(ran)
            for depth, some in [("all", ran), *bins.items()]:
                if some:
                    lines.append(about | {"ablation": ablation, "depth_pct": depth} | _numbers(some))
    return lines


def _numbers(rows: list[Row]) -> dict[str, object]:
    accuracy, beyond = _share(map(score, rows)), _share(score(r) for r in rows if r.beyond_window)
    nll = [r.answer_nll for r in rows if r.answer_nll is not None]
    first = [r.rank_of_10 == 1 for r in rows if r.rank_of_10 is not None]
    return {
        "n": len(rows),
        **{"accuracy": accuracy.share, "low": accuracy.low, "high": accuracy.high},
        **{"n_beyond": beyond.n, **with_ends("beyond", beyond)},
        **{name: sum(getattr(r, name) for r in rows) / len(rows) for name in ("official", "strict")},
        "rank1": sum(first) / len(first) if first else None,
        "answer_nll": sum(nll) / len(nll) if nll else None,
    }


def _share(hits: Iterable[float]) -> Share:
    values = list(hits)
    return wilson(sum(values), len(values))

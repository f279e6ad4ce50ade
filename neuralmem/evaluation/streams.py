"""Measures over streams: scripts in groups of equal settings, asked under every control, one row of results each.

Special: a row is known by the hash of its script, so rows of other settings stand beside it in the same file and what
was asked is not asked again.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, repeat
from operator import itemgetter
from pathlib import Path
from random import Random
from typing import Any, Protocol

from neuralmem.evaluation.curves import Curve, Curves, share_curve
from neuralmem.evaluation.facts import Facts
from neuralmem.evaluation.journal import Journal
from neuralmem.evaluation.listener import KEPT_UP, Listener, Reply
from neuralmem.evaluation.rows import Subject
from neuralmem.evaluation.script import Drop, Question, Read, Script
from neuralmem.evaluation.stats import Share, clustered
from neuralmem.evaluation.tables import Line

Row = dict[str, Any]
"""Results of one script under one control; its `answers` are as `describe` makes them."""
CONTROLS = ("frozen", "off", "reset", "shuffled")
USUAL = CONTROLS[:3]  # the last reads everything once more
IDENTITY = ("measure", "script_sha256", "ablation", "ckpt_sha256", "chunk_size_eval", "dtype", "number")


@dataclass(frozen=True)
class Cell:
    """Scripts of the same settings.

    Args:
        labels: the settings, as rows name them
        write: makes the script of a number
    """

    labels: dict[str, Any]
    write: Callable[[int, Random], Script]


class Measure(Protocol):
    """What is measured: a frozen dataclass of settings."""

    @property
    def name(self) -> str:
        """Of the measure, as `eval.py` calls it."""
        ...

    def cells(self, facts: Facts) -> Sequence[Cell]:
        """All settings, each with what writes its scripts."""
        ...

    def lines(self, rows: Sequence[Row]) -> list[Line]:
        """The table."""
        ...

    def curves(self, rows: Sequence[Row]) -> Curves:
        """The figure."""
        ...

    def notes(self, rows: Sequence[Row]) -> list[str]:
        """What is to be said below the table."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How much is asked.

    Args:
        samples: scripts per setting
        ablations: "none" and the controls wanted
        seed: same seed, same scripts
        batch_size: scripts read side by side
    """

    samples: int = 32
    ablations: tuple[str, ...] = ("none", *USUAL)
    seed: int = 42
    batch_size: int = 16


def run(
    measure: Measure,
    facts: Facts,
    listener: Listener,
    subject: Subject,
    out: Path,
    sampling: Sampling,
    plan: Callable[[int], None] = lambda tokens: None,
) -> list[Row]:
    """Ask what has not been asked yet, write it down, return all rows of these settings.

    Args:
        measure: what to ask
        facts: what scripts are made of
        listener: holds model and tokenizer
        subject: how rows name them
        out: folder, made if needed
        sampling: how much
        plan: told how many tokens there are to read in all

    Raises:
        UserError: settings that cannot be used.
    """
    path = out / f"{measure.name.replace('-', '_')}.jsonl"
    groups = [
        (cell, [cell.write(i, _random(measure, cell, i, sampling.seed)) for i in range(sampling.samples)])
        for cell in measure.cells(facts)
    ]
    journal = Journal(path, IDENTITY)
    plan(sum(script.tokens for _, scripts in groups for script in scripts) * len(sampling.ablations))
    rows: list[Row] = []
    for cell, scripts in groups:
        common = {"measure": measure.name, **cell.labels, "seed": sampling.seed, "haystack_id": facts.haystack_id}
        common.setdefault("values", facts.values)
        for ablation in sampling.ablations:
            rows += _ask(scripts, ablation, common | asdict(subject), listener, journal, sampling.batch_size)
    return rows


def _random(measure: Measure, cell: Cell, number: int, seed: int) -> Random:
    return Random(f"{measure.name} {sorted(cell.labels.items())} {number} {seed}")


def _ask(
    scripts: Sequence[Script], ablation: str, common: Row, listener: Listener, journal: Journal, batch_size: int
) -> Iterator[Row]:
    """Rows of some scripts under a control; those that are not there yet are made."""
    keys = {}
    for script in scripts:
        own = {"script_sha256": script.sha256, "ablation": ablation, "number": script.number}
        keys[script.number] = {name: (common | own)[name] for name in IDENTITY}
    for batch in _batches(scripts, ablation, batch_size):
        missing = [script for script in batch if journal.find(**keys[script.number]) is None]
        # "shuffled" asks the next script's state, so all are read again where one is missing.
        read = batch if ablation == "shuffled" and missing else missing
        listener.progress(sum(script.tokens for script in batch) - sum(script.tokens for script in read))
        if not missing:
            continue
        began = time.perf_counter()
        replies, size = listener.listen(read, ablation)
        bookmark = listener.bookmark if ablation in KEPT_UP else None
        seconds = round((bookmark.seconds if bookmark else time.perf_counter() - began) / len(read), 6)
        numbers = {script.number for script in missing}
        journal.add(
            *(
                common
                | keys[script.number]
                | {"prompt_tokens": script.tokens, "state_bytes": size, "wall_s": seconds}
                | {"answers": [describe(reply) for reply in own]}
                for script, own in zip(read, replies, strict=True)
                if script.number in numbers
            )
        )
        if bookmark is not None:
            bookmark.end()
    for script in scripts:
        row = journal.find(**keys[script.number])
        assert row is not None
        journal.confirm(row, partial(_again, script, row, common))
        yield row


def _again(script: Script, row: Row, common: Row) -> Row:
    """What a row must say by its script and by what the model said: tokens that were the likeliest, and likelihoods."""
    replies = []
    known = chain(row["answers"], repeat({"right": 0, "nll": None}))  # a row may lack answers
    for (question, distance, seen), said in zip(asked(script, common["reach"]), known, strict=False):
        hits = min(said["right"], len(question.answer))
        right = (True,) * hits + (False,) * (len(question.answer) - hits)
        replies.append(Reply(question, right, math.inf if said["nll"] is None else said["nll"], distance, seen))
    about = {name: value for name, value in common.items() if name != "device"}
    return about | {"prompt_tokens": script.tokens, "answers": [describe(reply) for reply in replies]}


def asked(script: Script, reach: int) -> Iterator[tuple[Question, int | None, bool]]:
    """Every question of a script with its distance and whether it is seen, as `Reply` has them.

    Example:
        >>> from neuralmem.evaluation.rope import Rope
        >>> from neuralmem.evaluation.script import Ask
        >>> question = Question((5,), (6,), told=3)
        >>> script = Script((Read(Rope([[1, 2, 3, 4]])), Ask((question,))))
        >>> [(distance, seen) for _, distance, seen in asked(script, reach=2)]
        [(2, True)]
    """
    total = first = 0
    for step in script.steps:
        if isinstance(step, Read):
            total += len(step.text)
        elif isinstance(step, Drop):
            first = total
        else:
            for question in step.questions:
                yield question, question.distance(total), question.seen(total, first, reach)
                total += step.keep * (len(question.tokens) + len(question.answer))


def _batches(scripts: Sequence[Script], ablation: str, size: int) -> Iterator[Sequence[Script]]:
    """What is read side by side, as even as it can be; under "shuffled" no script stands alone."""
    count = -(-len(scripts) // size)
    if ablation == "shuffled":
        count = max(1, min(count, len(scripts) // 2))
    for part in range(count):
        yield scripts[len(scripts) * part // count : len(scripts) * (part + 1) // count]


def describe(reply: Reply) -> Row:
    """A reply as rows hold it: `nll` in nats, None when it is not finite; `right` of `of` tokens were the likeliest."""
    return {
        **reply.question.labels,
        "exact": int(reply.exact),
        "right": sum(reply.right),
        "of": len(reply.right),
        "nll": reply.nll if math.isfinite(reply.nll) else None,
        "distance": reply.distance,
        "seen": reply.seen,
    }


Answers = Mapping[str, Sequence[Row]]
"""Answers under each control, "none" among them."""


def answers(rows: Iterable[Row], **labels: Any) -> dict[str, list[Row]]:
    """Answers of some rows by control, each with its `text`; those with these labels only."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["ablation"], []).extend(
            answer | {"text": row["script_sha256"]}
            for answer in row["answers"]
            if all(answer[name] == value for name, value in labels.items())
        )
    return found


def share(
    some: Sequence[Row],
    hits: Callable[[Row], int] = itemgetter("exact"),
    trials: Callable[[Row], int] = lambda answer: 1,
) -> Share:
    """Of exact answers, or of what else is counted; the interval knows which answers are of one text.

    Args:
        some: answers
        hits: how many of an answer
        trials: of how many
    """
    texts: dict[str, list[Row]] = {}
    for answer in some:
        texts.setdefault(answer["text"], []).append(answer)
    return clustered(*([sum(map(count, own)) for own in texts.values()] for count in (hits, trials)))


def mean_nll(some: Sequence[Row]) -> float:
    """Mean answer NLL in nats, of those that are finite; NaN if there is none."""
    finite = [answer["nll"] for answer in some if answer["nll"] is not None]
    return sum(finite) / len(finite) if finite else math.nan


def score(found: Answers) -> Line:
    """Columns that every table has: accuracy, null model, within and beyond reach, controls, NLL.

    The null model is the share of questions whose fact attention and convolutions can still see. Controls are counted
    on what lies beyond reach, or on everything where nothing does.
    """
    own = found["none"]
    beyond = [answer for answer in own if not answer["seen"]]
    line: Line = {"accuracy": share(own), "null model": (len(own) - len(beyond)) / max(1, len(own))}
    line["within reach"] = share([answer for answer in own if answer["seen"]])
    line["beyond reach"] = share(beyond)
    for name in CONTROLS:
        if name in found:
            line[name] = share([answer for answer in found[name] if not (beyond and answer["seen"])])
    line["nll"] = mean_nll(own)
    return line


def values(rows: Sequence[Row], name: str) -> list[Any]:
    """The values of a setting, ascending."""
    return sorted({row[name] for row in rows})


def with_value(rows: Sequence[Row], name: str, value: Any) -> list[Row]:
    """Rows of one value of a setting."""
    return [row for row in rows if row[name] == value]


def chance(rows: Sequence[Row]) -> str:
    """What a guess is worth, in words."""
    return f"a guess is right {100 / rows[0]['values']:.1f}% of the time" if rows else "nothing was asked"


def line_curves(lines: Sequence[Line], x: str, columns: Mapping[str, str]) -> list[Curve]:
    """Curves of columns of shares, by name, and of all controls that there are, over the column `x`."""
    names = {**columns, **{name: name for name in CONTROLS if any(name in line for line in lines)}}
    return [share_curve(name, [(line[x], line[column]) for line in lines]) for column, name in names.items()]

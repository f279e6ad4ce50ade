"""Whether the results in a folder are what they say: prompts made again, counts and scores computed again.

Special: needs the checkpoint's tokenizer and the reach that its model states, and no weights. Prompts, and who was
asked, come from the folder's settings.json, of the last run and of those before it; every row's hash, counts, spans and
answers must be those of its prompt, every score that of its prediction, and none of the last run may be missing. What
only the model can say is not checked: the prediction, the likelihood and the rank.
Source: evaluation.md section 9, point 12.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from neuralmem.evaluation import rows as store
from neuralmem.evaluation.asked import NeedleRun, Respondent
from neuralmem.evaluation.comparison import by_ablation, to_rows
from neuralmem.evaluation.comparison import compare as side_by_side
from neuralmem.evaluation.niah import Settings, cells, depth_of
from neuralmem.evaluation.prompts import TASKS
from neuralmem.evaluation.recall import TrainingData
from neuralmem.evaluation.replay import another_haystack, compare
from neuralmem.evaluation.rows import Row
from neuralmem.evaluation.scoring import official, strict
from neuralmem.evaluation.summary import by_depth
from neuralmem.evaluation.tables import to_csv
from neuralmem.generation.protocol import TokenizerLike

Place = tuple[str, str, str, int, int, int]  # task, protocol, haystack, nominal length, seed, sample
Question = tuple[str, str, int, int]  # a place without haystack and sample


def differences(
    rows: Sequence[Row],
    runs: Sequence[NeedleRun],
    tokenizer: TokenizerLike,
    fingerprint: str,
    weights: str,
    reach: int,
    training: TrainingData,
    folder: Path,
) -> Iterator[str]:
    """Every difference between the results of a folder and what they must be, a line each.

    Args:
        rows: of one folder
        runs: that made them, the last one first
        tokenizer: of the checkpoint
        fingerprint: the tokenizer's
        weights: hash of the checkpoint's weights, as rows name them
        reach: what its model states; what others state is not looked at
        training: what the checkpoint was trained on
        folder: where the table of the last run is, if it came to its end

    Raises:
        UserError: a haystack that is not there any more.
    """
    for row in rows:
        yield from _scores(row)
    strangers = [row for row in rows if row.tokenizer_sha256 != fingerprint]
    if strangers:
        yield (
            f"tokenizer: {len(strangers)} of {len(rows)} rows have tokenizer_sha256 {strangers[0].tokenizer_sha256}, "
            f"the checkpoint's is {fingerprint}; their prompts were not made again"
        )
    if len(strangers) == len(rows):
        return
    stated = {one.subject.ckpt_sha256: one.subject.reach for run in runs for one in run.asked}
    others = stated.keys() - {run.asked[0].subject.ckpt_sha256 for run in runs}
    own = [row for row in rows if row.ckpt_sha256 not in others]
    for name, count in Counter(row.ckpt_sha256 for row in own if row.ckpt_sha256 != weights).items():
        yield f"checkpoint: {count} of {len(rows)} rows have ckpt_sha256 {name}, the checkpoint's is {weights}"
    stated[weights] = reach
    for other, count in Counter(row.reach for row in rows if row.reach != stated.get(row.ckpt_sha256, reach)).items():
        yield f"reach: {count} of {len(rows)} rows have reach {other}, the checkpoint's model states {reach}"
    prompts = _Prompts(rows, runs, tokenizer, training)
    for before, count in Counter(row.haystack_id for row in rows if prompts.is_moved(row)).items():
        yield another_haystack(f"{count} of {len(rows)} rows", before, prompts.haystacks[_text_name(before)])
    unknown: list[Row] = []
    for row in rows:
        # Rows of weights that nobody knows are said above to be that.
        if not prompts.asks(row) if row.ckpt_sha256 in stated else prompts.place(row) not in prompts.made:
            unknown.append(row)
        elif prompts.is_moved(row):
            continue
        elif row.tokenizer_sha256 == fingerprint:
            yield from _compare(row, prompts.of(row))
    yield from prompts.missing(rows, runs[0])
    if unknown:
        yield (
            f"{_name(_place(unknown[0]), unknown[0].ablation)}: not of settings.json, as {len(unknown)} rows in all; "
            "their prompts were not made again"
        )
    yield from _table(prompts.of_last(rows), runs[0], folder / runs[0].table)


class _Prompts:
    """Every prompt of a folder's runs, made again: its hash, and what rows have to say of it.

    Args:
        rows: of the folder
        runs: into it, the last one first
        tokenizer: of the checkpoint
        training: what the checkpoint was trained on

    Attributes:
        made: by place and hash, fields by reach; runs with other depths have other prompts in the same place
        whom: who was asked them, by place and hash
        last: the hash of the last run's prompt in its places
        haystacks: what the haystacks of these prompts are called, by their names without the hash of their text
    """

    def __init__(
        self, rows: Sequence[Row], runs: Sequence[NeedleRun], tokenizer: TokenizerLike, training: TrainingData
    ) -> None:
        self.made: dict[Place, dict[str, dict[int, dict[str, Any]]]] = {}
        self.whom: dict[Place, dict[str, list[Respondent]]] = {}
        self.last: dict[Place, str] = {}
        reaches, asked = {row.reach for row in rows}, {_question(_place(row)) for row in rows}
        last, respondents = runs[0].settings, dict[Settings, list[Respondent]]()
        for run in runs:  # several may have asked the same
            respondents.setdefault(run.settings, []).extend(run.asked)
        for one, whom in respondents.items():
            for cell, build in cells(one, tokenizer, training):
                if one is not last and (cell.task.name, cell.protocol, cell.length, one.seed) not in asked:
                    continue
                for number in range(one.count(cell.length)):
                    sample = build(number, depth_of(one, number), cell.random(number))
                    place = (cell.task.name, cell.protocol, sample.haystack, cell.length, one.seed, number)
                    sha256 = sample.rope.sha256()
                    self.whom.setdefault(place, {}).setdefault(sha256, []).extend(whom)
                    self.made.setdefault(place, {})[sha256] = {r: store.facts(sample, r) for r in reaches}
                    if one is last:
                        self.last[place] = sha256
        self.haystacks = {_text_name(place[2]): place[2] for place in self.made}

    def place(self, row: Row) -> Place:
        """Where a row belongs, if need be in a haystack of the same name with another text."""
        haystack = row.haystack_id
        if haystack not in self.haystacks.values():
            haystack = self.haystacks.get(_text_name(haystack), haystack)
        return _place(replace(row, haystack_id=haystack))

    def is_moved(self, row: Row) -> bool:
        """Whether a row is of a haystack of that name with another text."""
        return (place := self.place(row)) != _place(row) and place in self.made

    def asks(self, row: Row) -> bool:
        """Whether a run asked what a row answers, and who answers; of a prompt that none has, one in its place."""
        there = self.whom.get(self.place(row), {})
        asked = there.get(row.prompt_sha256) or chain.from_iterable(there.values())
        return any(one.said(row) for one in asked)

    def of(self, row: Row) -> dict[str, Any]:
        """What a row's fields must be: those of the prompt that has its hash, else of one in its place."""
        there = self.made[_place(row)]
        sha256 = row.prompt_sha256 if row.prompt_sha256 in there else next(iter(there))
        return {"prompt_sha256": sha256, **there[sha256][row.reach]}

    def of_last(self, rows: Sequence[Row]) -> list[Row]:
        """The rows of the last run, in the order of its prompts: of one of them, or in its place and of nobody's."""
        order = {place: number for number, place in enumerate(self.last)}
        own = [(place, row) for row in rows if (place := self.place(row)) in order]
        found = [
            (order[place], row)
            for place, row in own
            if row.prompt_sha256 not in self.made[place].keys() - {self.last[place]}
        ]
        return [row for _, row in sorted(found, key=lambda pair: pair[0])]

    def missing(self, rows: Sequence[Row], run: NeedleRun) -> Iterator[str]:
        """Rows that the last run must have left."""
        rows = self.of_last(rows)
        there = [{(self.place(row), row.ablation) for row in rows if one.said(row)} for one in run.asked]
        for place in self.last:
            for one, own in zip(run.asked, there, strict=True):
                for ablation in one.ablations:
                    if (place, ablation) not in own:
                        yield f"{_name(place, ablation)}{_other(one, run)}: missing"


def _other(one: Respondent, run: NeedleRun) -> str:
    """Who was asked, where that is not the checkpoint itself."""
    baseline = one.subject.baseline
    return "" if one is run.asked[0] and not baseline else f" with {baseline or one.name}"


def _table(rows: Sequence[Row], run: NeedleRun, path: Path) -> Iterator[str]:
    """How the table of a run differs from that of its rows. Not looked at while somebody has said nothing: a run that
    was stopped has none, or that of an earlier one."""
    said = [(one, _in_order(rows, one)) for one in run.asked]
    if not path.is_file() or not all(own for _, own in said):
        return
    if path.name == "table.csv":
        again = by_depth(said[0][1], run.settings.grid)
    else:
        again = to_rows(side_by_side([c for one, own in said for c in by_ablation(one.name, one.series, own)]))
    yield from compare(to_csv(again), path)


def _in_order(rows: Sequence[Row], one: Respondent) -> list[Row]:
    """What somebody said, under one ablation after another."""
    return [row for name in one.ablations for row in rows if row.ablation == name and one.said(row)]


def _scores(row: Row) -> Iterator[str]:
    """Scores are those of the prediction."""
    kind = TASKS[row.task].kind
    yield from _compare(
        row, {"official": official(row.pred, row.answers), "strict": strict(row.pred, row.answers, kind)}
    )


def _place(row: Row) -> Place:
    return row.task, row.protocol, row.haystack_id, row.nominal_len, row.seed, row.sample_id


def _text_name(haystack: str) -> str:
    """An id without the hash of the text."""
    return haystack.rpartition(":")[0] or haystack


def _question(place: Place) -> Question:
    task, protocol, _, length, seed, _ = place
    return task, protocol, length, seed


def _compare(row: Row, again: Mapping[str, Any]) -> Iterator[str]:
    for name, value in again.items():
        if (now := getattr(row, name)) != value:
            yield f"{_name(_place(row), row.ablation)}: {name} is {now!r}, computed again it is {value!r}"


def _name(place: Place, ablation: str) -> str:
    task, protocol, haystack, length, seed, number = place
    return f"{task} {protocol} {haystack} length {length} seed {seed} sample {number} {ablation}"

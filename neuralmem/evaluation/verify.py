"""Whether the results in a folder are what they say: prompts made again, counts and scores computed again.

Special: needs the checkpoint's tokenizer and the reach that its model states, and no weights. Prompts come from the
folder's settings.json, of the last run and of those before it; every row's hash, counts, spans and answers must be
those of its prompt, every score that of its prediction, and none of the last run may be missing. What only the model
can say is not checked: the prediction, the likelihood and the rank.
Source: evaluation.md section 9, point 12.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from neuralmem.errors import UserError
from neuralmem.evaluation import rows as store
from neuralmem.evaluation.niah import Settings, cells, depth_of
from neuralmem.evaluation.prompts import TASKS, find_task
from neuralmem.evaluation.recall import TrainingData
from neuralmem.evaluation.replay import compare
from neuralmem.evaluation.rows import Row
from neuralmem.evaluation.scoring import official, strict
from neuralmem.evaluation.summary import by_depth
from neuralmem.evaluation.tables import to_csv
from neuralmem.generation.protocol import TokenizerLike

Place = tuple[str, str, str, int, int, int]  # task, protocol, haystack, nominal length, seed, sample
Question = tuple[str, str, int, int]  # a place without haystack and sample


def read_settings(folder: Path) -> list[Settings]:
    """The settings of all runs into a folder, those of the last one first.

    Raises:
        UserError: there are none, or they are not of a needle run.
    """
    path = folder / "settings.json"
    if not path.is_file():
        raise UserError(f"--out is {str(folder)!r}, which has no settings.json; it must be a folder of eval.py niah")
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        return [_settings(one) for one in (given, *given.get("earlier", ()))]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--out has {path}, which is no settings of eval.py niah: {reason}") from None


def _settings(given: Mapping[str, Any]) -> Settings:
    names = {field.name for field in fields(Settings)} & set(given)
    values: dict[str, Any] = {name: tuple(v) if isinstance(v := given[name], list) else v for name in names}
    values["tasks"] = tuple(find_task(task["name"]) for task in given["tasks"])
    return Settings(**values)


def differences(
    rows: Sequence[Row],
    settings: Sequence[Settings],
    tokenizer: TokenizerLike,
    fingerprint: str,
    weights: str,
    reach: int,
    training: TrainingData,
    table: Path,
) -> Iterator[str]:
    """Every difference between the results of a folder and what they must be, a line each.

    Args:
        rows: of one folder
        settings: of the runs that made them, the last one first
        tokenizer: of the checkpoint
        fingerprint: the tokenizer's
        weights: hash of the checkpoint's weights, as rows name them
        reach: what its model states
        training: what the checkpoint was trained on
        table: the CSV of the last run, if it is there

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
    for name, count in Counter(row.ckpt_sha256 for row in rows if row.ckpt_sha256 != weights).items():
        yield f"checkpoint: {count} of {len(rows)} rows have ckpt_sha256 {name}, the checkpoint's is {weights}"
    for other, count in Counter(row.reach for row in rows if not row.baseline and row.reach != reach).items():
        yield f"reach: {count} of {len(rows)} rows have reach {other}, the checkpoint's model states {reach}"
    prompts = _Prompts(rows, settings, tokenizer, training)
    controls = {name for one in settings for name in one.ablations}
    unknown: list[Row] = []
    for row in rows:
        if _place(row) not in prompts.made or not (row.baseline or row.ablation in controls):
            unknown.append(row)
        elif row.tokenizer_sha256 == fingerprint:
            yield from _compare(row, prompts.of(row))
    yield from prompts.missing(rows, settings)
    if unknown:
        yield (
            f"{_name(_place(unknown[0]), unknown[0].ablation)}: not of settings.json, as {len(unknown)} rows in all; "
            "their prompts were not made again"
        )
    if table.is_file():
        of_last = [row for row in rows if prompts.is_of_last(row)]
        yield from _table([r for r in of_last if r.baseline or r.ablation in settings[0].ablations], settings[0], table)


class _Prompts:
    """Every prompt of a folder's runs, made again: its hash, and what rows have to say of it.

    Args:
        rows: of the folder
        settings: of its runs, the last one first
        tokenizer: of the checkpoint
        training: what the checkpoint was trained on

    Attributes:
        made: by place and hash, fields by reach; runs with other depths have other prompts in the same place
        last: the hash of the last run's prompt in its places
    """

    def __init__(
        self, rows: Sequence[Row], settings: Sequence[Settings], tokenizer: TokenizerLike, training: TrainingData
    ) -> None:
        self.made: dict[Place, dict[str, dict[int, dict[str, Any]]]] = {}
        self.last: dict[Place, str] = {}
        reaches, asked = {row.reach for row in rows}, {_question(_place(row)) for row in rows}
        for one in settings:
            for cell, build in cells(one, tokenizer, training):
                if one is not settings[0] and (cell.task.name, cell.protocol, cell.length, one.seed) not in asked:
                    continue
                for number in range(one.count(cell.length)):
                    sample = build(number, depth_of(one, number), cell.random(number))
                    place = (cell.task.name, cell.protocol, sample.haystack, cell.length, one.seed, number)
                    sha256 = sample.rope.sha256()
                    self.made.setdefault(place, {})[sha256] = {r: store.facts(sample, r) for r in reaches}
                    if one is settings[0]:
                        self.last[place] = sha256

    def of(self, row: Row) -> dict[str, Any]:
        """What a row's fields must be: those of the prompt that has its hash, else of one in its place."""
        there = self.made[_place(row)]
        sha256 = row.prompt_sha256 if row.prompt_sha256 in there else next(iter(there))
        return {"prompt_sha256": sha256, **there[sha256][row.reach]}

    def is_of_last(self, row: Row) -> bool:
        """Whether a row is of the last run: of its prompt, or in the place of it and of nobody's."""
        place = _place(row)
        others = self.made.get(place, {}).keys() - {self.last.get(place)}
        return place in self.last and row.prompt_sha256 not in others

    def missing(self, rows: Sequence[Row], settings: Sequence[Settings]) -> Iterator[str]:
        """Rows that the last run must have left.

        Which baselines it asked stands nowhere but in the rows: where it is the only run, those of all rows.
        """
        there = {(_place(row), row.ablation, row.baseline) for row in rows if self.is_of_last(row)}
        baselines = {(row.ablation, row.baseline) for row in rows if row.baseline}
        memory = {(name, "") for name in settings[0].ablations}
        several = len(settings) > 1
        by_memory = {_question(_place(row)) for row in rows if not row.baseline}
        by_baselines = {_question(_place(row)) for row in rows if row.baseline} - by_memory
        for place in self.last:
            alone = _question(place) in by_baselines if several else bool(baselines) and not by_memory
            for ablation, baseline in sorted((set() if alone else memory) | (set() if several else baselines)):
                if (place, ablation, baseline) not in there:
                    yield f"{_name(place, ablation)}{f' with {baseline}' if baseline else ''}: missing"


def _table(rows: Sequence[Row], settings: Settings, path: Path) -> Iterator[str]:
    """How the table of a run differs from that of its rows; of a folder's memory and baselines it may be of either."""
    found: list[list[str]] = []
    for baseline in sorted({row.baseline for row in rows}):
        again = to_csv(by_depth([row for row in rows if row.baseline == baseline], settings.grid))
        found.append(list(compare(again, path)))
    yield from min(found, key=len, default=[])


def _scores(row: Row) -> Iterator[str]:
    """Scores are those of the prediction."""
    kind = TASKS[row.task].kind
    yield from _compare(
        row, {"official": official(row.pred, row.answers), "strict": strict(row.pred, row.answers, kind)}
    )


def _place(row: Row) -> Place:
    return row.task, row.protocol, row.haystack_id, row.nominal_len, row.seed, row.sample_id


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

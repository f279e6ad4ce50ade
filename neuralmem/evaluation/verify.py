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
from neuralmem.evaluation.sample import Sample
from neuralmem.evaluation.scoring import official, strict
from neuralmem.evaluation.summary import by_depth
from neuralmem.evaluation.tables import to_csv
from neuralmem.generation.protocol import TokenizerLike

Place = tuple[str, str, str, int, int, int]  # task, protocol, haystack, nominal length, seed, sample
Key = tuple[Place, str, str]  # with the ablation and the baseline
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
    matched = _Matched(rows, fingerprint)
    for number, one in enumerate(settings):
        yield from matched.run(one, tokenizer, training, last=number == 0, alone=len(settings) == 1)
    yield from matched.rest()
    if table.is_file():
        yield from _table(matched.of_last, settings[0], table)


class _Matched:
    """Rows and the prompts that they must be of.

    Args:
        rows: of one folder
        fingerprint: of the tokenizer; other rows are left alone

    Attributes:
        of_last: the rows of the last run
    """

    def __init__(self, rows: Sequence[Row], fingerprint: str) -> None:
        self.of_last: list[Row] = []
        self._fingerprint = fingerprint
        self._left: dict[Key, list[Row]] = {}  # whose prompt was not found yet
        self._unlike: dict[Key, tuple[Sample, str]] = {}  # a prompt in the place of a row with another hash
        self._asked: dict[Question, set[tuple[str, str]]] = {}  # ablations and baselines of the rows
        for row in rows:
            self._left.setdefault((_place(row), row.ablation, row.baseline), []).append(row)
            asked = self._asked.setdefault((row.task, row.protocol, row.nominal_len, row.seed), set())
            asked.add((row.ablation, row.baseline))

    def run(
        self,
        settings: Settings,
        tokenizer: TokenizerLike,
        training: TrainingData,
        *,
        last: bool,
        alone: bool,
    ) -> Iterator[str]:
        """What differs in the rows of one run, and of the last one what is missing.

        Args:
            settings: of that run
            tokenizer, training: as of `differences`
            last: all rows of it must be there
            alone: no other run wrote into the folder
        """
        for cell, build in cells(settings, tokenizer, training):
            asked = self._asked.get((cell.task.name, cell.protocol, cell.length, settings.seed), set())
            if last and (not asked or any(not baseline for _, baseline in asked)):  # else a run of baselines alone
                asked = asked | {(name, "") for name in settings.ablations}
            for number in range(settings.count(cell.length) if asked else 0):
                sample = build(number, depth_of(settings, number), cell.random(number))
                place = (cell.task.name, cell.protocol, sample.haystack, cell.length, settings.seed, number)
                prompt_sha256 = sample.rope.sha256()
                for ablation, baseline in sorted(asked):
                    key = (place, ablation, baseline)
                    there = self._left.pop(key, [])
                    mine = [row for row in there if alone or row.prompt_sha256 == prompt_sha256]
                    if others := [
                        row for row in there if row not in mine and row.tokenizer_sha256 == self._fingerprint
                    ]:
                        self._left[key], self._unlike[key] = others, (sample, prompt_sha256)
                    if last and not mine and (alone if baseline else ablation in settings.ablations):
                        yield f"{_name(place, ablation)}{f' with {baseline}' if baseline else ''}: missing"
                    self.of_last += mine if last else ()
                    for row in mine:
                        if row.tokenizer_sha256 == self._fingerprint:
                            yield from _prompt(row, sample, prompt_sha256)

    def rest(self) -> Iterator[str]:
        """What differs in rows that are of no run's prompt."""
        for key, (sample, prompt_sha256) in self._unlike.items():
            for row in self._left.pop(key, []):
                yield from _prompt(row, sample, prompt_sha256)
        if self._left:
            (place, ablation, _), count = next(iter(self._left)), sum(map(len, self._left.values()))
            yield (
                f"{_name(place, ablation)}: not of settings.json, as {count} rows in all; their prompts were not made "
                "again"
            )


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


def _prompt(row: Row, sample: Sample, prompt_sha256: str) -> Iterator[str]:
    """Hash, counts and answers are those of the prompt."""
    yield from _compare(row, {"prompt_sha256": prompt_sha256, **store.facts(sample, row.reach)})


def _place(row: Row) -> Place:
    return row.task, row.protocol, row.haystack_id, row.nominal_len, row.seed, row.sample_id


def _compare(row: Row, again: Mapping[str, Any]) -> Iterator[str]:
    for name, value in again.items():
        if (now := getattr(row, name)) != value:
            yield f"{_name(_place(row), row.ablation)}: {name} is {now!r}, computed again it is {value!r}"


def _name(place: Place, ablation: str) -> str:
    task, protocol, haystack, length, seed, number = place
    return f"{task} {protocol} {haystack} length {length} seed {seed} sample {number} {ablation}"

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
from neuralmem.evaluation.cell import Cell
from neuralmem.evaluation.niah import Settings, cells, depth_of
from neuralmem.evaluation.prompts import TASKS, find_task
from neuralmem.evaluation.recall import TrainingData
from neuralmem.evaluation.rows import Row
from neuralmem.evaluation.sample import Sample
from neuralmem.evaluation.scoring import official, strict
from neuralmem.generation.protocol import TokenizerLike

Place = tuple[str, str, str, int, int, int]  # task, protocol, haystack, nominal length, seed, sample
Key = tuple[Place, str, str]  # with the ablation and the baseline


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
    of_last: list[Row],
) -> Iterator[str]:
    """Every difference between rows and what they must be, a line each.

    Args:
        rows: of one folder
        settings: of the runs that made them, the last one first
        tokenizer: of the checkpoint
        fingerprint: the tokenizer's
        weights: hash of the checkpoint's weights, as rows name them
        reach: what its model states
        training: what the checkpoint was trained on
        of_last: is filled with the memory's rows of the last run, of which its table is

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
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault((_place(row), row.ablation, row.baseline), []).append(row)
    unlike: dict[Key, tuple[Sample, str]] = {}
    for one in settings:
        last = one is settings[0]
        asked = _asked(rows, one if last else None)
        for cell, build in cells(one, tokenizer, training):
            if not last and not any(_of_cell(place, cell, one.seed) for place, _, _ in found):
                continue
            for number in range(one.count(cell.length)):
                sample = build(number, depth_of(one, number), cell.random(number))
                place = (cell.task.name, cell.protocol, sample.haystack, cell.length, one.seed, number)
                prompt_sha256 = sample.rope.sha256()
                for key in [(place, name, b) for b, names in asked.items() for name in names]:
                    there = found.pop(key, [])
                    mine = [row for row in there if row.prompt_sha256 == prompt_sha256]
                    if rest := [row for row in there if row not in mine and row.tokenizer_sha256 == fingerprint]:
                        found[key], unlike[key] = rest, (sample, prompt_sha256)  # of another run, or changed
                    if last and (not there or (len(settings) > 1 and not mine)):
                        yield f"{_name(*key[:2])}{f' with {key[2]}' if key[2] else ''}: missing"
                    for row in mine:
                        yield from _prompt(row, sample, prompt_sha256)
                    of_last += [row for row in mine if last and not row.baseline]
    for key, (sample, prompt_sha256) in unlike.items():
        for row in found.pop(key, []):
            yield from _prompt(row, sample, prompt_sha256)
    if found:
        (place, ablation, _), count = next(iter(found)), sum(map(len, found.values()))
        yield (
            f"{_name(place, ablation)}: not of settings.json, as {count} rows in all; their prompts were not made again"
        )


def _asked(rows: Sequence[Row], settings: Settings | None) -> dict[str, list[str]]:
    """-> the controls of the memory, "", and of every baseline. Those of the memory are as in the settings, or, as of a
    baseline, which may be asked with fewer, all that there are."""
    there: dict[str, list[str]] = {}
    for baseline, name in sorted({(row.baseline, row.ablation) for row in rows}):
        there.setdefault(baseline, []).append(name)
    alone = rows and "" not in there  # a run of baselines alone
    return there if settings is None or alone else there | {"": list(settings.ablations)}


def _of_cell(place: Place, cell: Cell, seed: int) -> bool:
    task, protocol, _, length, its_seed, _ = place
    return (task, protocol, length, its_seed) == (cell.task.name, cell.protocol, cell.length, seed)


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

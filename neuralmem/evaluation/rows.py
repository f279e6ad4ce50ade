"""Result rows: one JSON object per sample and ablation, appended as they come, so that a stopped run can go on.

Special: a row says everything about itself (hash of the prompt's tokens, of the tokenizer, of the checkpoint, real
length, span and distance of the needle), so rows of many runs can be put together and every prompt can be made again
and compared.
Older rows, with one needle and one answer, are read as rows of today.
Source: evaluation.md section 10, with lists of needles and answers, and what belongs to baselines.
"""

import math
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from neuralmem.errors import UserError
from neuralmem.evaluation.journal import append_lines, read_lines
from neuralmem.evaluation.reader import Answer
from neuralmem.evaluation.sample import Sample
from neuralmem.evaluation.scoring import official, rank_of_first, strict
from neuralmem.evaluation.stats import share_within


@dataclass(frozen=True)
class Subject:
    """What is evaluated, as far as rows name it; `baseline` is its label, empty for the model by itself."""

    reach: int
    tokenizer_sha256: str
    ckpt_sha256: str
    chunk_size_train: int | None
    chunk_size_eval: int | None
    dtype: str
    device: str
    baseline: str = ""


@dataclass(frozen=True)
class Row:
    """One sample under one ablation.

    Spans and distances are in tokens, depth in percent. `distance_to_query` is that of the nearest needle asked for,
    `farthest_distance` and depth those of the one farthest back; `null` is the official score of a model that
    sees `reach` tokens. `official` is a share of the answers, `strict` 0 or 1. `answer_nll` (nats) and `rank_of_10` are
    None where there are several answers, and the former when it is not finite. `partner` is the number of the sample
    whose haystack was read instead (ablation "shuffled"), else None. `read_s` is the part of `wall_s` before the
    question; what a baseline keeps of the text stands beside the state of the model.
    """

    task: str
    protocol: str
    nominal_len: int
    prompt_tokens: int
    context_tokens: int
    needle_spans: tuple[tuple[int, int], ...]
    distance_to_query: int
    farthest_distance: int
    reach: int
    null: float
    beyond_window: bool
    depth_pct: float
    key: str
    answers: tuple[str, ...]
    pred: str
    official: float
    strict: int
    answer_nll: float | None
    rank_of_10: int | None
    seed: int
    sample_id: int
    prompt_sha256: str
    tokenizer_sha256: str
    haystack_id: str
    ckpt_sha256: str
    state_bytes: int
    chunk_size_train: int | None
    chunk_size_eval: int | None
    dtype: str
    device: str
    wall_s: float
    ablation: str
    partner: int | None
    baseline: str = ""
    text_bytes: int = 0
    index_bytes: int = 0
    read_s: float = 0.0

    @property
    def identity(self) -> tuple[Any, ...]:
        """What makes a row the same measurement: same prompt, same checkpoint, same ablation, same arithmetic."""
        about = (self.ckpt_sha256, self.chunk_size_eval, self.dtype, self.baseline)
        return (self.prompt_sha256, self.ablation, *about, self.sample_id)


def identity(sample: Sample, prompt_sha256: str, ablation: str, subject: Subject) -> tuple[Any, ...]:
    """The identity that the row of a sample will have."""
    about = (subject.ckpt_sha256, subject.chunk_size_eval, subject.dtype, subject.baseline)
    return (prompt_sha256, ablation, *about, sample.number)


def facts(sample: Sample, reach: int) -> dict[str, Any]:
    """The fields of a row that its prompt and the reach alone decide."""
    return {
        "prompt_tokens": len(sample.rope),
        "context_tokens": sample.context[1] - sample.context[0],
        "needle_spans": sample.needles,
        "distance_to_query": sample.distance,
        "farthest_distance": sample.farthest,
        "null": round(sample.null(reach), 6),
        "beyond_window": sample.beyond(reach),
        "depth_pct": round(sample.depth, 3),
        "key": sample.key,
        "answers": sample.answers,
    }


def facts_of_line(sample: Sample, subject: Subject) -> dict[str, Any]:
    """The fields of a line of `asking` that its prompt and the checkpoint alone decide."""
    names = ("prompt_tokens", "context_tokens", "needle_spans", "distance_to_query", "beyond_window")
    known = facts(sample, subject.reach)
    return {
        "task": sample.task.name,
        "nominal_len": sample.length,
        **{name: known[name] for name in names},
        "reach": subject.reach,
        "answer": sample.answers[0],
        "seed": sample.seed,
        "tokenizer_sha256": subject.tokenizer_sha256,
        "haystack_id": sample.haystack,
        "chunk_size_train": subject.chunk_size_train,
    }


def make_row(sample: Sample, prompt_sha256: str, answer: Answer, subject: Subject) -> Row:
    """Score one answer."""
    scores = answer.log_likelihoods
    return Row(
        **facts(sample, subject.reach),
        task=sample.task.name,
        protocol=sample.protocol,
        nominal_len=sample.length,
        reach=subject.reach,
        pred=answer.text,
        official=official(answer.text, sample.answers),
        strict=strict(answer.text, sample.answers, sample.task.kind),
        answer_nll=-scores[0] if scores and math.isfinite(scores[0]) else None,
        rank_of_10=rank_of_first(scores) if scores else None,
        seed=sample.seed,
        sample_id=sample.number,
        prompt_sha256=prompt_sha256,
        tokenizer_sha256=subject.tokenizer_sha256,
        haystack_id=sample.haystack,
        ckpt_sha256=subject.ckpt_sha256,
        state_bytes=answer.state_bytes,
        chunk_size_train=subject.chunk_size_train,
        chunk_size_eval=subject.chunk_size_eval,
        dtype=subject.dtype,
        device=subject.device,
        wall_s=round(answer.seconds, 6),
        ablation=answer.ablation,
        partner=answer.partner,
        baseline=subject.baseline,
        text_bytes=answer.text_bytes,
        index_bytes=answer.index_bytes,
        read_s=round(answer.reading, 6),
    )


def append(path: Path, rows: list[Row]) -> None:
    """Append rows as lines, in one write.

    Raises:
        UserError: the file cannot be written.
    """
    append_lines(path, [asdict(row) for row in rows])


def read(path: Path, repair: bool = False) -> Iterator[Row]:
    """Rows of a file. An unfinished last line is no row; repair: cut it off the file, as `read_lines` does.

    Raises:
        UserError: a line that is not a row.
    """
    names = {field.name for field in fields(Row)}
    needed = {field.name for field in fields(Row) if field.default is MISSING}
    for number, values in enumerate(read_lines(path, repair), 1):
        row = _of_today(values) if set(values) == needed - _NEW | _OLD else values
        if not needed <= set(row) <= names:
            raise UserError(f"--out has {path}, whose line {number} is not a result row; give another folder")
        spans = tuple((start, stop) for start, stop in row["needle_spans"])
        yield Row(**row | {"needle_spans": spans, "answers": tuple(row["answers"])})


def read_results(folder: Path) -> list[Row]:
    """The rows of a results folder.

    Raises:
        UserError: there are none, or a line is not a row.
    """
    path = folder / "rows.jsonl"
    if not path.is_file():
        raise UserError(f"--out is {str(folder)!r}, which has no rows.jsonl; it must be a folder of eval.py niah")
    return list(read(path))


_OLD = {"needle_span", "answer"}
_NEW = {"needle_spans", "answers", "farthest_distance", "null", "partner"}


def _of_today(values: dict[str, Any]) -> dict[str, Any]:
    """An older row with the fields that it would have now."""
    return {name: value for name, value in values.items() if name not in _OLD} | {
        "needle_spans": [values["needle_span"]],
        "answers": [values["answer"]],
        "farthest_distance": values["distance_to_query"],
        "null": share_within(values["reach"], values["prompt_tokens"], [values["needle_span"]]),
        "partner": None,
    }

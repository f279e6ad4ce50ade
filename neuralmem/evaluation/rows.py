"""Result rows: one JSON object per sample and ablation, appended as they come, so that a stopped run can go on.

Special: a row says everything about itself (hash of the prompt's tokens, of the tokenizer, of the checkpoint, real
length, span and distance of the needle), so rows of many runs can be put together and every prompt can be made again
and compared.
Source: evaluation.md section 10; the fields are those, then what belongs to baselines.
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

    Spans and distances are in tokens, depth in percent, `answer_nll` in nats, None when it is not finite; `read_s` is
    the part of `wall_s` before the question. What a baseline keeps of the text stands beside the state of the model.
    """

    task: str
    protocol: str
    nominal_len: int
    prompt_tokens: int
    context_tokens: int
    needle_span: tuple[int, int]
    distance_to_query: int
    reach: int
    beyond_window: bool
    depth_pct: float
    key: str
    answer: str
    pred: str
    official: int
    strict: int
    answer_nll: float | None
    rank_of_10: int
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


def make_row(sample: Sample, prompt_sha256: str, answer: Answer, subject: Subject) -> Row:
    """Score one answer."""
    kind = sample.task.kind
    return Row(
        task=sample.task.name,
        protocol=sample.protocol,
        nominal_len=sample.length,
        prompt_tokens=len(sample.rope),
        context_tokens=sample.context[1] - sample.context[0],
        needle_span=sample.needle,
        distance_to_query=sample.distance,
        reach=subject.reach,
        beyond_window=sample.beyond(subject.reach),
        depth_pct=round(sample.depth, 3),
        key=sample.key,
        answer=sample.answer,
        pred=answer.text,
        official=official(answer.text, sample.answer),
        strict=strict(answer.text, sample.answer, kind),
        answer_nll=-truth if math.isfinite(truth := answer.log_likelihoods[0]) else None,
        rank_of_10=rank_of_first(answer.log_likelihoods),
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
        baseline=subject.baseline,
        text_bytes=answer.text_bytes,
        index_bytes=answer.index_bytes,
        read_s=round(answer.reading, 6),
    )


def append(path: Path, rows: list[Row]) -> None:
    """Append rows as lines, in one write."""
    append_lines(path, [asdict(row) for row in rows])


def read(path: Path) -> Iterator[Row]:
    """Rows of a file. A last line without an end, left by a run that was killed, is cut off the file.

    Raises:
        UserError: a line that is not a row.
    """
    names = {field.name for field in fields(Row)}
    needed = {field.name for field in fields(Row) if field.default is MISSING}
    for number, values in enumerate(read_lines(path), 1):
        if not needed <= set(values) <= names:
            raise UserError(f"--out has {path}, whose line {number} is not a result row; give another folder")
        yield Row(**values | {"needle_span": tuple(values["needle_span"])})

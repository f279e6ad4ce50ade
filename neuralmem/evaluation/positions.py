"""Loss by position in a document: does what was read long ago still help, beyond the length of training?

Special: all rows of a measure are equally long and each gives every bucket the same number of tokens, so no bucket is
made of other documents than its neighbour. Buckets double, one of them ends at the training length, and differences
are taken within each row. "Keeps falling" is decided by a rule (`verdict`) and not by eye; and since documents get
easier as they go on for a model without a memory too, so is whether the gain over each control grows (`growth`).
Source: evaluation.md section 4.5 (TTT-E2E section 3.4.1); log2 buckets.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from torch import Tensor

from neuralmem.errors import UserError
from neuralmem.evaluation.bootstrap import Mean, weighted_mean
from neuralmem.evaluation.held_out import HeldOutRow
from neuralmem.evaluation.journal import Journal
from neuralmem.evaluation.losses import LossReader, Reading, bucket_ends, bucket_means
from neuralmem.evaluation.perplexity import key, sha256
from neuralmem.evaluation.rows import Subject

IDENTITY = ("text_sha256", "memory", "ckpt_sha256", "chunk_size_eval", "dtype", "train_length")
NAMED = ("bucket", "curve")
CURVE = 256  # points that the curve of one row is stored with


def measure(
    rows: Sequence[HeldOutRow],
    reader: LossReader,
    readings: Sequence[Reading],
    subject: Subject,
    journal: Journal,
    train_length: int | None,
    text: str = "",
    batch_size: int = 16,
) -> list[dict[str, Any]]:
    """Read what has not been read yet; returns the journal's rows, for each reading in the order of the texts.

    Args:
        rows: of one length
        reader: holds the model
        readings: of `losses.READINGS`
        subject: how results name the model
        journal: where they go
        train_length: tokens per training row, where a bucket ends; None: not known
        text: id of the text
        batch_size: rows read together
    """
    hashes, found = [sha256(row.tokens) for row in rows], []
    if not rows:
        return []
    fixed = _fixed(len(rows[0].tokens) - 1, train_length, subject)
    for reading in readings:
        keys = [key(one, reading, subject) | {"train_length": train_length} for one in hashes]
        todo = [i for i, k in enumerate(keys) if journal.find(**k) is None]
        reader.progress(sum(reader.cost(len(row.tokens), reading) for i, row in enumerate(rows) if i not in todo))
        for start in range(0, len(todo), batch_size):
            batch = todo[start : start + batch_size]
            begin = time.perf_counter()
            losses = reader.read([rows[i].tokens for i in batch], reading)
            bookmark = reader.bookmark if reading != "window" else None
            seconds = (bookmark.seconds if bookmark else time.perf_counter() - begin) / len(batch)
            journal.add(
                *(
                    keys[i]
                    | {"text": text, "kind": rows[i].kind}
                    | fixed
                    | _curves(row, fixed)
                    | {"device": subject.device, "state_bytes": losses.state_bytes, "wall_s": round(seconds, 6)}
                    for i, row in zip(batch, losses.rows, strict=True)
                )
            )
            if bookmark is not None:
                bookmark.end()
        for k in keys:
            if row := journal.find(**k):
                journal.confirm(row, partial(_again, row, fixed))
                if len(row.get("bucket_nll", ())) != len(fixed["bucket_ends"]):
                    raise UserError(f"--out has {journal.path}, which has a row whose bucket_nll is of other positions")
        named = [(k, one.document) for k, one in zip(keys, rows, strict=True)]
        found += [row | {"document": document} for k, document in named if (row := journal.find(**k))]
    return found


def _fixed(length: int, train_length: int | None, subject: Subject) -> dict[str, Any]:
    """What a text of so many predicted tokens and the model's config decide."""
    return {
        "tokens": length,
        "bucket_ends": bucket_ends(length, train_length) if train_length else bucket_ends(length),
        "curve_ends": [round(length * (i + 1) / min(CURVE, length)) for i in range(min(CURVE, length))],
        "reach": subject.reach,
        "tokenizer_sha256": subject.tokenizer_sha256,
        "chunk_size_train": subject.chunk_size_train,
    }


def _curves(losses: Tensor, ends: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}_nll": bucket_means(losses, ends[f"{name}_ends"]) for name in NAMED}


def _again(row: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """What a row must say; buckets and curve are means of the same losses, so where both end both have the same sum."""
    must = dict(fixed)
    for name in NAMED:
        count, found = len(fixed[f"{name}_ends"]), row.get(f"{name}_nll")
        if not isinstance(found, list) or len(found) != count or not all(isinstance(x, float) for x in found):
            return must | {f"{name}_nll": f"{count} means"}
    bucket, curve = (dict(zip(fixed[f"{name}_ends"], _sums(row, name, fixed), strict=True)) for name in NAMED)
    if any(not _same(bucket[end], curve[end]) for end in bucket.keys() & curve.keys()):
        must["bucket_nll"] = "means of what curve_nll has means of"
    return must


def _sums(row: Mapping[str, Any], name: str, fixed: Mapping[str, Any]) -> Iterator[float]:
    """The sum of all losses up to each end."""
    lengths = (b - a for a, b in pairwise([0, *fixed[f"{name}_ends"]]))
    return accumulate(mean * n for mean, n in zip(row[f"{name}_nll"], lengths, strict=True))


def _same(a: float, b: float) -> bool:
    """Equal but for rounding; a model may have said NaN."""
    return math.isclose(a, b, rel_tol=1e-6) or (math.isnan(a) and math.isnan(b))


class Bucket(NamedTuple):
    """Positions after `start` and up to `end` (tokens read before the predicted one) under one reading.

    Args:
        memory: "on", or the control
        start, end: of the positions
        texts: rows
        loss: mean over rows, nats per token, as the next three with an interval over documents
        change: loss less that of the bucket that ends at the training length, within each row
        gain: loss less that under "on" at the same positions, within each row
        growth: gain less that of the bucket that ends at the training length, within each row
        beyond: whether every position lies farther from the beginning than attention's reach
    """

    memory: str
    start: int
    end: int
    texts: int
    loss: Mean
    change: Mean
    gain: Mean
    growth: Mean
    beyond: bool


def summarise(rows: Sequence[dict[str, Any]], train_length: int | None, seed: int = 0) -> list[Bucket]:
    """Buckets in order, for each reading in turn; rows must be of one length and the same texts for each reading.

    Intervals are over documents: the rows that one was cut into hang together.

    Args:
        rows: of `measure`
        train_length: the bucket that ends there is what others are compared with; without one, or where texts are no
            longer, the last bucket is
        seed: of the intervals
    """
    out = []
    by: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by.setdefault(row["memory"], []).append(row)
    for memory, own in by.items():
        ends, base = own[0]["bucket_ends"], by.get("on", own)
        at = ends.index(train_length) if train_length in ends else len(ends) - 1
        documents = [row["document"] for row in own]
        losses = [row["bucket_nll"] for row in own]
        gains = [_less(loss, other["bucket_nll"]) for loss, other in zip(losses, base, strict=True)]
        for b, (start, end) in enumerate(pairwise([0, *ends])):
            values = (
                [one[b] for one in losses],
                [one[b] - one[at] for one in losses],
                [one[b] for one in gains],
                [one[b] - one[at] for one in gains],
            )
            loss, change, gain, more = (_over_documents(some, documents, seed) for some in values)
            out.append(Bucket(memory, start, end, len(own), loss, change, gain, more, start > own[0]["reach"]))
    return out


def _over_documents(values: Sequence[float], documents: Sequence[str], seed: int) -> Mean:
    """The mean over rows, with an interval over the documents that they are of."""
    sums: dict[str, list[float]] = {}
    for value, document in zip(values, documents, strict=True):
        sums.setdefault(document, []).append(value)
    return weighted_mean([sum(some) for some in sums.values()], [len(some) for some in sums.values()], seed)


def _less(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(first, second, strict=True)]


class Verdict(NamedTuple):
    """Yes or no, the difference that says so, and a sentence; None where the data cannot say.

    That is without a training length, with no text that is longer, or with a single document.
    """

    holds: bool | None
    difference: Mean | None
    sentence: str


def verdict(buckets: Sequence[Bucket], train_length: int | None, memory: str = "on") -> Verdict:
    """Does the loss keep falling past the training length?

    The rule: yes if the 95% interval of the last bucket's loss, less that of the bucket that ends at the training
    length, lies below 0; else no.
    """
    last = [bucket for bucket in buckets if bucket.memory == memory][-1]
    head = f"memory {memory}: the loss keeps falling past the training length"
    return _decide(head, last, last.change, last.change.high < 0, train_length)


def growth(buckets: Sequence[Bucket], train_length: int | None, control: str) -> Verdict:
    """Does what the memory gains over a control keep growing past the training length?

    The rule: yes if the 95% interval of the last bucket's gain, less that of the bucket that ends at the training
    length, lies above 0; else no.
    """
    last = [bucket for bucket in buckets if bucket.memory == control][-1]
    head = f"memory on: its gain over {control} keeps growing past the training length"
    return _decide(head, last, last.growth, last.growth.low > 0, train_length)


def _decide(head: str, last: Bucket, difference: Mean, holds: bool, train_length: int | None) -> Verdict:
    if train_length is None:
        return Verdict(None, None, f"{head}: not known, the checkpoint does not say its training length")
    if last.end <= train_length:
        return Verdict(None, None, f"{head}: not measured, no text is longer than {train_length:,} tokens")
    if difference.n < 2:
        return Verdict(None, difference, f"{head}: not shown, one document leaves no interval")
    about = f"{difference.value:+.3f} nats [{difference.low:+.3f}, {difference.high:+.3f}]"
    where = f"from the bucket up to {train_length:,} to {last.start + 1:,}-{last.end:,}, n={difference.n} documents"
    return Verdict(holds, difference, f"{head}: {'yes' if holds else 'no'}, {about} {where}")

"""Asks prompts that a journal does not have yet, and keeps what identifies every answer.

Special: a row is done when prompt, control, checkpoint, arithmetic and the length of the answer are the same.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from neuralmem.errors import UserError
from neuralmem.evaluation.journal import Journal
from neuralmem.evaluation.niah import readings
from neuralmem.evaluation.reader import Answer, Reader
from neuralmem.evaluation.rows import Subject
from neuralmem.evaluation.sample import Sample

IDENTITY = ("prompt_sha256", "ablation", "ckpt_sha256", "chunk_size_eval", "dtype", "max_new_tokens", "sample_id")


def ask_missing(
    samples: Sequence[Sample],
    ablations: Sequence[str],
    reader: Reader,
    subject: Subject,
    journal: Journal,
    score: Callable[[Sample, Answer], dict[str, Any]],
    max_new_tokens: int,
    batch_size: int = 16,
) -> list[dict[str, Any]]:
    """Ask what has not been asked, batch by batch; returns the rows of all samples, for each control in turn.

    Args:
        samples: with as many candidates each
        ablations: of `reader.ABLATIONS`
        reader: holds the model
        subject: how rows name it
        journal: where rows go, of the identity above
        score: the fields of a row that are the task's own
        max_new_tokens: length of the greedy answer
        batch_size: prompts read together

    Raises:
        UserError: "shuffled" of a single sample, which needs the state after another.
    """
    if "shuffled" in ablations and len(samples) < 2:
        raise UserError("--samples is 1; shuffled asks the state after another text, so it must be at least 2")
    hashes = [sample.rope.sha256() for sample in samples]
    keys = {
        (i, name): _key(sample, hashes[i], name, subject, max_new_tokens)
        for i, sample in enumerate(samples)
        for name in ablations
    }

    def missing(i: int) -> tuple[str, ...]:
        return tuple(name for name in ablations if journal.find(**keys[i, name]) is None)

    # Rows of one batch are padded to its longest, so neighbours in length go together.
    ordered = sorted(range(len(samples)), key=lambda i: (missing(i), len(samples[i].rope)))
    for names, same in groupby(ordered, key=missing):
        group = list(same)
        done = readings(ablations) - readings(names)
        reader.progress(done * sum(len(samples[i].rope) for i in group))
        for start in range(0, len(group), batch_size) if names else ():
            batch = group[start : start + batch_size]
            other = partial(samples.__getitem__, (batch[0] + 1) % len(samples))
            for name, answers in reader.ask([samples[i] for i in batch], names, max_new_tokens, other):
                journal.add(
                    *(
                        keys[i, name] | _about(samples[i], answer, subject) | score(samples[i], answer)
                        for i, answer in zip(batch, answers, strict=True)
                    )
                )
    return [row for name in ablations for i in range(len(samples)) if (row := journal.find(**keys[i, name]))]


def _key(sample: Sample, sha256: str, ablation: str, subject: Subject, max_new_tokens: int) -> dict[str, Any]:
    return {
        "prompt_sha256": sha256,
        "ablation": ablation,
        "ckpt_sha256": subject.ckpt_sha256,
        "chunk_size_eval": subject.chunk_size_eval,
        "dtype": subject.dtype,
        "max_new_tokens": max_new_tokens,
        "sample_id": sample.number,
    }


def _about(sample: Sample, answer: Answer, subject: Subject) -> dict[str, Any]:
    return {
        "task": sample.task.name,
        "nominal_len": sample.length,
        "prompt_tokens": len(sample.rope),
        "context_tokens": sample.context[1] - sample.context[0],
        "needle_spans": [list(span) for span in sample.needles],
        "distance_to_query": sample.distance,
        "reach": subject.reach,
        "beyond_window": sample.beyond(subject.reach),
        "answer": sample.answers[0],
        "pred": answer.text,
        "partner": answer.partner,
        "seed": sample.seed,
        "tokenizer_sha256": subject.tokenizer_sha256,
        "haystack_id": sample.haystack,
        "chunk_size_train": subject.chunk_size_train,
        "device": subject.device,
        "state_bytes": answer.state_bytes,
        "wall_s": round(answer.seconds, 6),
    }

"""Which part of a text an answer came from: read again without it, the text makes the answer less likely.

Special: leaving a part out means that its tokens are not there, for attention, convolutions and memory alike: a mask
skips them, and what follows moves up. That is a text that could have been read, and a test compares it with reading
that text from its start. Reading the part without writing it would be something else: its words would still reach the
memory through tokens of the next part, which attend to it. Parts are whole chunks (for MAC whole segments), so all that
follows keeps its place on the grid of chunks. Since what follows moves up, only needles farther from the question than
the reach and one part are asked for, and only parts beyond the reach are ranked: nothing but the memory can have
brought them. With the memory off none of them matters, and the first place is drawn by chance.
A state is a value, so a part is left out by copying the state in front of it: row 0 reads everything, the others have
left out one part each, and all read on together.
Source: leave-one-out attribution; evaluation.md section 9, number 3.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from math import lcm
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neuralmem.config import ModelConfig
from neuralmem.errors import UserError
from neuralmem.evaluation.journal import Journal
from neuralmem.evaluation.niah import Settings, cells
from neuralmem.evaluation.protocols import Build, Cell
from neuralmem.evaluation.reader import MODES
from neuralmem.evaluation.recall import TrainingData
from neuralmem.evaluation.rope import Rope
from neuralmem.evaluation.rows import Subject
from neuralmem.evaluation.sample import Sample
from neuralmem.generation.protocol import LanguageModel, TokenizerLike, device_of
from neuralmem.typing import MemoryMode

ABLATIONS = ("none", "off")
IDENTITY = ("prompt_sha256", "sample_id", "ablation", "part_tokens", "ckpt_sha256", "chunk_size_eval", "dtype")
DIGITS = 5  # of a drop in nats, that are told apart: rows of a batch differ in the sixth (float32)
TRIES = 20  # prompts drawn for each that is wanted, at most: those whose needle is in reach are not asked

Span = tuple[int, int]


class Replay(NamedTuple):
    """How to leave parts out.

    Args:
        parts: so many per prompt, at most; they are as long as that needs, in multiples of `unit`
        unit: tokens of a chunk, or of a segment that chunks are counted in
        rows: texts read side by side, at most, besides the whole one
        stream_chunk: tokens read per call, at most
        progress: called with the number of tokens read, of all rows
    """

    parts: int = 64
    unit: int = 1
    rows: int = 16
    stream_chunk: int = 4096
    progress: Callable[[int], None] = lambda tokens: None


def grid_unit(config: ModelConfig) -> int:
    """Tokens after which a model's chunks, and segments if it has any, begin together.

    Example:
        >>> grid_unit(ModelConfig(vocab_size=5, width=8, depth=1, pattern=["titans_mag"]))
        32
    """
    has_segments = "titans_mac" in config.pattern
    return lcm(config.chunk_size, config.attention.segment if has_segments else 1)


def parts_of(sample: Sample, reach: int, replay: Replay) -> list[Span]:
    """The parts of a prompt's haystack that lie beyond reach of its last token, as token spans of one length."""
    begin, end = sample.context[0], min(sample.question, len(sample.rope) - reach - 1)
    chunks = max(0, end - begin) // replay.unit
    size = -(-chunks // replay.parts) * replay.unit
    return [(at, at + size) for at in range(begin, end - size + 1, size)] if size else []


def holding(parts: Sequence[Span], needle: Span) -> list[int]:
    """Numbers of the parts that hold something of the needle.

    Example:
        >>> holding([(0, 8), (8, 16), (16, 24)], (14, 17))
        [1, 2]
    """
    return [i for i, (start, stop) in enumerate(parts) if start < needle[1] and needle[0] < stop]


@torch.no_grad()
def leave_one_out(
    model: LanguageModel,
    rope: Rope,
    question: int,
    answer: Sequence[int],
    parts: Sequence[Span],
    mode: MemoryMode = "on",
    replay: Replay | None = None,
) -> tuple[float, list[float]]:
    """Log-likelihood of an answer after a prompt, and after the prompt without each of its parts.

    Args:
        model: any `LanguageModel`
        rope: the prompt
        question: first token that is never left out
        answer: token ids that follow the prompt
        parts: token spans in ascending order, none over another, before the question
        mode: of the memory
        replay: rows and tokens read at once

    Returns:
        With everything, and without parts[i]; natural logarithms.
    """
    replay = replay or Replay()
    base, at, whole = model.init_state(1), 0, math.nan
    without: list[float] = []
    for first in range(0, max(1, len(parts)), replay.rows):
        group = parts[first : first + replay.rows]
        state = base
        for i, (start, stop) in enumerate(group):
            state = _read(model, rope.slice(at, start), state, 1 + i, mode, replay)
            state = state.select([*range(1 + i), 0])
            state = _read(model, rope.slice(start, stop), state, 2 + i, mode, replay, skip_last=True)
            at = stop
        base = state.select([0])
        state = _read(model, rope.slice(at, question), state, 1 + len(group), mode, replay)
        whole, *rest = _score(model, rope.slice(question, len(rope)), answer, state, 1 + len(group), mode, replay)
        without += rest
    return whole, without


def tokens_to_read(length: int, parts: Sequence[Span], rows: int) -> int:
    """What `leave_one_out` tells its progress in all, for a prompt of that length."""
    heads = [0, *(parts[i - 1][1] for i in range(rows, len(parts), rows))]
    return sum(length - at for at in heads) + sum(length - stop for _, stop in parts)


def _read(
    model: LanguageModel, ids: Tensor, state: Any, rows: int, mode: MemoryMode, replay: Replay, skip_last: bool = False
) -> Any:
    """All rows read the same tokens, but the last one none of them if it is to skip them."""
    device = device_of(model)
    for piece in ids.split(replay.stream_chunk) if len(ids) else ():
        tokens = piece.long().to(device).expand(rows, -1)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        mask[-1] = not skip_last
        _, state = model(tokens, state, mask=mask if skip_last else None, memory=mode, select=torch.zeros_like(mask))
        replay.progress(len(piece) * (rows - skip_last))
    return state


def _score(
    model: LanguageModel,
    question: Tensor,
    answer: Sequence[int],
    state: Any,
    rows: int,
    mode: MemoryMode,
    replay: Replay,
) -> list[float]:
    device = device_of(model)
    said = torch.tensor(list(answer))
    tokens = torch.cat([question.long(), said[:-1]]).to(device).expand(rows, -1)
    select = torch.zeros_like(tokens, dtype=torch.bool)
    select[:, len(question) - 1 :] = True
    logits, _ = model(tokens, state, memory=mode, select=select)
    replay.progress(len(question) * rows)
    likelihoods = logits.view(rows, len(said), -1).double().log_softmax(-1)
    return likelihoods.gather(-1, said.to(device).expand(rows, -1)[..., None]).sum((1, 2)).tolist()


def rank(drops: Sequence[float], wanted: Sequence[int], random: Random) -> int:
    """Place of the first of the wanted parts when the parts are sorted by drop, 1 is best; ties are put in any order.

    Drops that differ by rounding only are ties. Where a drop is not a number the place is the last.

    Example:
        >>> rank([0.1, 3.0, -0.2], [1], Random(0)), rank([0.1, 3.0, -0.2], [0, 2], Random(0))
        (1, 2)
    """
    if not all(map(math.isfinite, drops)):
        return len(drops)
    order = sorted(range(len(drops)), key=lambda i: (-round(drops[i], DIGITS), random.random()))
    return 1 + min(order.index(i) for i in wanted)


def run(
    settings: Settings,
    model: LanguageModel,
    tokenizer: TokenizerLike,
    subject: Subject,
    journal: Journal,
    training: TrainingData,
    replay: Replay,
    plan: Callable[[int], None] = lambda tokens: None,
) -> list[dict[str, Any]]:
    """Attribute the answers of prompts whose needle is beyond reach; rows go to the journal as they come.

    Args:
        settings: which prompts, under which ablations; depths are left to chance
        model: any `LanguageModel`
        tokenizer: the model's
        subject: how rows name them
        journal: what has been measured
        training: what the checkpoint was trained on
        replay: how parts are left out
        plan: told how many tokens there are to read in all

    Returns:
        All rows of these settings.

    Raises:
        UserError: a length in which hardly any needle is beyond reach.
    """
    todo = []
    for cell, build in cells(settings, tokenizer, training):
        samples = list(islice(_beyond(cell, build, subject.reach, replay, settings), settings.count(cell.length)))
        if len(samples) < settings.count(cell.length):
            raise UserError(
                f"--lengths holds {cell.length}; of its needles hardly any is farther back than the reach of "
                f"{subject.reach:,} tokens and one part: give a longer one"
            )
        todo += [(s, name) for s in samples for name in settings.ablations]
    plan(sum(tokens_to_read(len(s.rope), parts_of(s, subject.reach, replay), replay.rows) for s, _ in todo))
    return [_measure(sample, name, model, subject, journal, replay) for sample, name in todo]


def _beyond(cell: Cell, build: Build, reach: int, replay: Replay, settings: Settings) -> Iterator[Sample]:
    """Samples whose needle lies in parts that are ranked, and would be beyond reach with a part less."""
    for number in islice(count(), TRIES * settings.count(cell.length)):
        sample = build(number, None, cell.random(number))
        parts = parts_of(sample, reach, replay)
        if not parts or sample.needles[0][0] < parts[0][0] or sample.needles[0][1] > parts[-1][1]:
            continue
        if sample.distance > reach + parts[0][1] - parts[0][0]:
            yield sample


def _measure(
    sample: Sample, ablation: str, model: LanguageModel, subject: Subject, journal: Journal, replay: Replay
) -> dict[str, Any]:
    parts = parts_of(sample, subject.reach, replay)
    facts: dict[str, Any] = {
        "prompt_sha256": sample.rope.sha256(),
        "sample_id": sample.number,
        "ablation": ablation,
        "part_tokens": parts[0][1] - parts[0][0],
        "ckpt_sha256": subject.ckpt_sha256,
        "chunk_size_eval": subject.chunk_size_eval,
        "dtype": subject.dtype,
        "task": sample.task.name,
        "protocol": sample.protocol,
        "haystack_id": sample.haystack,
        "nominal_len": sample.length,
        "prompt_tokens": len(sample.rope),
        "needle_span": list(sample.needles[0]),
        "distance_to_query": sample.distance,
        "reach": subject.reach,
        "key": sample.key,
        "answer": sample.answers[0],
        "first_token": parts[0][0],
        "seed": sample.seed,
        "tokenizer_sha256": subject.tokenizer_sha256,
    }
    if known := journal.find(**facts):
        replay.progress(tokens_to_read(len(sample.rope), parts, replay.rows))
        journal.confirm(known, lambda: facts | _placed(sample, parts, _drops(known, len(parts))))
        return known
    start = time.perf_counter()
    arguments = (model, sample.rope, sample.question, sample.candidates[0], parts, MODES[ablation], replay)
    whole, without = leave_one_out(*arguments)
    row = facts | _placed(sample, parts, [whole - x for x in without])
    row |= {
        "log_likelihood": whole if math.isfinite(whole) else None,
        "device": subject.device,
        "wall_s": round(time.perf_counter() - start, 6),
    }
    journal.add(row)
    return row


def _placed(sample: Sample, parts: Sequence[Span], drops: Sequence[float]) -> dict[str, Any]:
    """The fields of a row that the falls decide, with the falls."""
    wanted = holding(parts, sample.needles[0])
    place = rank(drops, wanted, Random(f"{sample.seed}/{sample.number}/{sample.rope.sha256()}"))
    return {
        "drops": [x if math.isfinite(x) else None for x in drops],
        "needle_parts": wanted,
        "rank": place,
        "hit": int(place == 1),
        "chance": len(wanted) / len(parts),
    }


def _drops(row: dict[str, Any], count: int) -> list[float]:
    """The falls of a row, as many as there must be."""
    found = [math.nan if x is None else x for x in row["drops"][:count]]
    return found + [math.nan] * (count - len(found))

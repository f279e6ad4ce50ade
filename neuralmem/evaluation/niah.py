"""The needle run: which prompts, in which order, what is already there, and what is written.

Special: rows are appended after every batch, so a run that was stopped goes on where it was; a row is done when its
prompt's hash, checkpoint and ablation are in the file, so changing the options never mixes up results.
"""

import sys
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from pathlib import Path

from neuralmem.evaluation import cwe, fwe, vt
from neuralmem.evaluation import rows as store
from neuralmem.evaluation.cell import Build, Cell, reserve
from neuralmem.evaluation.contexts import TokenisedHaystack
from neuralmem.evaluation.haystack import Haystack, open_haystack
from neuralmem.evaluation.prompts import Task
from neuralmem.evaluation.protocols import exact, ruler
from neuralmem.evaluation.reader import MODES, Reader
from neuralmem.evaluation.recall import FACTS, TrainingData, recall_prompts, tokenise_lines, training_keys
from neuralmem.evaluation.rows import Row, Subject
from neuralmem.evaluation.sample import Sample
from neuralmem.evaluation.summary import Grid
from neuralmem.generation.protocol import TokenizerLike

SPARE = (
    4  # tokens that a recall answer may have beyond the true one's, so that a value that goes on is seen to be wrong
)
OWN = {"vt": vt, "cwe": cwe, "fwe": fwe}  # tasks with prompts of their own
DEPTHS = (0.0, 25.0, 50.0, 75.0, 100.0)


@dataclass(frozen=True)
class Settings:
    """What to ask.

    Args:
        tasks: which tasks
        lengths: nominal lengths in tokens
        depths: percents, gone round by the samples; None: where the protocol puts needles
        samples: per task and haystack, for each length in ascending order; the last one for all further lengths
        seed: same seed, same prompts of a length, whatever other lengths there are
        protocol: one of `protocols.PROTOCOLS`
        haystacks: names; empty: noise for s-niah-pk, the built-in corpus for the others. Tasks that make their own
            (mk-niah-2, mk-niah-3, vt, cwe, fwe) have that one whatever stands here
        ablations: "none" and the controls wanted
        max_new_tokens: length of the greedy answer; None: as RULER (128 for needles), for recall what the answer needs
        batch_size: prompts read together
        facts: of a prompt of the recall task, the one asked for included
    """

    tasks: tuple[Task, ...]
    lengths: tuple[int, ...]
    depths: tuple[float, ...] | None = DEPTHS
    samples: tuple[int, ...] = (50,)
    seed: int = 42
    protocol: str = "exact"
    haystacks: tuple[str, ...] = ()
    ablations: tuple[str, ...] = ("none",)
    max_new_tokens: int | None = None
    batch_size: int = 16
    facts: int = FACTS

    def count(self, length: int) -> int:
        """Samples of that length.

        Example:
            >>> [Settings((), (512, 1024, 2048), samples=(200, 50)).count(n) for n in (512, 1024, 2048)]
            [200, 50, 50]
        """
        return self.samples[min(sorted(self.lengths).index(length), len(self.samples) - 1)]

    @property
    def grid(self) -> Grid:
        """Depths of the picture's rows."""
        return Grid(self.depths or DEPTHS, assigned=self.depths is not None)


def run(
    settings: Settings,
    reader: Reader,
    subject: Subject,
    out: Path,
    training: TrainingData,
    plan: Callable[[int], None] = lambda tokens: None,
) -> list[Row]:
    """Ask what has not been asked yet, append the rows to `out`/rows.jsonl, return all rows of these settings.

    Args:
        settings: what to ask
        reader: holds model and tokenizer
        subject: how rows name them
        out: folder, made if needed
        training: what the checkpoint was trained on
        plan: told how many prompt tokens there are to read in all, before anything is written

    Raises:
        UserError: a length that cannot hold its needle, a haystack that does not exist; before anything is read.
    """
    todo = list(cells(settings, reader.tokenizer, training))
    for cell, build in todo:
        build(0, depth_of(settings, 0), cell.random(0))
    plan(sum(cell.length * settings.count(cell.length) for cell, _ in todo) * readings(settings.ablations))
    out.mkdir(parents=True, exist_ok=True)
    path = out / "rows.jsonl"
    have = {row.identity: row for row in store.read(path, repair=True)}
    asked = {row.prompt_sha256 for row in have.values()}
    found: list[Row] = []
    for cell, build in todo:
        samples = [build(i, depth_of(settings, i), cell.random(i)) for i in range(settings.count(cell.length))]
        _warn_of_short(samples, cell, asked)
        partner = partial(_partner, samples, cell, build, settings)
        found += _run_cell(samples, partner, settings, reader, subject, path, have)
    return found


def cells(settings: Settings, tokenizer: TokenizerLike, training: TrainingData) -> Iterator[tuple[Cell, Build]]:
    """Every task, haystack and length, with what builds its samples; no cell hangs on the others."""
    known: dict[Haystack, Haystack] = {}  # what is the same for several lengths is taken apart once
    for task in settings.tasks:
        make = _builder(task, tokenizer, settings, training)
        protocol = "exact" if task.name == "recall" else settings.protocol
        for name in _haystacks(task, settings, training):
            for length in settings.lengths:
                haystack = _open(task, name, length, settings, training)
                haystack = known.setdefault(haystack, haystack)
                cell = Cell(task, protocol, length, haystack, settings.seed, tokenizer.encode)
                yield cell, make(cell)


def _makes_its_own(task: Task) -> bool:
    return task.name in OWN or task.haystack not in ("text", "noise")


def _haystacks(task: Task, settings: Settings, training: TrainingData) -> tuple[str, ...]:
    """Names of those to be used with a task."""
    if _makes_its_own(task):
        return (task.haystack,)
    return settings.haystacks or ("noise" if task.haystack == "noise" else training.haystack,)


def _open(task: Task, name: str, length: int, settings: Settings, training: TrainingData) -> Haystack:
    """The haystack of that name for prompts of that length."""
    if _makes_its_own(task):
        return Haystack(name)
    return open_haystack(name, 6 * length, settings.seed, training.share)


def _enough(cell: Cell) -> int:
    """Tokens beyond which more text would not be used."""
    return max(2 * cell.length, 1 << 18)


def _builder(
    task: Task, tokenizer: TokenizerLike, settings: Settings, training: TrainingData
) -> Callable[[Cell], Build]:
    """What makes the builder of each cell; a text is tokenised once for all that draw from as much of it."""
    if task.name == "recall":
        keys = training_keys(training, tokenizer, settings.facts)
        lines = cache(lambda haystack, enough: tokenise_lines(haystack.passage(4 * enough), tokenizer))
        return lambda cell: recall_prompts(
            cell, lines(cell.haystack, _enough(cell)), training.form, keys, settings.facts
        )
    if task.name in OWN:
        own = OWN[task.name]
        return own.exact if settings.protocol == "exact" else own.ruler
    if settings.protocol != "exact":
        return ruler
    if task.haystack == "needles":
        return lambda cell: exact(cell, None)
    sentences = cache(partial(_tokenise, tokenizer))
    return lambda cell: exact(cell, sentences(cell.haystack, _enough(cell)))


def _tokenise(tokenizer: TokenizerLike, haystack: Haystack, enough: int) -> TokenisedHaystack:
    separator = "\n" if haystack.is_noise else " "
    return TokenisedHaystack.of_units(haystack.sentences, separator, tokenizer.encode, enough)


def _warn_of_short(samples: Sequence[Sample], cell: Cell, asked: Container[str]) -> None:
    """Say that prompts are, with their answers, under half of their length on the mean; once, when they are new."""
    mean = sum(len(sample.rope) for sample in samples) / len(samples)
    if mean + reserve(cell.task) < cell.length / 2 and samples[-1].rope.sha256() not in asked:
        print(
            f"warning: --lengths holds {cell.length}; prompts of {cell.task.name} with --protocol {cell.protocol} in "
            f"{samples[0].haystack} have {mean:,.0f} tokens on the mean, exact would fill them",
            file=sys.stderr,
        )


def readings(ablations: Sequence[str]) -> int:
    """How often a prompt is read for these ablations: reset shares the reading of none."""
    return len({MODES[name] for name in ablations})


def new_tokens(settings: Settings, samples: Sequence[Sample]) -> int:
    """Length of the greedy answers of a batch."""
    if settings.max_new_tokens is not None:
        return settings.max_new_tokens
    if samples[0].task.name != "recall":
        return samples[0].task.generated
    return SPARE + max(len(sample.candidates[0]) for sample in samples)


def depth_of(settings: Settings, number: int) -> float | None:
    """Where the first needle of a sample goes, from 0 to 1; None: where the protocol puts it."""
    return None if settings.depths is None else settings.depths[number % len(settings.depths)] / 100


def _partner(samples: Sequence[Sample], cell: Cell, build: Build, settings: Settings, of: Sample) -> Sample:
    """Another sample of the cell; one more is made where there is only one."""
    if len(samples) > 1:
        return samples[(of.number + 1) % len(samples)]
    return build(of.number + 1, depth_of(settings, of.number + 1), cell.random(of.number + 1))


def _run_cell(
    samples: list[Sample],
    partner: Callable[[Sample], Sample],
    settings: Settings,
    reader: Reader,
    subject: Subject,
    path: Path,
    have: dict[tuple, Row],
) -> Iterator[Row]:
    """Ask the samples of one cell what has not been asked; yields all their rows."""
    hashes = {sample.number: sample.rope.sha256() for sample in samples}
    keys = {
        (s.number, name): store.identity(s, hashes[s.number], name, subject)
        for s in samples
        for name in settings.ablations
    }

    def missing(sample: Sample) -> tuple[str, ...]:
        return tuple(name for name in settings.ablations if keys[sample.number, name] not in have)

    # Rows of one batch are padded to its longest, so neighbours in length go together.
    ordered = sorted(samples, key=lambda sample: (missing(sample), len(sample.rope)))
    for names, same in groupby(ordered, key=missing):
        group = list(same)
        done = readings(settings.ablations) - readings(names)
        reader.progress(done * sum(len(sample.rope) for sample in group))
        for i in range(0, len(group), settings.batch_size) if names else ():
            batch = group[i : i + settings.batch_size]
            for _, answers in reader.ask(batch, names, new_tokens(settings, batch), partial(partner, batch[0])):
                pairs = zip(batch, answers, strict=True)
                fresh = [store.make_row(s, hashes[s.number], answer, subject) for s, answer in pairs]
                store.append(path, fresh)
                have.update((row.identity, row) for row in fresh)
    yield from (have[key] for key in keys.values())

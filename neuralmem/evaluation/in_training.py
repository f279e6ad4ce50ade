"""Two probes for the time of training: needles, and perplexity by position.

Special: small on purpose, tens of prompts rather than hundreds, without controls; they show when something is learnt.
What it is worth is what `eval.py` says of the finished model. Named by class path in a YAML file (docs/training.md).
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from neuralmem.errors import UserError
from neuralmem.evaluation.held_out import open_text, rows_of
from neuralmem.evaluation.losses import LossReader, bucket_ends, bucket_means
from neuralmem.evaluation.niah import Settings, cells, new_tokens
from neuralmem.evaluation.prompts import find_task
from neuralmem.evaluation.reader import Answer, Reader
from neuralmem.evaluation.recall import FACTS, TrainingData, from_arguments
from neuralmem.evaluation.sample import Sample
from neuralmem.evaluation.scoring import official, rank_of_first, strict
from neuralmem.generation.protocol import LanguageModel, TokenizerLike
from neuralmem.generation.scheduled import Points, Probe, Reading
from neuralmem.typing import MemoryMode


class Needles(Probe):
    """Facts in held-out text, one of them asked for: the share answered exactly, by length.

    Args:
        lengths: prompts in tokens; None is 1x and 4x the training rows
        samples: prompts per length, their needles at the depths of `eval.py niah` in turn
        task: one of `eval.py niah`'s
        haystack: "builtin", "stdlib", "grammar", "noise" or "file:PATH"; None is the one that `eval.py` would take
        facts: in a prompt, the one asked for included; of the task recall
        batch_size: prompts read together
        seed: the same seed, the same prompts

    Raises:
        UserError: a length or a count that is not positive, or a task that does not exist.
    """

    name = "needle"

    def __init__(
        self,
        lengths: list[int] | None = None,
        samples: int = 20,
        task: str = "recall",
        haystack: str | None = None,
        facts: int = FACTS,
        batch_size: int = 10,
        seed: int = 42,
    ) -> None:
        _check_positive(samples=samples, facts=facts, batch_size=batch_size, **{"lengths": min(lengths or [1])})
        self.lengths, self.samples, self.task, self.haystack = lengths, samples, find_task(task), haystack
        self.facts, self.batch_size, self.seed = facts, batch_size, seed
        self.prompts: dict[int, list[Sample]] = {}  # made once, since finding the keys takes seconds

    def __call__(self, model: LanguageModel, tokenizer: TokenizerLike | None, data: Mapping[str, Any]) -> Reading:
        if tokenizer is None:
            raise UserError("probe needle needs a tokenizer, and the tokens of these data are no text")
        settings = self._settings(_training(data))
        if not self.prompts:
            self.prompts = {
                cell.length: [
                    build(i, depth / 100, cell.random(i))
                    for i, depth in zip(range(self.samples), cycle(settings.depths or ()), strict=False)
                ]
                for cell, build in cells(settings, tokenizer, _training(data))
            }
        reader = Reader(model, tokenizer)
        values: dict[str, float] = {}
        for length, samples in self.prompts.items():
            answers = list(self._ask(reader, settings, samples))
            values[f"found_{length}"] = sum(self._score(*pair) for pair in answers) / len(answers)
            first = [rank_of_first(answer.log_likelihoods) == 1 for _, answer in answers if answer.log_likelihoods]
            if first:
                values[f"likeliest_{length}"] = sum(first) / len(first)
        curves = {
            label: [(float(length), values[f"{key}_{length}"]) for length in self.prompts]
            for label, key in (("answered exactly", "found"), ("likeliest of ten", "likeliest"))
            if all(f"{key}_{length}" in values for length in self.prompts)
        }
        return Reading(values, ("length in tokens", "share of needles"), curves)

    def _settings(self, training: TrainingData) -> Settings:
        lengths = self.lengths or [length * (training.length or 256) for length in (1, 4)]
        haystacks = (self.haystack,) if self.haystack else ()
        return Settings(
            (self.task,),
            tuple(sorted(lengths)),
            samples=(self.samples,),
            seed=self.seed,
            haystacks=haystacks,
            facts=self.facts,
        )

    def _ask(self, reader: Reader, settings: Settings, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Answer]]:
        for start in range(0, len(samples), self.batch_size):
            group = samples[start : start + self.batch_size]
            for _, answers in reader.ask(group, ("none",), new_tokens(settings, group)):
                yield from zip(group, answers, strict=True)

    def _score(self, sample: Sample, answer: Answer) -> float:
        if self.task.name == "recall":
            return strict(answer.text, sample.answers, self.task.kind)
        return official(answer.text, sample.answers)


class PerplexityByPosition(Probe):
    """The loss of held-out text by how much of it was read before: what a memory is for makes it fall.

    Beside the model as it is, it is measured with its memory frozen: the gap is what writing is worth. Rows
    are the beginnings of documents; where too few are long enough, their further parts, then shorter ones joined.

    Args:
        length: tokens per row; None is 4x the training rows
        rows: texts, read together
        stream_chunk: tokens read per call, at most

    Raises:
        UserError: an argument that is not positive.
    """

    name = "perplexity"

    def __init__(self, length: int | None = None, rows: int = 8, stream_chunk: int = 1024) -> None:
        _check_positive(length=1 if length is None else length, rows=rows, stream_chunk=stream_chunk)
        self.length, self.rows, self.stream_chunk = length, rows, stream_chunk
        self.text: Tensor | None = None  # Int [rows, length + 1]

    def __call__(self, model: LanguageModel, tokenizer: TokenizerLike | None, data: Mapping[str, Any]) -> Reading:
        if tokenizer is None:
            raise UserError("probe perplexity needs a tokenizer, and the tokens of these data are no text")
        training = _training(data)
        if self.text is None:
            length = self.length or 4 * (training.length or 256)
            found = list(rows_of(open_text("", training).documents(), tokenizer.encode, length, self.rows))
            if len(found) < self.rows:
                raise UserError(
                    f"probe perplexity has rows {self.rows} of length {length}; "
                    f"the held-out text is enough for {len(found)}"
                )
            self.text = torch.stack([row.tokens for row in found])
        modes: tuple[MemoryMode, ...] = ("on", "frozen") if getattr(model, "has_memory", True) else ("on",)
        curves = {f"memory {mode}": self._curve(model, mode) for mode in modes}
        values = {f"loss_to_{x:.0f}": y for x, y in curves["memory on"]}
        return Reading(values, ("position in tokens", "loss, nats per token"), curves)

    def _curve(self, model: LanguageModel, mode: MemoryMode) -> Points:
        """(last token, mean loss) of every bucket of positions."""
        assert self.text is not None
        losses = torch.stack(LossReader(model, self.stream_chunk).read(list(self.text), mode).rows).mean(0)
        ends = bucket_ends(len(losses))
        return list(zip(map(float, ends), bucket_means(losses, ends), strict=True))


def _training(data: Mapping[str, Any]) -> TrainingData:
    return from_arguments(dict(data.get("init_args") or {}))


def _check_positive(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"probes.{name} is {value}; it must be a positive integer")

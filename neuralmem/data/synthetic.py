"""Seeded tasks that need memory: the common part, and recall of token pairs beyond the attention window.

What makes small models learn recall in minutes: dense supervision (many facts and many questions in one row) and a
curriculum (`Stage`) over the number of distinct keys first and the length second, advanced when a stage is mastered. A
batch is a function of seed, reader and number alone, so a resumed run draws the same batches.

`Recall` is multi-query associative recall (Arora et al., arXiv:2312.04927) with a gap wider than attention reaches.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from neuralmem.data.batch import NO_LOSS, Batch
from neuralmem.data.readers import ENDLESS, reader, refuse_changed
from neuralmem.errors import UserError

Part = Literal["train", "validation"]


@dataclass(frozen=True)
class Longer:
    """Rows of another length that are mixed into a stage.

    Args:
        length: tokens per row
        share: part of all batches, 0 to 1
        facts: facts per row
        questions: questions per row
        updates: facts that tell another value of a key told before, drawn at random each; the latest counts
        forms: formats in use, as in `Stage`; None: those of the stage
    """

    length: int
    share: float
    facts: int
    questions: int
    updates: int = 0
    forms: int | None = None


@dataclass(frozen=True)
class Stage:
    """One step of a curriculum.

    Args:
        keys: distinct keys in use; 0: all
        length: tokens per row
        facts: facts per row, with different keys
        questions: questions per row; more than facts: some are asked again
        updates: facts that tell another value of a key told before, drawn at random each; the latest counts
        gap: tokens at least between the last fact and the first question, as far as the row has room
        forms: formats of facts in use, from the first on, of data that has several; 0: all
        longer: lengths that some of the batches have instead
        mastery: share of exact answers, on rows of `length`, from which on the next stage may begin
    """

    keys: int = 0
    length: int = 256
    facts: int = 6
    questions: int = 6
    updates: int = 0
    gap: int = 0
    forms: int = 0
    longer: Sequence[Longer] = ()
    mastery: float = 0.9


@dataclass(frozen=True)
class Layout:
    """What one batch is made of: its stage, or one of the lengths mixed in."""

    rows: int
    keys: int
    length: int
    facts: int
    questions: int
    gap: int
    updates: int = 0
    forms: int = 0


class Curriculum(IterableDataset[Batch]):
    """Endless batches by stages. Subclasses implement `draw`.

    Args:
        stages: the curriculum, first to last
        batch_tokens: tokens per batch; rows = batch_tokens // length, at least one
        seed: of all that is drawn
        part: "train" or "validation": which pairs of keys and values are used; they are disjoint
        batches: stop after this many; None: endless
        shard: (index, count) of this reader, for several devices; loader processes divide further

    Attributes:
        stage: number of the stage in use, shared with loader processes (which may have batches of the last stage ready)
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        batch_tokens: int = 4096,
        seed: int = 0,
        part: Part = "train",
        batches: int | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__()
        if not stages:
            raise UserError("stages is []; it must hold at least one stage")
        if part not in ("train", "validation"):
            raise UserError(f"part is {part!r}; it must be one of train, validation")
        for i, stage in enumerate(stages):
            if sum(more.share for more in stage.longer) > 1:
                raise UserError(
                    f"stages[{i}].longer has shares that add up to more than 1; they must add up to at most 1"
                )
        self.stages, self.batch_tokens, self.seed, self.part = tuple(stages), batch_tokens, seed, part
        self.batches, self.shard, self._draws, self._resumed = batches, shard, 0, False
        self._stage = torch.zeros((), dtype=torch.long).share_memory_()

    @abstractmethod
    def draw(self, rng: np.random.Generator, layout: Layout) -> Batch:
        """-> a batch of `layout.rows` rows of `layout.length` tokens."""

    @abstractmethod
    def room(self, stage: Stage, part: Stage | Longer) -> int:
        """-> tokens that a row of a stage, or of a length mixed into it, must have at least."""

    def _check_stages(self, keys: int) -> None:
        """Refuse rows that cannot hold their facts and questions. `keys`: how many there are in all."""
        for where, stage, part in self._parts():
            for name in ("length", "facts", "questions"):
                if getattr(part, name) < 1:
                    raise UserError(f"{where}.{name} is {getattr(part, name)}; it must be at least 1")
            if part.updates < 0:
                raise UserError(f"{where}.updates is {part.updates}; it must be at least 0")
            if part.facts > (available := min(stage.keys or keys, keys)):
                raise UserError(f"{where}.facts is {part.facts}; only {available} distinct keys are in use")
            if part.length < (needed := self.room(stage, part)):
                raise UserError(
                    f"{where}.length is {part.length}; it must be at least {needed} for its facts and questions"
                )

    def _parts(self) -> Iterator[tuple[str, Stage, Stage | Longer]]:
        """Every kind of row: the field's name, its stage, and the stage again or a length mixed into it."""
        for i, stage in enumerate(self.stages):
            yield f"stages[{i}]", stage, stage
            for j, longer in enumerate(stage.longer):
                yield f"stages[{i}].longer[{j}]", stage, longer

    @property
    def stage(self) -> int:
        return int(self._stage)

    @stage.setter
    def stage(self, number: int) -> None:
        if not 0 <= number < len(self.stages):
            raise UserError(f"stage is {number}; it must be 0 to {len(self.stages) - 1}")
        self._stage.fill_(number)

    def advance(self) -> bool:
        """Go to the next stage. -> False if this is the last."""
        if self.stage + 1 == len(self.stages):
            return False
        self.stage += 1
        return True

    def layout(self, rng: np.random.Generator) -> Layout:
        """-> what the next batch is made of in the current stage."""
        stage, chance = self.stages[self.stage], rng.random()
        chosen: Stage | Longer = stage
        for longer in stage.longer:
            if 0 <= chance < longer.share:
                chosen = longer
            chance -= longer.share
        rows = max(1, self.batch_tokens // chosen.length)
        counts = (chosen.length, chosen.facts, chosen.questions)
        forms = stage.forms if chosen.forms is None else chosen.forms
        return Layout(rows, stage.keys, *counts, stage.gap, chosen.updates, forms)

    @property
    def settings(self) -> dict[str, Any]:
        """What a number of drawn batches hangs on; stages may change on the way."""
        return {"seed": self.seed}

    def __len__(self) -> int:
        return ENDLESS if self.batches is None else self.batches

    def __iter__(self) -> Iterator[Batch]:
        if self.batches is not None and not self._resumed:
            self._draws = 0  # a pass that was given up early does not shift the next one
        self._resumed = False
        worker = get_worker_info()
        index, _ = reader(self.shard)
        mine = None if self.batches is None else self.batches // (worker.num_workers if worker else 1)
        while mine is None or self._draws < mine:
            rng = np.random.default_rng([self.seed, self.part == "validation", index, self._draws])
            batch = self.draw(rng, self.layout(rng))
            self._draws += 1
            yield batch
        self._draws = 0

    def state_dict(self) -> dict[str, Any]:
        return {"draws": self._draws, "stage": self.stage, "settings": self.settings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        refuse_changed(state.get("settings", {}), self.settings)
        self._draws, self.stage, self._resumed = state["draws"], state["stage"], True

    def take_over(self, positions: Sequence[dict[str, Any]]) -> None:
        """Go on where several readers have stopped, whatever their number: with batches that none of them has drawn."""
        refuse_changed(positions[0].get("settings", {}), self.settings)
        self._draws, self.stage = (max(position[name] for position in positions) for name in ("draws", "stage"))


def supervise(tokens: Tensor, groups: Tensor, text_weight: float, text: Tensor | None = None) -> Batch:
    """Targets and weights of rows whose answers are known.

    Args:
        tokens: Int[B, T]
        groups: Int[B, T] number of the answer that *this token* belongs to; -1: text; -2: cannot be predicted, no loss
        text_weight: weight of all text targets together, relative to all answer targets together
        text: Bool[B, T], the text tokens that are targets; None: all of them
    """
    targets = torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], NO_LOSS)], 1)
    following = torch.cat([groups[:, 1:], torch.full_like(groups[:, :1], -2)], 1)
    answers, plain = following >= 0, following == -1
    if text is not None:
        plain = plain & text
    if text_weight == 0:
        plain = torch.zeros_like(plain)
    targets = targets.masked_fill(~(answers | plain), NO_LOSS)
    per_token = text_weight * answers.sum() / plain.sum().clamp(min=1)
    weights = torch.where(answers, 1.0, torch.where(plain, per_token, 0.0))
    return Batch(tokens, targets, weights=weights, answers=answers, groups=following.clamp(min=-1))


class Recall(Curriculum):
    """Pairs of tokens, noise, then keys that ask for their values: `k1 v1 k2 v2 ... noise ... k2 v2 k1 v1`.

    The tokens 0..keys-1 are keys, the next `values` are values, the last `noise` fill the gap. The pairs stand
    together, or `scattered` in the noise before the gap.

    Args:
        keys: number of key tokens
        values: number of value tokens
        noise: number of noise tokens
        scattered: pairs stand apart
        held_out: share of all (key, value) pairs that only validation uses, 0 to 1
        options: see `Curriculum`

    Example:
        >>> task = Recall([Stage(keys=4, length=16, facts=2, questions=2, gap=8)], keys=8, values=8, noise=4)
        >>> batch = next(iter(task))
        >>> batch.tokens.shape, int(batch.answers.sum(1)[0])
        (torch.Size([256, 16]), 2)
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        keys: int = 64,
        values: int = 64,
        noise: int = 16,
        scattered: bool = False,
        held_out: float = 0.25,
        **options: Any,
    ) -> None:
        super().__init__(stages, **options)
        for name, count in (("keys", keys), ("values", values), ("noise", noise)):
            if count < 1:
                raise UserError(f"{name} is {count}; it must be at least 1")
        if not 0 < held_out < 1:
            raise UserError(f"held_out is {held_out}; it must be above 0 and below 1")
        self.keys, self.values, self.noise = keys, values, noise
        self.scattered, self.held_out = scattered, held_out
        self.vocab_size = keys + values + noise
        if where := next((where for where, _, part in self._parts() if part.updates), None):
            raise UserError(f"{where}.updates is set; RecallData tells every key once, NeedleData can tell it again")
        self._check_stages(self.keys)

    def room(self, stage: Stage, part: Stage | Longer) -> int:
        return 2 * (part.facts + part.questions) + stage.gap

    def draw(self, rng: np.random.Generator, layout: Layout) -> Batch:
        rows, facts, questions = layout.rows, layout.facts, layout.questions
        keys = np.argsort(rng.random((rows, min(layout.keys or self.keys, self.keys))), 1)[:, :facts]
        values = self._values(rng, keys)
        asked = np.argsort(rng.random((rows, max(facts, questions))), 1)[:, :questions] % facts
        tokens = rng.integers(self.keys + self.values, self.vocab_size, (rows, layout.length))
        groups = np.full((rows, layout.length), -2)  # noise, keys and the values of facts cannot be predicted
        spare = layout.length - 2 * (facts + questions) - layout.gap
        shift = rng.integers(0, spare + 1, (rows, facts if self.scattered else 1))
        places = np.sort(shift, 1) + 2 * np.arange(facts)
        row = np.arange(rows)[:, None]
        tokens[row, places], tokens[row, places + 1] = keys, values + self.keys
        ends = np.arange(layout.length - 2 * questions, layout.length, 2)
        tokens[:, ends] = np.take_along_axis(keys, asked, 1)
        tokens[:, ends + 1] = np.take_along_axis(values, asked, 1) + self.keys
        groups[:, ends + 1] = np.arange(questions)
        return supervise(torch.from_numpy(tokens), torch.from_numpy(groups), 0.0)

    def is_held_out(self, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Whether pairs (elementwise) belong to validation."""
        mixed = (keys.astype(np.uint64) * np.uint64(self.values) + values.astype(np.uint64)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        return (mixed >> np.uint64(40)) < self.held_out * 2**24

    def _values(self, rng: np.random.Generator, keys: np.ndarray) -> np.ndarray:
        values = rng.integers(0, self.values, keys.shape)
        for _ in range(1000):
            wrong = self.is_held_out(keys, values) != (self.part == "validation")
            if not wrong.any():
                return values
            values[wrong] = rng.integers(0, self.values, int(wrong.sum()))
        raise UserError(
            f"held_out is {self.held_out}, which leaves a key without a value; give more values than {self.values}"
        )

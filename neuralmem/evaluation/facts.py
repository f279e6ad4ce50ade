"""Held-out facts and held-out text as tokens, in the form that a checkpoint was trained on: what scripts are made of.

Special: text is whole lines, since a fact begins a line; keys are those of training, pairs of key and value are those
that training held out. A question is a fact up to its value, and its answer the value alone, without what follows it.
"""

from bisect import bisect_left
from collections.abc import Sequence
from random import Random

import numpy as np
from torch import Tensor

from neuralmem.errors import UserError
from neuralmem.evaluation.contexts import TokenisedHaystack
from neuralmem.evaluation.haystack import open_haystack
from neuralmem.evaluation.recall import TrainingData, tokenise_lines, training_keys
from neuralmem.evaluation.script import Question, Writer
from neuralmem.generation.protocol import TokenizerLike

ENOUGH = 1 << 20  # characters of text; a longer script goes round


class Facts:
    """Draws facts and text.

    Args:
        training: what the checkpoint was trained on
        tokenizer: the checkpoint's
        haystack: where the text comes from, as `open_haystack` takes it; None: as trained on
        seed: of the haystack's order

    Raises:
        UserError: there is no such text, or too few of its words can be keys.
    """

    def __init__(
        self, training: TrainingData, tokenizer: TokenizerLike, haystack: str | None = None, seed: int = 0
    ) -> None:
        self.form, self.encode = training.form, tokenizer.encode
        text = open_haystack(haystack or training.haystack, ENOUGH, seed, training.share)
        self.haystack_id, self.lines = text.id, tokenise_lines(text.passage(ENOUGH), tokenizer)
        self.keys = training_keys(training, tokenizer, 1)
        self._questions: dict[str, tuple[int, ...]] = {}

    @property
    def values(self) -> float:
        """How many values a key may have here: the expected number of its held-out ones."""
        return 10**self.form.digits * self.form.pairs_held_out

    @property
    def vocabulary(self) -> list[int]:
        """The token ids that occur in the text, ascending."""
        return self.lines.ids.unique().tolist()

    def draw_keys(self, count: int, random: Random, option: str = "--facts") -> list[str]:
        """So many different keys.

        Raises:
            UserError: there are not so many.
        """
        if count > len(self.keys):
            raise UserError(f"{option} is {count}; it must be at most {len(self.keys)}, the keys of the training text")
        return random.sample(self.keys, count)

    def draw_value(self, key: str, random: Random, other_than: Sequence[int] = ()) -> int:
        """A value such that the pair is held out."""
        rng = np.random.default_rng(random.getrandbits(64))
        for _ in range(1000):
            if (value := self.form.value(rng, key, held_out=True)) not in other_than:
                return value
        raise UserError(f"form.digits is {self.form.digits}; key {key!r} has too few values to be told anew so often")

    def fact(self, key: str, value: int) -> list[int]:
        """Tokens of a fact."""
        return [*self.encode(self.form.head(key)), *self.encode(self.form.told(value))]

    def question(self, key: str, value: int, told: int | None, **labels: object) -> Question:
        """The question for a key, with one value as its answer; labels: see `Question`."""
        return Question(self._question(key), self._answer(value), told, {"key": key, "answer": value, **labels})

    def rest(self, value: int) -> list[int]:
        """Tokens of a fact behind its value: they follow an answer that stays in the text."""
        return self.encode(self.form.answer(value))[len(self._answer(value)) :]

    def passage(self, random: Random) -> "Passage":
        """Text from a random line on."""
        return Passage(self.lines, random.randrange(len(self.lines)))

    def tell(self, writer: Writer, pairs: Sequence[tuple[str, int]], passage: "Passage", spread: int) -> list[int]:
        """Write facts, each behind at least `spread` tokens of text -> where each ends, in tokens of the script."""
        return [writer.read(*passage.take(spread), self.fact(*pair)) for pair in pairs]

    def _question(self, key: str) -> tuple[int, ...]:
        if key not in self._questions:
            self._questions[key] = tuple(self.encode(self.form.question(key)))
        return self._questions[key]

    def _answer(self, value: int) -> tuple[int, ...]:
        """Tokens of the value; with what follows it where the tokenizer does not part the two."""
        whole, after = self.encode(self.form.answer(value)), self.form.fact.partition("{value}")[2]
        bare = self.encode(self.form.answer(value).removesuffix(after))
        return tuple(bare if whole[: len(bare)] == bare else whole)


class Passage:
    """Text that is taken piece by piece, round and round.

    Args:
        lines: the text
        line: number of the line to begin with

    Example:
        >>> import torch
        >>> text = TokenisedHaystack(torch.arange(10), [0, 4, 10], encode=lambda text: [])
        >>> passage = Passage(text, 0)
        >>> [piece.tolist() for piece in (*passage.take(2), *passage.cut(3), *passage.take(1), *passage.cut(1))]
        [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9], [0]]
    """

    def __init__(self, lines: TokenisedHaystack, line: int) -> None:
        self.lines, self.at = lines, lines.starts[line]

    def take(self, least: int) -> list[Tensor]:
        """The next tokens up to the end of a line, so many at least; none for 0."""
        rounds, inside = divmod(self.at + least, len(self.lines.ids))
        end = rounds * len(self.lines.ids) + self.lines.starts[bisect_left(self.lines.starts, inside)]
        return self.cut(end - self.at) if least else []

    def cut(self, count: int) -> list[Tensor]:
        """The next tokens, so many."""
        pieces = []
        while count:
            pieces.append(self.lines.ids[self.at : self.at + count])
            count -= len(pieces[-1])
            self.at = (self.at + len(pieces[-1])) % len(self.lines.ids)
        return pieces

"""Scripts: what is read to a model, in which order, and what it is asked in between.

Special: a question is asked of a copy of the state, so that asking leaves no trace, unless it is to stay in the text.
It names the answer whose likelihood is wanted; a greedy answer is that one exactly where each of its tokens is the
likeliest after those before it. So "does it say the old value" is the same question with another answer, and nothing
has to be generated.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from neuralmem.evaluation.rope import Rope


@dataclass(frozen=True)
class Question:
    """One question with one answer.

    Args:
        tokens: of the question, at least one
        answer: tokens of the answer, at least one
        told: tokens of the script up to the end of what is asked for; None: it was not told
        labels: what results say about it, JSON values
    """

    tokens: tuple[int, ...]
    answer: tuple[int, ...]
    told: int | None = None
    labels: dict[str, Any] = field(default_factory=dict)

    def distance(self, total: int) -> int | None:
        """Tokens from the last of what was told to its own last, asked after so many; None: it was not told."""
        return None if self.told is None else total + len(self.tokens) - self.told

    def seen(self, total: int, first: int, reach: int) -> bool:
        """As `Sample.beyond`: not when all of it is farther back than the reach, or in a session that ended at `first`.

        Example:
            >>> question = Question((5,), (6,), told=3)
            >>> question.distance(4), question.seen(4, 0, reach=2), question.seen(4, 3, reach=2)
            (2, True, False)
        """
        distance = self.distance(total)
        return self.told is not None and distance is not None and distance <= reach and self.told > first


@dataclass(frozen=True)
class Read:
    """Text that is read."""

    text: Rope


@dataclass(frozen=True)
class Ask:
    """Questions, each asked of a copy of the state, or, with `keep`, one that stays in the text with its answer."""

    questions: tuple[Question, ...]
    keep: bool = False


@dataclass(frozen=True)
class Drop:
    """A session ends: of all that was read only what the memory learned is carried on."""


Step = Read | Ask | Drop


@dataclass(frozen=True)
class Script:
    """What one row of a batch goes through.

    Args:
        steps: in order; scripts that run side by side have the same kinds of steps
        number: of the script among those of its settings
    """

    steps: tuple[Step, ...]
    number: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that are read; those of questions that leave no trace are not counted."""
        read = sum(len(step.text) for step in self.steps if isinstance(step, Read))
        kept = (q for step in self.steps if isinstance(step, Ask) and step.keep for q in step.questions)
        return read + sum(len(question.tokens) + len(question.answer) for question in kept)

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that a model goes through."""
        digest = hashlib.sha256()
        for step in self.steps:
            digest.update(type(step).__name__.encode())
            if isinstance(step, Read):
                digest.update(step.text.sha256().encode())
            elif isinstance(step, Ask):
                digest.update(repr((step.keep, [(q.tokens, q.answer) for q in step.questions])).encode())
        return digest.hexdigest()


class Writer:
    """Puts a script together and knows how many tokens it has.

    Example:
        >>> writer = Writer()
        >>> writer.read([5, 6, 7])
        3
        >>> writer.ask(Question((5,), (6,), told=3))
        >>> script = writer.script()
        >>> script.tokens, [type(step).__name__ for step in script.steps]
        (3, ['Read', 'Ask'])
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.pieces: list[Tensor | list[int]] = []
        self.tokens = 0

    def read(self, *pieces: Tensor | Sequence[int]) -> int:
        """Append text; returns the tokens so far."""
        for piece in pieces:
            self.pieces.append(piece if isinstance(piece, Tensor) else list(piece))
            self.tokens += len(piece)
        return self.tokens

    def ask(self, *questions: Question) -> None:
        """Ask, leaving no trace."""
        self._step(Ask(questions))

    def ask_and_keep(self, question: Question) -> int:
        """Ask in the text, which goes on behind the answer; returns the tokens so far."""
        self._step(Ask((question,), keep=True))
        self.tokens += len(question.tokens) + len(question.answer)
        return self.tokens

    def drop(self) -> None:
        """End a session."""
        self._step(Drop())

    def script(self, number: int = 0) -> Script:
        """All of it."""
        self._flush()
        return Script(tuple(self.steps), number)

    def _step(self, step: Step) -> None:
        self._flush()
        self.steps.append(step)

    def _flush(self) -> None:
        if self.pieces:
            self.steps.append(Read(Rope(self.pieces)))
            self.pieces = []

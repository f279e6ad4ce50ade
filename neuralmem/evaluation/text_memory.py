"""Memory in text: what a model may know of the past is what a baseline has kept of it, in front of the question.

Special: a baseline is a memory with a state that is a value, as a layer's is, but of passages of text; `TextReader`
lets it read the haystack, asks it when the question is known, and gives the model a prompt of its passages and the
question. Only a `Reader` knows where the question begins, which is when a baseline has to search; so a baseline is part
of the reader, and not a model: every task that asks through `Reader` can be asked with it, under every control.
"""

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from neuralmem.errors import UserError
from neuralmem.evaluation.bm25 import split_words
from neuralmem.evaluation.passages import Passage, Splitter
from neuralmem.evaluation.reader import MODES, Answer, Reader
from neuralmem.evaluation.rope import Rope
from neuralmem.evaluation.sample import Sample
from neuralmem.generation.protocol import TokenizerLike

_TOKEN, _POSTING, _ENTRY = 4, 8, 12  # bytes of a token; of (passage, count); of a passage's start, length and last read


class Question(NamedTuple):
    """What is asked: its tokens Int[T], and the key or keys ("a, b, and c") that it is about."""

    ids: Tensor
    key: str


@dataclass(frozen=True, eq=False)
class Kept:
    """What is kept of one text.

    Args:
        position: tokens read so far
        passages: in the order of the text
        rest: Int[T] tokens since the last passage's end
    """

    position: int = 0
    passages: tuple[Passage, ...] = ()
    rest: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int32))


@dataclass(frozen=True, eq=False)
class TextState:
    """What is kept of the texts of a batch, as a value.

    Args:
        rows: one per text
        indexed: whether words are kept beside the tokens, for search
    """

    rows: tuple[Kept, ...]
    indexed: bool

    @property
    def position(self) -> Tensor:
        """Int[B]: tokens read so far."""
        return torch.tensor([row.position for row in self.rows])

    @property
    def text_bytes(self) -> int:
        """Bytes of the tokens kept, four each."""
        return _TOKEN * sum(len(row.rest) + sum(len(p.ids) for p in row.passages) for row in self.rows)

    @property
    def index_bytes(self) -> int:
        """Bytes of the index, counted as packed: Python's own objects are larger.

        Every different word of a text once in UTF-8, eight bytes for each passage that it stands in (which, how often),
        and twelve for each passage (where it starts, its length, when it was last read).
        """
        if not self.indexed:
            return 0
        passages = [p.words for row in self.rows for p in row.passages]
        words = (set().union(*(p.words for p in row.passages)) for row in self.rows)
        size = _ENTRY * len(passages) + _POSTING * sum(map(len, passages))
        return size + sum(len(word.encode()) for own in words for word in own)

    @property
    def nbytes(self) -> int:
        """Bytes of tokens and index."""
        return self.text_bytes + self.index_bytes

    def select(self, rows: Sequence[int]) -> Self:
        """The state of some rows, in the order given; a row may be taken more than once."""
        return replace(self, rows=tuple(self.rows[i] for i in rows))


class TextMemory(ABC):
    """A memory of text."""

    indexed = False

    def init_state(self, batch_size: int) -> TextState:
        """The state of a memory that has read nothing."""
        return TextState((Kept(),) * batch_size, self.indexed)

    def write(self, texts: Sequence[Tensor], state: TextState) -> TextState:
        """Read the next tokens Int[T_i] of every text."""
        rows = (self.write_row(kept, ids) for kept, ids in zip(state.rows, texts, strict=True))
        return replace(state, rows=tuple(rows))

    def read(
        self, questions: Sequence[Question], rooms: Sequence[int], state: TextState
    ) -> tuple[list[list[Tensor]], TextState]:
        """For each text what is kept of it for its question, in the order of the text, and the state afterwards.

        Args:
            questions: one per text
            rooms: tokens that may be given for each
            state: of the memory
        """
        found = [self.read_row(*row) for row in zip(state.rows, questions, rooms, strict=True)]
        return [texts for texts, _ in found], replace(state, rows=tuple(kept for _, kept in found))

    @abstractmethod
    def write_row(self, kept: Kept, ids: Tensor) -> Kept:
        """As `write`, for one text."""

    @abstractmethod
    def read_row(self, kept: Kept, question: Question, room: int) -> tuple[list[Tensor], Kept]:
        """As `read`, for one text."""


class PassageMemory(TextMemory):
    """A memory of passages: one that is written decides what is kept, and a question which of them are given.

    Args:
        tokenizer: the text's
        splitter: cuts the text into passages; those without a word are not kept
    """

    def __init__(self, tokenizer: TokenizerLike, splitter: Splitter) -> None:
        self.tokenizer, self.splitter = tokenizer, splitter

    @abstractmethod
    def add(self, passages: list[Passage], new: Passage) -> None:
        """Put a passage that was just read to those kept, in place, and drop what is not kept any longer."""

    @abstractmethod
    def rank(self, passages: Sequence[Passage], question: Question, room: int) -> list[Passage]:
        """Passages that answer the question, the best first."""

    def write_row(self, kept: Kept, ids: Tensor) -> Kept:
        parts, rest = self.splitter.split(torch.cat([kept.rest, ids]))
        passages, position = list(kept.passages), kept.position - len(kept.rest)
        for part in parts:
            new = self._passage(part.clone(), position)  # a view would hold all that was read with it
            position = new.read
            if new.words:
                self.add(passages, new)
        return Kept(kept.position + len(ids), tuple(passages), rest.clone())

    def read_row(self, kept: Kept, question: Question, room: int) -> tuple[list[Tensor], Kept]:
        last = self._passage(kept.rest, kept.position - len(kept.rest))
        chosen: dict[int, Passage] = {}
        for passage in self.rank([*kept.passages, *([last] if last.words else [])], question, room):
            if len(passage.ids) <= room:
                room -= len(passage.ids)
                chosen[passage.start] = passage
        texts = [chosen[start].ids for start in sorted(chosen)]
        marked = (replace(p, read=kept.position) if p.start in chosen else p for p in kept.passages)
        return texts, replace(kept, passages=tuple(marked))

    def _passage(self, ids: Tensor, start: int) -> Passage:
        words = Counter(split_words(self.tokenizer.decode(ids.tolist())))
        return Passage(start, ids, dict(words), start + len(ids))


class TextReader(Reader):
    """Asks a model that knows of the past what a memory of text gives it, and reads nothing else.

    Args:
        reader: holds the model, which reads a short prompt of passages and question from a fresh state
        memory: reads the haystack
        budget: tokens of passages, question and answer together
    """

    def __init__(self, reader: Reader, memory: TextMemory, budget: int) -> None:
        super().__init__(reader.model, reader.tokenizer, reader.stream_chunk, reader.progress, reader.segment)
        self.memory, self.budget = memory, budget
        self._inner = Reader(reader.model, reader.tokenizer, reader.stream_chunk, segment=reader.segment)

    @torch.no_grad()
    def ask(
        self,
        samples: Sequence[Sample],
        ablations: Sequence[str],
        max_new_tokens: int,
        partner: Callable[[], Sample] | None = None,
    ) -> Iterator[tuple[str, list[Answer]]]:
        """As `Reader.ask`. Reading is the memory's; asking begins with its search.

        "shuffled" searches for the question in what was kept of another sample's haystack.
        """
        rooms = [self.room(sample, max_new_tokens) for sample in samples]
        start = time.perf_counter()
        state = self._write(samples)
        reading = (time.perf_counter() - start) / len(samples)
        self.progress(sum(len(s.rope) for s in samples) * len({MODES[name] for name in ablations}))
        own = [name for name in ablations if name != "shuffled"]
        if own:
            yield from self._search(samples, rooms, state, own, max_new_tokens, reading)
        if "shuffled" in ablations:
            other, partners = self._shuffle_texts(samples, state, partner)
            for _, answers in self._search(samples, rooms, other, ["none"], max_new_tokens, reading):
                both = zip(answers, partners, strict=True)
                yield "shuffled", [replace(answer, ablation="shuffled", partner=number) for answer, number in both]

    def _search(
        self,
        samples: Sequence[Sample],
        rooms: Sequence[int],
        state: TextState,
        ablations: Sequence[str],
        max_new_tokens: int,
        reading: float,
    ) -> Iterator[tuple[str, list[Answer]]]:
        """Ask the model with what is found in a state of the memory."""
        start = time.perf_counter()
        questions = [Question(s.rope.slice(s.question, len(s.rope)), s.key) for s in samples]
        found, state = self.memory.read(questions, rooms, state)
        before = reading + (time.perf_counter() - start) / len(samples)
        short = [_with_context(*pair) for pair in zip(samples, found, strict=True)]
        kept = [state.select([row]) for row in range(len(samples))]
        for name, answers in self._inner.ask(short, ablations, max_new_tokens):
            timed = [replace(a, seconds=before + a.seconds, reading=reading) for a in answers]
            both = zip(timed, kept, strict=True)
            yield name, [replace(a, text_bytes=k.text_bytes, index_bytes=k.index_bytes) for a, k in both]

    def _shuffle_texts(
        self, samples: Sequence[Sample], state: TextState, partner: Callable[[], Sample] | None
    ) -> tuple[TextState, list[int]]:
        """For every sample what was kept of another's haystack, that of the row before it, and the other's number."""
        if len(samples) > 1:
            before = [(row - 1) % len(samples) for row in range(len(samples))]
            return state.select(before), [samples[row].number for row in before]
        if partner is None:
            raise ValueError("a batch of one sample has no other haystack: give a partner")
        other = partner()
        return self._write([other]), [other.number]

    def room(self, sample: Sample, max_new_tokens: int) -> int:
        """Tokens left for text beside the question and the longest answer.

        Raises:
            UserError: there are none.
        """
        answer = max(map(len, sample.candidates), default=max_new_tokens)
        needed = len(sample.rope) - sample.question + answer
        if needed >= self.budget:
            raise UserError(
                f"--budget is {self.budget}; it must be more than {needed} tokens, a question of {sample.task.name} "
                "with its answer"
            )
        return self.budget - needed

    def _write(self, samples: Sequence[Sample]) -> TextState:
        """Let the memory read what stands in front of the questions, in pieces."""
        state = self.memory.init_state(len(samples))
        for at in range(0, max(s.question for s in samples), self.stream_chunk):
            texts = [s.rope.slice(at, min(at + self.stream_chunk, s.question)) for s in samples]
            state = self.memory.write(texts, state)
        return state


def _with_context(sample: Sample, texts: list[Tensor]) -> Sample:
    """The sample's question after these texts alone; its spans stay those of the whole prompt."""
    question = sample.rope.slice(sample.question, len(sample.rope))
    return replace(sample, rope=Rope([*texts, question]), question=sum(map(len, texts)))

"""the last passages of the text, as many as fit"""

from collections.abc import Sequence
from itertools import accumulate, takewhile

from neuralmem.evaluation.baseline import Choices
from neuralmem.evaluation.passages import Passage, Splitter
from neuralmem.evaluation.reader import Reader
from neuralmem.evaluation.text_memory import PassageMemory, Question, TextReader
from neuralmem.generation.protocol import TokenizerLike

USES = ("budget", "passage", "unit")


class Recency(PassageMemory):
    """Keeps the last passages, of `capacity` tokens together."""

    def __init__(self, tokenizer: TokenizerLike, splitter: Splitter, capacity: int) -> None:
        super().__init__(tokenizer, splitter)
        self.capacity = capacity

    def add(self, passages: list[Passage], new: Passage) -> None:
        passages.append(new)
        while sum(len(p.ids) for p in passages) > self.capacity:
            passages.pop(0)

    def rank(self, passages: Sequence[Passage], question: Question, room: int) -> list[Passage]:
        last = list(reversed(passages))
        sizes = accumulate(len(p.ids) for p in last)
        return last[: len(list(takewhile(lambda size: size <= room, sizes)))]


def make(reader: Reader, choices: Choices) -> Reader:
    """A reader of the last passages."""
    memory = Recency(reader.tokenizer, choices.splitter(reader), choices.budget)
    return TextReader(reader, memory, choices.budget)

"""passages that were written or found lately stay, the others sink to a second level and are dropped when it is full

Special: two levels. A passage that was written or found within the last `stay` tokens is in the first; any other has
sunk to the second. When the second holds more than `capacity` tokens, the passage that was used least recently is
dropped. What is found while reading: every passage that comes in is a question, and the one passage that answers it
best is found. A passage that is kept already is not written again but moves to where it stood last. The size is bounded
whatever the length: the first level has what was written in the last `stay` tokens, and at most one passage found for
each of these.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import torch

from neuralmem.evaluation.baseline import Choices
from neuralmem.evaluation.baselines.bm25 import rank_by_words
from neuralmem.evaluation.bm25 import split_words
from neuralmem.evaluation.passages import Passage, Splitter
from neuralmem.evaluation.reader import Reader
from neuralmem.evaluation.text_memory import PassageMemory, Question, TextReader
from neuralmem.generation.protocol import TokenizerLike

USES = ("budget", "passage", "unit", "capacity", "stay", "find")


class KeyValue(PassageMemory):
    """Keeps what is used.

    Args:
        tokenizer: the text's
        splitter: cuts the text into passages
        capacity: tokens of the second level, at most
        stay: tokens for which a passage stays in the first level after it was written or found
        find: "bm25": by the words of the question; "key": passages in which the words of a key asked for stand in a
            row, the latest first. With "key" nothing is found while reading, since nothing is asked.
    """

    indexed = True

    def __init__(self, tokenizer: TokenizerLike, splitter: Splitter, capacity: int, stay: int, find: str) -> None:
        super().__init__(tokenizer, splitter)
        self.capacity, self.stay, self.find = capacity, stay, find

    def levels(self, passages: Sequence[Passage], position: int) -> tuple[list[Passage], list[Passage]]:
        """The first and the second level after so many tokens, each in the order of last use."""
        used = sorted(passages, key=lambda p: (p.read, p.start))
        return [p for p in used if position - p.read <= self.stay], [p for p in used if position - p.read > self.stay]

    def add(self, passages: list[Passage], new: Passage) -> None:
        same = next((p for p in passages if p.words == new.words and torch.equal(p.ids, new.ids)), None)
        if same is not None:
            passages.remove(same)
        elif self.find == "bm25" and (found := rank_by_words(passages, list(new.words))):
            passages[passages.index(found[0])] = replace(found[0], read=new.read)
        passages.append(new)
        _, second = self.levels(passages, new.read)
        size = sum(len(p.ids) for p in second)
        for passage in second:
            if size <= self.capacity:
                break
            size -= len(passage.ids)
            passages.remove(passage)

    def rank(self, passages: Sequence[Passage], question: Question, room: int) -> list[Passage]:
        if self.find == "bm25":
            return rank_by_words(passages, split_words(self.tokenizer.decode(question.ids.tolist())))
        keys = [split_words(key) for key in re.split(r", and |, ", question.key)]
        return [p for p in reversed(passages) if any(self._has(p, key) for key in keys)]

    def _has(self, passage: Passage, key: list[str]) -> bool:
        if not key or not all(word in passage.words for word in key):
            return False
        words = split_words(self.tokenizer.decode(passage.ids.tolist()))
        return any(words[i : i + len(key)] == key for i in range(len(words)))


def make(reader: Reader, choices: Choices) -> Reader:
    """A reader of what the memory kept."""
    splitter = choices.splitter(reader)
    memory = KeyValue(reader.tokenizer, splitter, choices.capacity, choices.stay, choices.find)
    return TextReader(reader, memory, choices.budget)

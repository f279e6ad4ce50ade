"""all passages of the text are kept; those that BM25 ranks highest for the question are shown"""

from collections.abc import Sequence

from neuralmem.evaluation.baseline import Choices
from neuralmem.evaluation.bm25 import bm25, split_words
from neuralmem.evaluation.passages import Passage
from neuralmem.evaluation.reader import Reader
from neuralmem.evaluation.text_memory import PassageMemory, Question, TextReader

USES = ("budget", "passage", "unit")


class Search(PassageMemory):
    """Keeps everything; its size grows with the text."""

    indexed = True

    def add(self, passages: list[Passage], new: Passage) -> None:
        passages.append(new)

    def rank(self, passages: Sequence[Passage], question: Question, room: int) -> list[Passage]:
        return rank_by_words(passages, split_words(self.tokenizer.decode(question.ids.tolist())))


def rank_by_words(passages: Sequence[Passage], query: Sequence[str]) -> list[Passage]:
    """Passages that share a word with the question, by their score; of equals the later first."""
    scores = bm25(query, [p.words for p in passages])
    found = [(score, p.start, p) for score, p in zip(scores, passages, strict=True) if score > 0]
    return [p for *_, p in sorted(found, key=lambda one: one[:2], reverse=True)]


def make(reader: Reader, choices: Choices) -> Reader:
    """A reader that searches."""
    return TextReader(reader, Search(reader.tokenizer, choices.splitter(reader)), choices.budget)

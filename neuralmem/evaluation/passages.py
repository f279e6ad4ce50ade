"""Text cut into passages, as it comes: lines, or sentences where a line is long.

Special: where a text is cut does not depend on the pieces in which it arrives, and it is cut between tokens, so a
passage that is put in front of a question is read as it was written, whatever the tokenizer.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralmem.generation.protocol import TokenizerLike

LINE, SENTENCE, SPACE = 3, 2, 1  # how good a place is to cut at; 0: inside a word
UNITS = ("line", "chunk")


@dataclass(frozen=True, eq=False)
class Passage:
    """A piece of text that is kept.

    Args:
        start: tokens of the text in front of it
        ids: Int[T] its tokens
        words: how often it has which word
        read: tokens that had come in when it was written, or found, the last time
    """

    start: int
    ids: Tensor
    words: dict[str, int]
    read: int


class Splitter:
    """Cuts tokens into passages of at most `size` tokens.

    Args:
        tokenizer: the text's
        size: tokens of a passage, at most
        unit: "line": every line is a passage, and a longer one is cut at the end of a sentence, else between words,
            else anywhere; "chunk": as many whole lines as fit are one passage

    Example:
        >>> from neuralmem.tokenizer import ByteTokenizer
        >>> ids = torch.tensor(ByteTokenizer().encode("a b\\nLong one. It is.\\nx"))
        >>> passages, rest = Splitter(ByteTokenizer(), size=12, unit="line").split(ids)
        >>> [bytes(p.tolist()) for p in passages], bytes(rest.tolist())
        ([b'a b\\n', b'Long one.', b' It is.\\n'], b'x')
    """

    def __init__(self, tokenizer: TokenizerLike, size: int, unit: str = "line") -> None:
        self.size, self.unit = size, unit
        texts = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
        self._ends_line = torch.tensor([text.endswith("\n") for text in texts])
        self._ends_sentence = torch.tensor([text.rstrip().rstrip("\"')").endswith((".", "!", "?")) for text in texts])
        self._begins_white = torch.tensor([text[:1].isspace() for text in texts])
        self._ends_white = torch.tensor([text[-1:].isspace() for text in texts])

    def split(self, ids: Tensor) -> tuple[list[Tensor], Tensor]:
        """Int[T] -> passages, and the tokens after the last of them, to be put in front of what comes next."""
        parts = list(self._parts(ids))
        return parts, ids[sum(map(len, parts)) :]

    def _parts(self, ids: Tensor) -> Iterator[Tensor]:
        places = self._places(ids.long())
        start = 0
        while True:
            near = places[start : start + self.size]
            lines = (near == LINE).nonzero() if self.unit == "line" else near[:0]
            if len(lines):
                size = int(lines[0]) + 1
            elif len(ids) - start > self.size:  # with a token beyond, how good the last place is can be known
                size = int((near == near.max()).nonzero()[-1]) + 1
            else:
                return
            yield ids[start : start + size]
            start += size

    def _places(self, ids: Tensor) -> Tensor:
        """Int[T]: how good a place is behind each token."""
        white = self._ends_white[ids]
        white[:-1] |= self._begins_white[ids[1:]]
        sentence = self._ends_sentence[ids] & white
        places = torch.where(sentence, SENTENCE, torch.where(white, SPACE, 0))
        return places.masked_fill(self._ends_line[ids], LINE)

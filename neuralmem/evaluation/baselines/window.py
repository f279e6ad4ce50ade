"""the last tokens of the text, as many as fit"""

import torch
from torch import Tensor

from neuralmem.evaluation.baseline import Choices
from neuralmem.evaluation.reader import Reader
from neuralmem.evaluation.text_memory import Kept, Question, TextMemory, TextReader

USES = ("budget",)


class Window(TextMemory):
    """Keeps the last `size` tokens.

    Example:
        >>> memory = Window(size=4)
        >>> state = memory.write([torch.arange(9)], memory.init_state(1))
        >>> texts, _ = memory.read([Question(torch.arange(2), "")], [3], state)
        >>> texts[0][0].tolist(), state.nbytes
        ([6, 7, 8], 16)
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def write_row(self, kept: Kept, ids: Tensor) -> Kept:
        return Kept(kept.position + len(ids), rest=torch.cat([kept.rest, ids])[-self.size :].clone())

    def read_row(self, kept: Kept, question: Question, room: int) -> tuple[list[Tensor], Kept]:
        return [kept.rest[-room:]], kept


def make(reader: Reader, choices: Choices) -> Reader:
    """A reader of the last tokens."""
    return TextReader(reader, Window(choices.budget), choices.budget)

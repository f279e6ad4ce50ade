"""An oracle with the interface of a model: it finds every needle in the text that it still has, and nothing else.

With memory on that is the whole text, frozen or off it is the last `reach` tokens, and after a reset nothing. So the
score that evaluation must report is known beforehand, which no trained model offers.
"""

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from neuralmem.tokenizer import ByteTokenizer

RULER = re.compile(rb"for ([^\n?]+?) mentioned in the provided text is(?P<said>[^\n]*)$")
RECALL = re.compile(rb"@([A-Za-z]+)=(?P<said>[^@=]*)$")


@dataclass(frozen=True)
class FakeState:
    """All tokens of every row; a value like a real state."""

    texts: tuple[bytes, ...]

    @property
    def position(self) -> Tensor:
        return torch.tensor([len(text) for text in self.texts])

    @property
    def nbytes(self) -> int:
        return 1000 * len(self.texts)

    def select(self, rows: list[int]) -> "FakeState":
        return replace(self, texts=tuple(self.texts[i] for i in rows))


class Oracle:
    """Byte level. `reads` records (rows, tokens, memory) of every call."""

    def __init__(self, reach: int = 200, broken: bool = False) -> None:
        self.reach, self.broken = reach, broken
        self.reads: list[tuple[int, int, str]] = []
        self.tokenizer = ByteTokenizer()

    def init_state(self, batch_size: int) -> FakeState:
        return FakeState((b"",) * batch_size)

    def __call__(self, tokens, state=None, *, mask=None, reset=None, memory="on", select=None):
        state = self.init_state(len(tokens)) if state is None else state
        self.reads.append((*tokens.shape, memory))
        logits = torch.zeros(*tokens.shape, self.tokenizer.vocab_size)
        texts = []
        for row, text in enumerate(state.texts):
            real = tokens[row] if mask is None else tokens[row][mask[row]]
            assert mask is None or bool(mask[row, : len(real)].all()), "rows are left-aligned"
            after = text + bytes(real.tolist())
            # Only the ends of a call can be predictions that somebody looks at; long calls are haystack.
            for i in range(max(0, len(real) - 64), len(real)):
                logits[row, i] = self.predict(after[: len(text) + i + 1], memory)
            texts.append(after)
        return logits if select is None else logits[select], FakeState(tuple(texts))

    def predict(self, text: bytes, memory: str) -> Tensor:
        """The next byte of the answer when the question is there and its needle is still known, else a full stop."""
        known = text if memory == "on" else text[-self.reach - 1 :]
        logits = torch.zeros(self.tokenizer.vocab_size)
        logits[ord(".")] = 4.0
        asked = RULER.search(text[-400:])
        pattern, form = (rb"for %s is: (.+)\.", b" %s.") if asked else (rb"@%s=(\d+)\n", b"%s\n")
        asked = asked or RECALL.search(text[-40:])
        if asked and (found := re.search(pattern % re.escape(asked[1]), known)):
            answer, said = form % found[1], asked["said"]
            if answer.startswith(said) and len(said) < len(answer):
                logits[answer[len(said)]] = 8.0
        return torch.full_like(logits, torch.nan) if self.broken else logits

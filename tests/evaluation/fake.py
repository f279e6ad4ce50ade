"""An oracle with the interface of a model: it finds and counts what is in the text that it still has, and nothing else.

With memory on that is the whole text, frozen or off it is the last `reach` tokens, and after a reset nothing. So the
score that evaluation must report is known beforehand, which no trained model offers.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from neuralmem.tokenizer import ByteTokenizer

RULER = re.compile(rb"for ([^\n?]+?) mentioned in the provided text (?:is|are)(?P<said>[^\n]*)$")
RECALL = re.compile(rb"@([A-Za-z]+)=(?P<said>[^@=]*)$")
VT = re.compile(rb"variables are ass\w+ the value (\d+), they are:(?P<said>[^\n]*)$")
CWE = re.compile(rb"appear most often in the list (are):(?P<said>[^\n]*)$")
FWE = re.compile(rb"frequently appeared words (are):(?P<said>[^\n]*)$")


def needles(asked: bytes, known: bytes) -> bytes:
    """The values of all keys that are asked for."""
    keys = re.split(rb", and |, ", asked)
    found = [value for key in keys for value in re.findall(rb"for %s is: ([^\n]+?)\." % re.escape(key), known)]
    return b" " + b", ".join(found) if found else b""


def recall(asked: bytes, known: bytes) -> bytes:
    """The value of a fact."""
    found = re.search(rb"@%s=(\d+)\n" % re.escape(asked), known)
    return found[1] + b"\n" if found else b""


def variables(asked: bytes, known: bytes) -> bytes:
    """All variables that are assigned something; those of the example have three letters."""
    return b"".join(b" " + name for name in re.findall(rb"VAR ([A-Z]{5}) =", known))


def most(words: list[bytes], count: int) -> list[bytes]:
    """The most frequent."""
    return [word for word, _ in Counter(word for word in words if word != b"...").most_common(count)]


def common(asked: bytes, known: bytes) -> bytes:
    """The ten most frequent entries of the last list."""
    entries = known[: known.rindex(b"\nQuestion")].rsplit(b"often.\n", 1)[-1]
    found = most(re.findall(rb"\d+\. (.+?)(?= \d+\. |$)", entries), 10)
    return b"".join(b" %d. %s" % (i + 1, word) for i, word in enumerate(found))


def coded(asked: bytes, known: bytes) -> bytes:
    """The three most frequent words."""
    words = known[: known.rindex(b"\nQuestion")].rsplit(b"coded words. ", 1)[-1].split(b" ")
    return b"".join(b" " + word for word in most(words, 3))


KNOWN = ((RULER, needles), (VT, variables), (CWE, common), (FWE, coded), (RECALL, recall))


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
        for pattern, answer_to in KNOWN:
            if asked := pattern.search(text[-900:]):
                answer, said = answer_to(asked[1], known), asked["said"]
                if answer.startswith(said) and len(said) < len(answer):
                    logits[answer[len(said)]] = 8.0
                break
        return torch.full_like(logits, torch.nan) if self.broken else logits


@dataclass(frozen=True)
class Place:
    """How many tokens were read."""

    position: Tensor

    @property
    def nbytes(self) -> int:
        return 500 * len(self.position)

    def select(self, rows: list[int]) -> "Place":
        return Place(self.position[rows])


class Learner:
    """Reads the alphabet over and over, and predicts the next letter with a loss that is known in closed form.

    `loss(letter, history)` in nats: some letters are harder than others, capitals easier, and it falls with the
    logarithm of the tokens that it knows: all it has read with memory on, else the one it is at and `reach` before it.
    """

    has_memory = True

    def __init__(self, reach: int = 40, remembers: bool = True) -> None:
        self.reach, self.remembers, self.tokens = reach, remembers, 0
        self.tokenizer = ByteTokenizer()

    def init_state(self, batch_size: int) -> Place:
        return Place(torch.zeros(batch_size, dtype=torch.long))

    def loss(self, letter: int, history: int, memory: str = "on") -> float:
        known = history if memory == "on" and self.remembers else min(history, self.reach + 1)
        return 3.0 + 0.1 * (letter % 7) - 0.8 * (letter < 97) - 0.15 * math.log2(known)

    def __call__(self, tokens, state=None, *, mask=None, reset=None, memory="on", select=None):
        mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        self.tokens += int(mask.sum())
        logits = torch.zeros(*tokens.shape, self.tokenizer.vocab_size)
        for row, column in mask.nonzero().tolist():
            letter = int(tokens[row, column])
            first = 97 if letter >= 97 else 65
            nats = self.loss(letter, int(state.position[row]) + column + 1, memory)
            gap = -math.log(math.expm1(nats) / (self.tokenizer.vocab_size - 1))
            logits[row, column, first + (letter - first + 1) % 26] = gap
        return logits, Place(state.position + mask.sum(1))


class Copier(Oracle):
    """Copies a text of so many bytes after the prompt of repeated words; without memory it says the common word."""

    def __init__(self, prompt: str, size: int, common: str = "apple", reach: int = 20) -> None:
        super().__init__(reach)
        self.prompt, self.size, self.common = prompt.encode(), size, common.encode()

    def predict(self, text: bytes, memory: str) -> Tensor:
        logits = torch.zeros(self.tokenizer.vocab_size)
        end = len(self.prompt) + self.size
        if not text.startswith(self.prompt) or len(text) >= end + self.size:
            logits[self.tokenizer.eos_id] = 8.0
        elif len(text) >= end:
            copied = text[len(self.prompt) : end] if memory == "on" else (self.common + b" ") * self.size
            logits[copied[len(text) - end]] = 8.0
        return logits

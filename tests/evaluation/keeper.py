"""A model that keeps facts in a way that is known beforehand, so that every measure has a right answer.

It reads "@key=123" lines. With memory on it knows what `keeps` leaves of all facts told, and like any model what its
window still shows; frozen or off it knows the window alone. What it knows it says with certainty; of what it does not
know it finds all digits and a full stop equally likely, and says the full stop. With `copies` it also goes on as the
text did after the same four tokens.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from neuralmem.evaluation.facts import Facts
from neuralmem.evaluation.intents import ACTIONS, ASKING, TELLING, THINGS, Intent
from neuralmem.evaluation.listener import Listener
from neuralmem.evaluation.rows import Subject
from neuralmem.evaluation.streams import Measure, Row, Sampling, run
from neuralmem.tokenizer import ByteTokenizer

FACT, ASKED = re.compile(rb"@([A-Za-z]+)=(\d{3})(?=\n)"), re.compile(rb"@([A-Za-z]+)=(\d*)$")
LONGEST = 120  # bytes of a fact or a question, at most
REACH = 60
GAP = 70  # beyond it
SUBJECT = Subject(REACH, ByteTokenizer().fingerprint, "c" * 64, None, None, "float32", "cpu")
SMALL = Sampling(samples=4)
Told = tuple[bytes, bytes, int]
"""Key, value, tokens of the text up to its end."""
Keeps = Callable[[Sequence[Told], int], Sequence[Told]]
"""(all facts told, tokens so far) -> those still known; of several with one key, the last is said."""


@dataclass(frozen=True)
class KeeperState:
    """What was read and is still shown, all of it, and how much was read before that."""

    shown: tuple[bytes, ...]
    told: tuple[tuple[Told, ...], ...]
    dropped: tuple[int, ...]

    @property
    def position(self) -> Tensor:
        return torch.tensor([len(a) + b for a, b in zip(self.shown, self.dropped, strict=True)])

    @property
    def nbytes(self) -> int:
        return 1000 * len(self.shown)

    def select(self, rows: Sequence[int]) -> "KeeperState":
        return KeeperState(*(tuple(part[i] for i in rows) for part in (self.shown, self.told, self.dropped)))


class Keeper:
    """Byte level. `reads` counts the tokens of every call."""

    fact, asked = FACT, ASKED

    @staticmethod
    def key(words: bytes) -> bytes:
        """What a fact or a question is about."""
        return words

    def __init__(self, keeps: Keeps = lambda told, now: told, reach: int = REACH, copies: bool = False) -> None:
        self.keeps, self.reach, self.copies = keeps, reach, copies
        self.tokenizer, self.reads = ByteTokenizer(), 0

    def init_state(self, batch_size: int) -> KeeperState:
        return KeeperState((b"",) * batch_size, ((),) * batch_size, (0,) * batch_size)

    def memory_only(self, state: KeeperState) -> KeeperState:
        return replace(state, shown=(b"",) * len(state.shown), dropped=tuple(state.position.tolist()))

    def __call__(self, tokens, state=None, *, mask=None, reset=None, memory="on", select=None):
        state = self.init_state(len(tokens)) if state is None else state
        mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        self.reads += int(mask.sum())
        logits, shown, told = torch.zeros(*tokens.shape, self.tokenizer.vocab_size), [], []
        for row, text in enumerate(state.shown):
            after = text + bytes(tokens[row][mask[row]].tolist())
            before = state.dropped[row]
            found = self.fact.finditer(after, max(0, len(text) - LONGEST))
            new = ((self.key(m[1]), m[2], before + m.end()) for m in found)
            facts = tuple(dict.fromkeys([*state.told[row], *new]))
            for i in [] if select is None else select[row].nonzero()[:, 0].tolist():
                logits[row, i] = self.predict(after[: len(text) + i + 1], facts, before, memory)
            shown.append(after)
            told.append(facts if memory == "on" else ())
        return logits if select is None else logits[select], KeeperState(tuple(shown), tuple(told), state.dropped)

    def predict(self, text: bytes, told: Sequence[Told], before: int, memory: str) -> Tensor:
        logits, window = torch.full((self.tokenizer.vocab_size,), -30.0), text[-self.reach - 1 :]
        asked = self.asked.search(text[-LONGEST:])
        if asked:
            now = before + len(text)
            known = list(self.keeps([t for t in told if t[2] <= now], now)) if memory == "on" else []
            known += [(self.key(m[1]), m[2], 0) for m in self.fact.finditer(window)]
            wanted = self.key(asked[1])
            found = [value for key, value, _ in known if key == wanted and value.startswith(asked[2])]
            if found and len(asked[2]) < len(found[-1]):
                logits[found[-1][len(asked[2])]] = 30.0
            else:
                logits[torch.tensor(list(b".0123456789"))] = 0.0
                logits[ord(".")] = 1e-6
            return logits
        known_text = text if memory == "on" else window
        at = known_text.rfind(text[-4:], 0, len(known_text) - 1) if self.copies else -1
        if at >= 0:
            logits[known_text[at + 4]] = 30.0
            return logits
        return torch.zeros_like(logits)


MEANT = {
    utterance.encode(): intent.name.encode()
    for intent in (Intent(action, thing, 0) for action in range(len(ACTIONS)) for thing in range(len(THINGS)))
    for utterance in intent.utterances([*TELLING, *ASKING])
}


class Speaker(Keeper):
    """The same of lines "utterance -> 123": it knows what every utterance means."""

    fact, asked = re.compile(rb"(?<=\n)([^\n]+) ->( \d{3})(?=\n)"), re.compile(rb"\n([^\n]+) ->( ?\d*)$")

    @staticmethod
    def key(words: bytes) -> bytes:
        return MEANT.get(words, words)


def latest(told: Sequence[Told], count: int) -> Sequence[Told]:
    """Facts of the keys told last."""
    keys = list(dict.fromkeys(key for key, _, _ in reversed(told)))[:count]
    return [fact for fact in told if fact[0] in keys]


def ask(
    measure: Measure, facts: Facts, out: Path, keeper: Keeper, sampling: Sampling = SMALL, subject: Subject = SUBJECT
) -> list[Row]:
    listener, subject = Listener(keeper, keeper.tokenizer, 500), replace(subject, reach=keeper.reach)
    return run(measure, facts, listener, subject, out, sampling)

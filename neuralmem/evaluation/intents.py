"""Intents: what somebody wants, worded in many ways, each with an arbitrary label; classes to be learned from a text.

Special: an example is never asked as it was told. Frames ("could you {} please") are parted into those that tell and
those that ask, so a label is found by what an utterance means and not by its wording; labels are drawn anew for every
text, so nothing is known of them before.
Source: evaluation.md section 4.7, after CLINC150 (arXiv:1909.02027) in Nested Learning (arXiv:2512.24695).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any

from neuralmem.errors import UserError
from neuralmem.evaluation.script import Question

ACTIONS = (
    ("book", "reserve", "arrange"),
    ("cancel", "drop", "call off"),
    ("change", "modify", "alter"),
    ("find", "look for", "locate"),
    ("confirm", "verify", "double check"),
    ("pay for", "settle", "cover the cost of"),
    ("rate", "review", "give stars to"),
    ("share", "send a friend", "pass on"),
    ("repeat", "redo", "do once more"),
    ("delay", "postpone", "put off"),
    ("describe", "explain", "tell me about"),
    ("compare", "weigh up", "rank the offers for"),
    ("insure", "protect", "get cover for"),
    ("print", "get a paper copy of", "put on paper"),
    ("translate", "read out in French", "put into French"),
)
"""Wordings of each."""
THINGS = (
    ("flight", "plane ticket"),
    ("table", "dinner"),
    ("hotel room", "overnight stay"),
    ("rental car", "hired car"),
    ("concert", "show"),
    ("doctor's visit", "medical appointment"),
    ("parcel", "package"),
    ("subscription", "monthly plan"),
    ("bank transfer", "wire"),
    ("train ride", "rail trip"),
)
"""Wordings of each."""
TELLING = (
    "I want to {} my {}",
    "please {} the {}",
    "can you {} that {}",
    "we have to {} our {}",
    "help me {} a {}",
    "it is time to {} this {}",
    "let us {} the other {}",
    "my wife would like to {} her {}",
)
"""Frames of the examples."""
ASKING = ("could you {} the {} for me", "I need to {} one {}", "is there a way to {} my {}", "how do I {} the next {}")
"""Frames of the questions."""
LABELS = range(100, 1000)


@dataclass(frozen=True)
class Intent:
    """A class.

    Args:
        action, thing: numbers of `ACTIONS` and `THINGS`
        label: of `LABELS`
    """

    action: int
    thing: int
    label: int

    @property
    def name(self) -> str:
        """What it is about, as results name it."""
        return f"{ACTIONS[self.action][0]} {THINGS[self.thing][0]}"

    def utterances(self, frames: Sequence[str]) -> list[str]:
        """All of its wordings in these frames.

        Example:
            >>> Intent(0, 1, 123).utterances(["please {} the {}"])[:3]
            ['please book the table', 'please book the dinner', 'please reserve the table']
        """
        return [frame.format(*words) for frame in frames for words in product(ACTIONS[self.action], THINGS[self.thing])]


class Intents:
    """Draws classes, their examples and their questions.

    Args:
        encode: of the checkpoint's tokenizer

    Example:
        >>> from neuralmem.tokenizer import ByteTokenizer
        >>> intents = Intents(ByteTokenizer().encode)
        >>> random = Random(0)
        >>> (one,) = intents.draw(1, random)
        >>> bytes(intents.examples(one, 1, random)[0])
        b'help me postpone a bank transfer -> 876\\n'
    """

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self.encode = encode

    def draw(self, count: int, random: Random, option: str = "--classes") -> list[Intent]:
        """So many classes, each with a label of its own.

        Raises:
            UserError: there are not so many.
        """
        every = list(product(range(len(ACTIONS)), range(len(THINGS))))
        if count > len(every):
            raise UserError(f"{option} is {count}; it must be at most {len(every)}, as many intents as there are")
        return [
            Intent(*pair, label)
            for pair, label in zip(random.sample(every, count), random.sample(LABELS, count), strict=True)
        ]

    def examples(self, intent: Intent, count: int, random: Random) -> list[list[int]]:
        """Tokens of so many examples, all worded differently while there are enough wordings."""
        told = intent.utterances(TELLING)
        drawn = [one for _ in range(-(-count // len(told))) for one in random.sample(told, len(told))]
        return [[*self._asked(one), *self._answer(intent), *self.encode("\n")] for one in drawn[:count]]

    def question(self, intent: Intent, random: Random, told: int | None, **labels: Any) -> Question:
        """A question for its label, worded as no example is; labels: see `Question`."""
        asked = self._asked(random.choice(intent.utterances(ASKING)))
        about = {"key": intent.name, "answer": intent.label, **labels}
        return Question(tuple(asked), tuple(self._answer(intent)), told, about)

    def _asked(self, utterance: str) -> list[int]:
        return self.encode(f"{utterance} ->")

    def _answer(self, intent: Intent) -> list[int]:
        return self.encode(f" {intent.label}")

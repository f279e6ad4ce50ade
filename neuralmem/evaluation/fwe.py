"""Frequent words: the three most frequent of coded words whose numbers fall off as one over the square of their rank.

Special: words are six random letters, so a model cannot know them; the most frequent are dots, to be left out. The
answer is spread over the whole text, so no needle lies beyond reach, and the null model counts the words that a window
sees.
Differences that remain: the order of words is drawn for each prompt (upstream's is the same in all), and a text so
short that the third and fourth word are equally frequent is refused. As upstream, nothing is kept for the answer.
Source: lm-evaluation-harness tasks/ruler/fwe_utils.py, which is RULER's freq_words_extraction.py; evaluation.md section
4.1. No copy of another rule for 2025 was found, so ruler2024 and ruler2025 are the same.
"""

import math
from collections.abc import Sequence
from random import Random
from string import ascii_lowercase

from neuralmem.evaluation.cell import Build, Cell, Draft, Draw, Sizes, by_rule, too_short
from neuralmem.evaluation.counting import DOTS, clear
from neuralmem.evaluation.counting import exact as fill

HEAD = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words. "
)
QUESTION = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
    "appeared words in the above coded text?"
)
PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"
LETTERS = 6
ASKED = 3
ZETA = math.pi**2 / 6  # of 2, the exponent
VOCABULARY = 50  # tokens of a prompt per word of the vocabulary


def counts(size: int, vocabulary: int) -> list[int]:
    """How often each rank stands in a text of nominally so many words.

    Example:
        >>> counts(100, 10)
        [60, 15, 6, 3, 2, 1, 1, 0, 0, 0]
    """
    return [int(size * rank**-2 / ZETA) for rank in range(1, vocabulary + 1)]


def drawing(cell: Cell) -> Draw:
    """What makes a prompt with a text of so many words."""
    vocabulary = cell.length // VOCABULARY
    if vocabulary < ASKED + 2:
        raise too_short(cell, VOCABULARY * (ASKED + 2))

    def draw(size: int, depth: float | None, random: Random) -> Draft:
        names: dict[str, None] = {}
        while len(names) < vocabulary - 1:
            names["".join(random.choices(ascii_lowercase, k=LETTERS))] = None
        ranked = [DOTS, *names]
        words = [word for word, count in zip(ranked, counts(size, vocabulary), strict=True) for _ in range(count)]
        random.shuffle(words)
        return Draft(
            HEAD,
            " ".join(words),
            QUESTION,
            PREFIX,
            key="the most frequent words",
            answers=tuple(ranked[1 : 1 + ASKED]),
            counted=tuple(words),
        )

    return draw


def entries(words: Sequence[str]) -> list[str]:
    """Words with the space before each but the first."""
    return [f"{' ' * (i > 0)}{word}" for i, word in enumerate(words)]


def exact(cell: Cell) -> Build:
    """Prompts of exactly `cell.length` tokens."""
    return fill(cell, drawing(cell), entries, ASKED, cell.length)


def ruler(cell: Cell) -> Build:
    """Prompts by RULER's rules."""
    draw = drawing(cell)  # before anything is divided: it refuses lengths that are shorter than a step
    step = cell.length // 32
    offset = cell.length // LETTERS % step
    sizes = Sizes(step, step, least=max(1, offset), offset=offset, spare=1)  # a text that just fits is one too long
    return clear(cell, by_rule(cell, draw, sizes))

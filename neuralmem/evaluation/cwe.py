"""Common words: the ten words that stand most often in a numbered list.

Special: nothing is hidden; the answer is spread over the whole list, so no needle lies beyond reach, and the null model
counts the words that a window sees.
Differences that remain: a list that needs more than the 8,166 words of `wonderwords` goes on with words that are made
here, of three syllables each (RULER goes on with a file of its own); lists are shuffled anew in every prompt.
Source: lm-evaluation-harness tasks/ruler/cwe_utils.py, whose prompt leaves the example out, and RULER's
common_words_extraction.py of 2024 and 2025 in copies; evaluation.md section 4.1.
"""

from collections.abc import Sequence
from functools import cache
from itertools import islice
from random import Random

from neuralmem.evaluation.cell import Build, Cell, Draft, Draw, Sizes, by_rule
from neuralmem.evaluation.counting import clear
from neuralmem.evaluation.counting import exact as fill

HEAD = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n"
)
QUESTION = "\nQuestion: What are the 10 most common words in the above list?"
PREFIX = " Answer: The top 10 words that appear most often in the list are:"
COMMON = 10
SHORT = 4096  # tokens below which words are repeated less often
SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnpqrstvwxz" for vowel in "aeiou"]
COMBINATIONS = len(SYLLABLES) ** 3
STRIDE = 618_033  # has no factor in common with them, so that all are gone through, neighbours far from each other
MADE = 900_000  # words that can be made: combinations, less more than those that are in `pool`


@cache
def pool() -> list[str]:
    """All words of `wonderwords`, in alphabetical order."""
    from wonderwords import RandomWord

    lists = RandomWord()._categories
    return sorted({word for kind in ("nouns", "adjectives", "verbs") for word in lists[kind]})


def made(count: int) -> list[str]:
    """Words of our own that are not in `pool`, for lists that need more; always the same, in the same order.

    Args:
        count: how many, at most `MADE`

    Example:
        >>> made(3)
        ['bababa', 'qevajo', 'goqare']
    """
    places, known = (i * STRIDE % COMBINATIONS for i in range(COMBINATIONS)), set(pool())
    words = ("".join(SYLLABLES[place // unit % 100] for unit in (10_000, 100, 1)) for place in places)
    return list(islice((word for word in words if word not in known), count))


def number(words: Sequence[str]) -> list[str]:
    """Words as entries of a list.

    Example:
        >>> "".join(number(["ox", "ad hoc"]))
        '1. ox 2. ad hoc'
    """
    return [f"{' ' * (i > 0)}{i + 1}. {word}" for i, word in enumerate(words)]


def draw_list(random: Random, size: int, common: int, other: int) -> tuple[list[str], list[str]]:
    """A shuffled list of `size` different words, ten of them `common` times and the others `other` times; the ten."""
    listed = pool()
    chosen = random.sample(listed if size <= len(listed) else listed + made(size - len(listed)), size)
    words = chosen[:COMMON] * common + chosen[COMMON:] * other
    random.shuffle(words)
    return words, chosen[:COMMON]


def drawing(cell: Cell) -> Draw:
    """What makes a prompt with a list of so many different words."""
    short = cell.length < SHORT

    def draw(size: int, depth: float | None, random: Random) -> Draft:
        shown, solution = draw_list(random, 20, 3, 1) if short else draw_list(random, 40, 10, 3)
        words, answers = draw_list(random, size, 6, 1) if short else draw_list(random, size, 30, 3)
        space = "" if cell.protocol in ("ruler2024", "lm-eval") else " "
        example = HEAD + "".join(number(shown)) + QUESTION + PREFIX + space + "".join(number(solution)) + "\n"
        said = " " + "".join(number(answers))
        alone = cell.protocol == "lm-eval"
        return Draft(
            HEAD if alone else example + HEAD,
            "".join(number(words)),
            QUESTION,
            PREFIX,
            key="the most common words",
            answers=tuple(answers),
            said=example + said if alone else said,
            counted=tuple(words),
        )

    return draw


def exact(cell: Cell) -> Build:
    """Prompts of exactly `cell.length` tokens."""
    return fill(cell, drawing(cell), number, COMMON, len(pool()), len(pool()) + MADE)


def ruler(cell: Cell) -> Build:
    """Prompts by RULER's rules."""
    stride = 1 if cell.protocol == "ruler2025" else 10
    sizes = Sizes(10, stride, least=COMMON, most=len(pool()), further=len(pool()) + MADE)
    return clear(cell, by_rule(cell, drawing(cell), sizes))

"""The needle-in-a-haystack tasks as text: sentences, templates, keys and values.

Special: byte-identical to the published prompts (a test holds their hashes): the needle says "numbers" although the
question says "number", and the prompt ends without a space. Keys are drawn from the same set as RULER's,
adjective-noun pairs of `wonderwords`, without building the list of its six million members.
Source: NVIDIA/RULER c3f5e3b scripts/data/synthetic/niah.py and constants.py; lm-evaluation-harness 4e7e0d4 tasks/ruler.
"""

import uuid
from dataclasses import dataclass
from functools import cache
from random import Random

from neuralmem.errors import UserError, nearest
from neuralmem.evaluation.scoring import AnswerType

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
TEMPLATE = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What are all the special magic {kind} for {query} mentioned in the provided text?"
)
PREFIX = " The special magic {kind} for {query} mentioned in the provided text are"
SINGULAR = (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer"))  # in this order, before filling
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


@dataclass(frozen=True)
class Task:
    """One needle task.

    Args:
        name: as given on the command line
        ruler: the name that RULER and lm-evaluation-harness use, None for a task they do not have
        kind: type of the value
        noise: whether the official haystack is the repeated noise line rather than text
    """

    name: str
    ruler: str | None
    kind: AnswerType
    noise: bool = False


TASKS = {
    task.name: task
    for task in (
        Task("s-niah-pk", "niah_single_1", "numbers", noise=True),
        Task("s-niah-n", "niah_single_2", "numbers"),
        Task("s-niah-w", "niah_single_3", "uuids"),
        Task("s-niah-w-words", None, "words"),
        Task("recall", None, "numbers"),
    )
}


def find_task(name: str) -> Task:
    """The task of that name, or of its RULER name.

    Raises:
        UserError: no such task, with the nearest name.

    Example:
        >>> find_task("niah_single_3").name
        's-niah-w'
    """
    by_ruler = {task.ruler: task for task in TASKS.values() if task.ruler}
    task = TASKS.get(name) or by_ruler.get(name)
    if task is None:
        hint = nearest(name, [*TASKS, *by_ruler])
        raise UserError(f"--tasks holds {name!r}; it must be one of {', '.join(TASKS)}{hint}")
    return task


def needle(kind: AnswerType, key: str, value: str) -> str:
    """The sentence to be found.

    Example:
        >>> needle("numbers", "abiding-zebra", "7405831")
        'One of the special magic numbers for abiding-zebra is: 7405831.'
    """
    return NEEDLE.format(kind=kind, key=key, value=value)


def frame(kind: AnswerType, key: str) -> tuple[str, str]:
    """What stands before the haystack and what stands after it, answer prefix included, for one key with one value.

    Example:
        >>> head, tail = frame("uuids", "abiding-zebra")
        >>> head[:30], tail[-33:]
        ('A special magic uuid is hidden', 'mentioned in the provided text is')
    """
    text = TEMPLATE + PREFIX
    for old, new in SINGULAR:
        text = text.replace(old, new)
    head, tail = text.split("{context}")
    fill = {"kind": kind[:-1], "query": key}
    return head.format(**fill), tail.format(**fill)


def prompt(kind: AnswerType, key: str, context: str) -> str:
    """The whole prompt around a haystack that already holds its needle."""
    head, tail = frame(kind, key)
    return head + context + tail


@cache
def _words() -> tuple[list[str], list[str]]:
    from wonderwords import RandomWord

    lists = RandomWord()._categories
    return sorted(set(lists["adjectives"])), sorted(set(lists["nouns"]))


def random_word(random: Random) -> str:
    """An adjective-noun pair, uniformly from RULER's key set.

    Example:
        >>> random_word(Random(0)).count("-") >= 1
        True
    """
    adjectives, nouns = _words()
    return f"{random.choice(adjectives)}-{random.choice(nouns)}"


def random_value(kind: AnswerType, random: Random) -> str:
    """A value of a type: a seven-digit number, an adjective-noun pair, or a version 4 uuid.

    Example:
        >>> len(random_value("numbers", Random(0))), len(random_value("uuids", Random(0)))
        (7, 36)
    """
    if kind == "numbers":
        return str(random.randint(10**6, 10**7 - 1))
    if kind == "uuids":
        return str(uuid.UUID(int=random.getrandbits(128), version=4))
    return random_word(random)


def continuations(kind: AnswerType, answer: str, random: Random, count: int = 10) -> list[str]:
    """How the prompt goes on with the answer, then with other values of its type, all different: what is ranked."""
    chosen = [answer]
    while len(chosen) < count:
        other = random_value(kind, random)
        if other not in chosen:
            chosen.append(other)
    return [" " + value for value in chosen]

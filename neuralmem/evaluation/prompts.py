"""The tasks by name, and the needle tasks as text: sentences, templates, keys and values.

Special: byte-identical to the published prompts (a test holds their hashes): the needle says "numbers" although the
question says "number", and the prompt ends without a space. Keys are drawn from the same set as RULER's,
adjective-noun pairs of `wonderwords`, without building the list of its six million members.
Source: NVIDIA/RULER c3f5e3b scripts/data/synthetic/niah.py and constants.py; lm-evaluation-harness 4e7e0d4 tasks/ruler.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Literal

from neuralmem.data.noise import NOISE as NOISE
from neuralmem.errors import UserError, nearest
from neuralmem.evaluation.scoring import AnswerType

HaystackKind = Literal["text", "noise", "needles", "words", "coded"]

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
TEMPLATE = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What are all the special magic {kind} for {query} mentioned in the provided text?"
)
PREFIX = " The special magic {kind} for {query} mentioned in the provided text are"
SINGULAR = (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer"))  # in this order, before filling
GENERATED = 128  # tokens that RULER leaves for the answer of a needle task


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        name: as given on the command line
        ruler: the name that RULER and lm-evaluation-harness use, None for a task they do not have
        kind: type of the values
        haystack: "text", the repeated "noise" line, or one that the task makes itself: "needles" of other keys, a list
            of "words", "coded" words
        key_kind: type of the keys
        keys, values, queries: keys in the haystack, values of each, keys that are asked for
        generated: tokens that RULER leaves for the answer
    """

    name: str
    ruler: str | None
    kind: AnswerType
    haystack: HaystackKind = "text"
    key_kind: AnswerType = "words"
    keys: int = 1
    values: int = 1
    queries: int = 1
    generated: int = GENERATED

    @property
    def many(self) -> bool:
        """Whether more than one value is asked for."""
        return self.queries * self.values > 1

    @property
    def single(self) -> bool:
        """Whether the answer is one value, whose likelihood can be asked for."""
        return not self.many and self.kind in ("numbers", "words", "uuids")


TASKS = {
    task.name: task
    for task in (
        Task("s-niah-pk", "niah_single_1", "numbers", "noise"),
        Task("s-niah-n", "niah_single_2", "numbers"),
        Task("s-niah-w", "niah_single_3", "uuids"),
        Task("s-niah-w-words", None, "words"),
        Task("mk-niah-1", "niah_multikey_1", "numbers", keys=4),
        Task("mk-niah-2", "niah_multikey_2", "numbers", "needles"),
        Task("mk-niah-3", "niah_multikey_3", "uuids", "needles", key_kind="uuids"),
        Task("mv-niah", "niah_multivalue", "numbers", values=4),
        Task("mq-niah", "niah_multiquery", "numbers", keys=4, queries=4),
        Task("vt", "ruler_vt", "variables", "noise", generated=30),
        Task("cwe", "ruler_cwe", "listed", "words", generated=120),
        Task("fwe", "ruler_fwe", "coded", "coded", generated=50),
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


def frame(kind: AnswerType, query: str, many: bool = False) -> tuple[str, str, str]:
    """What stands before the haystack, the question after it, and the answer prefix, with which the prompt ends.

    Args:
        kind: type of the values
        query: key or keys, as `join_keys` writes them
        many: whether more than one value is asked for

    Example:
        >>> head, question, prefix = frame("uuids", "abiding-zebra")
        >>> head[:30], question[-32:], prefix[-33:]
        ('A special magic uuid is hidden', ' mentioned in the provided text?', 'mentioned in the provided text is')
        >>> frame("numbers", "a-b, and c-d", many=True)[1][1:43]
        'What are all the special magic numbers for'
    """
    template, prefix = TEMPLATE, PREFIX
    for old, new in () if many else SINGULAR:
        template, prefix = template.replace(old, new), prefix.replace(old, new)
    head, question = template.split("{context}")
    fill = {"kind": kind if many else kind[:-1], "query": query}
    return head.format(**fill), question.format(**fill), prefix.format(**fill)


def join_keys(keys: Sequence[str]) -> str:
    """Keys as the question names them.

    Example:
        >>> join_keys(["a"]), join_keys(["a", "b"]), join_keys(["a", "b", "c"])
        ('a', 'a, and b', 'a, b, and c')
    """
    return ", ".join([*keys[:-1], f"and {keys[-1]}"]) if len(keys) > 1 else keys[0]


def prompt(kind: AnswerType, query: str, context: str, many: bool = False) -> str:
    """The whole prompt around a haystack that already holds its needles."""
    head, question, prefix = frame(kind, query, many)
    return head + context + question + prefix


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


def continuations(
    kind: AnswerType, answer: str, random: Random, others: Sequence[str] = (), count: int = 10
) -> list[str]:
    """How the prompt goes on with the answer, then with other values of its type, all different: what is ranked.

    Args:
        kind: type of the values
        answer: the true one
        random: where further values come from
        others: values of other keys in the haystack, which come first: a model that has kept some value, but not
            whose, does not rank the truth first
        count: of them all
    """
    chosen = list(dict.fromkeys([answer, *others]))[:count]
    while len(chosen) < count:
        other = random_value(kind, random)
        if other not in chosen:
            chosen.append(other)
    return [" " + value for value in chosen]

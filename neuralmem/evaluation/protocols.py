"""The needle tasks as prompts: by RULER's rules, or filled to the very token.

Special: one form for all of them, K keys with V values each in text, noise or needles of other keys, Q keys asked for.
A depth that is asked for is that of the first needle that counts; the others that count stand anywhere behind it,
needles of other keys anywhere.
Differences that remain: keys in one prompt are different, upstream may draw one twice; the order of needles is drawn
for each prompt, upstream's is the same in all.
Source: NVIDIA/RULER 4f6507e (2024) and c3f5e3b (2025) niah.py; lm-evaluation-harness 4e7e0d4 prepare_niah.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

from neuralmem.errors import UserError
from neuralmem.evaluation.cell import Build, Cell, Draft, Sizes, by_rule, too_short
from neuralmem.evaluation.contexts import Insert, TokenisedHaystack
from neuralmem.evaluation.haystack import Haystack, split_sentences
from neuralmem.evaluation.prompts import (
    NOISE,
    Task,
    continuations,
    frame,
    join_keys,
    needle,
    random_value,
)
from neuralmem.evaluation.rope import Rope
from neuralmem.evaluation.sample import Sample

GRID = [round(100 * i / 39) for i in range(40)]  # RULER's depths in text, percent
NEEDLE_TOKENS = 10  # a needle of words and numbers has more in any tokenizer


@dataclass(frozen=True)
class Needles:
    """The needles of one prompt, in the order in which they stand.

    Args:
        asked: what they ask for, with the values in the order of the question
        texts: the sentences
        wanted: whether a sentence is one that counts
        others: values of keys that are not asked for
    """

    asked: str
    answers: tuple[str, ...]
    texts: tuple[str, ...]
    wanted: tuple[bool, ...]
    others: tuple[str, ...]

    @classmethod
    def draw(cls, task: Task, random: Random) -> "Needles":
        """Keys, values and their order."""
        pairs: dict[str, list[str]] = {}
        while len(pairs) < task.keys:
            key = random_value(task.key_kind, random)
            pairs[key] = [random_value(task.kind, random) for _ in range(task.values)]
        keys = random.sample(list(pairs), task.queries) if task.keys > 1 else list(pairs)
        all_of_them = [(needle(task.kind, key, v), key in keys, v) for key, values in pairs.items() for v in values]
        if len(all_of_them) > 1:
            random.shuffle(all_of_them)
        return cls(
            asked=join_keys(keys),
            answers=tuple(value for key in keys for value in pairs[key]),
            texts=tuple(text for text, _, _ in all_of_them),
            wanted=tuple(wanted for _, wanted, _ in all_of_them),
            others=tuple(value for _, wanted, value in all_of_them if not wanted),
        )

    def depths(self, depth: float, random: Random) -> list[float]:
        """A depth for every needle: `depth` for the first that counts, the others that count behind it, in order."""
        behind = sorted(depth + (1 - depth) * random.random() for _ in range(sum(self.wanted) - 1))
        counted = iter([depth, *behind])
        return [next(counted) if wanted else random.random() for wanted in self.wanted]


def exact(cell: Cell, haystack: TokenisedHaystack | None) -> Build:
    """Prompts of exactly `cell.length` tokens, the first needle that counts at the depth asked for.

    Args:
        cell: of what
        haystack: the text, tokenised; None: needles of other keys, made for each prompt

    Where no depth is given it is uniform, as are those of further needles.
    """
    task = cell.task

    def build(number: int, depth: float | None, random: Random) -> Sample:
        needles = Needles.draw(task, random)
        head, question, prefix = frame(task.kind, needles.asked, task.many)
        front, back = cell.encode(head), cell.encode(question + prefix)
        if depth is None:
            places = [random.random() for _ in needles.texts]
        else:
            places = needles.depths(depth, random)
        first = 0 if haystack is None else random.randrange(len(haystack))
        room = cell.length - len(front) - len(back)
        text, others = haystack, needles.others
        if text is None:
            made = _other_needles(task, max(2, room // NEEDLE_TOKENS), needles.asked, random)
            text = TokenisedHaystack.of_units([unit for unit, _ in made], "\n", cell.encode, max(room, 1))
            others = tuple(value for _, value in made[:20])
        try:
            context = text.fill(room, [Insert(*pair) for pair in zip(places, needles.texts, strict=True)], first)
        except UserError:
            least = len(front) + len(back) + sum(len(cell.encode(sentence)) for sentence in needles.texts)
            raise too_short(cell, least) from None
        rope = Rope([front, *context.pieces, back])
        spans = [
            (len(front) + a, len(front) + b)
            for (a, b), wanted in zip(context.spans, needles.wanted, strict=True)
            if wanted
        ]
        texts = [] if task.many else continuations(task.kind, needles.answers[0], random, others)
        inside = (len(front), len(rope) - len(back))
        return cell.sample(number, rope, inside, spans, needles.asked, needles.answers, texts)

    return build


def ruler(cell: Cell) -> Build:
    """Prompts by RULER's rules: the haystack grows by words (text), lines (noise) or needles while all fits.

    Without a depth, needles stand where RULER puts them: before uniformly random lines, or in text at some of 40
    depths.
    """
    task, in_lines = cell.task, not cell.haystack.text
    name, split = sentence_splitter()
    if not in_lines:
        cell = replace(cell, splitter=name)
    step = (5 if cell.length < 4096 else 25) if in_lines else 500
    sizes = Sizes(
        step,
        stride=1 if cell.protocol == "ruler2025" else step,
        least=task.keys * task.values if in_lines else 1,
        most=None if in_lines or cell.protocol == "ruler2025" else len(cell.haystack.words),
    )

    def draw(size: int, depth: float | None, random: Random) -> Draft:
        needles = Needles.draw(task, random)
        others = needles.others
        if task.haystack == "needles":
            made = _other_needles(task, size, needles.asked, random)
            units, others = [unit for unit, _ in made], tuple(value for _, value in made[:20])
        else:
            units = [NOISE] * size if in_lines else _sentences(cell.haystack, size, split)
        count = len(needles.texts)
        if depth is not None:
            chosen = [min(len(units), int(len(units) * place)) for place in needles.depths(depth, random)]
            order = sorted(range(count), key=lambda i: chosen[i])
        else:
            order = list(range(count))
            places = random.sample(range(size), count) if in_lines else random.sample(GRID, count)
            chosen = sorted(places if in_lines else (int(len(units) * (grid / 100)) for grid in places))
        inserted = [(chosen[i], needles.texts[i], needles.wanted[i]) for i in order]
        context, spans = _insert(units, inserted, in_lines)
        head, question, prefix = frame(task.kind, needles.asked, task.many)
        said = " ".join(needles.answers)
        return Draft(head, context, question, prefix, needles.asked, needles.answers, spans, others, said)

    def rank(draft: Draft, random: Random) -> list[str]:
        return [] if task.many else continuations(task.kind, draft.answers[0], random, draft.others)

    return by_rule(cell, draw, sizes, rank, prefix_counts=cell.protocol != "lm-eval")


def _insert(
    units: list[str], inserted: list[tuple[int, str, bool]], in_lines: bool
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """A context with sentences before some units, in ascending order, and the characters of those that count.

    Upstream joins parts of a text, so that an empty part leaves a space, but inserts lines into lines.
    """
    parts: list[tuple[str, bool]] = []
    done = 0
    for index, text, wanted in inserted:
        if in_lines:
            parts += ((unit, False) for unit in units[done:index])
        else:
            parts.append((" ".join(units[done:index]), False))
        parts.append((text, wanted))
        done = index
    parts += ((unit, False) for unit in units[done:]) if in_lines else [(" ".join(units[done:]), False)]
    spans, at = [], 0
    for text, wanted in parts:
        if wanted:
            spans.append((at, at + len(text)))
        at += len(text) + 1
    return ("\n" if in_lines else " ").join(text for text, _ in parts), tuple(spans)


def _other_needles(task: Task, count: int, asked: str, random: Random) -> list[tuple[str, str]]:
    """Sentences with their values, none of them of a key that is asked for."""
    made: list[tuple[str, str]] = []
    while len(made) < count:
        key, value = random_value(task.key_kind, random), random_value(task.kind, random)
        if key != asked:
            made.append((needle(task.kind, key, value), value))
    return made


@lru_cache(maxsize=4)
def _sentences(haystack: Haystack, words: int, split: Callable[[str], list[str]]) -> list[str]:
    """Sentences of the first `words` words, from the beginning again where the text runs out."""
    text = haystack.words
    repeated = text * -(-words // len(text)) if words > len(text) else text
    return split(" ".join(repeated[:words]))


def sentence_splitter() -> tuple[str, Callable[[str], list[str]]]:
    """Upstream's splitter where `nltk` and its data are installed, else our own, by name."""
    try:
        from nltk import sent_tokenize  # type: ignore[import-not-found]

        sent_tokenize("One. Two.")
    except (ImportError, LookupError):
        return "own-sentences", split_sentences
    return "nltk-sentences", sent_tokenize

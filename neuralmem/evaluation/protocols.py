"""How long a prompt is: the length rules of RULER (2024 and 2025), of lm-evaluation-harness, and an exact one.

Special: "2K" differs by up to 44% between the published rules, so the rule is a choice and every row stores its
tokens. The two older rules grow the haystack in coarse steps; the newest searches word by word; all three count 128
tokens for the answer. `exact` fills the prompt, question included, to the very token and places needles by depth.
Differences that remain: upstream draws all samples from one global random stream, here each has its own; a prompt that
cannot fit is an error here and an endless loop upstream.
Source: NVIDIA/RULER 4f6507e (2024) and c3f5e3b (2025) niah.py; lm-evaluation-harness 4e7e0d4 prepare_niah.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from neuralmem.errors import UserError
from neuralmem.evaluation.contexts import Encode, Insert, TokenisedHaystack
from neuralmem.evaluation.haystack import Haystack, split_sentences
from neuralmem.evaluation.prompts import NOISE, Task, continuations, frame, needle, random_value, random_word
from neuralmem.evaluation.rope import Rope
from neuralmem.evaluation.sample import Sample

PROTOCOLS = ("exact", "ruler2024", "ruler2025", "lm-eval")
GENERATED = 128  # tokens that the RULER rules leave for the answer
GRID = [round(100 * i / 39) for i in range(40)]  # RULER's depths in text, percent

Build = Callable[
    [int, "float | None", Random], Sample
]  # number, depth in 0..1 or None for the rule's own, random -> sample


@dataclass(frozen=True)
class Cell:
    """What the samples of one table row share."""

    task: Task
    protocol: str
    length: int
    haystack: Haystack
    seed: int
    encode: Encode

    @property
    def haystack_id(self) -> str:
        """The haystack's id, and for RULER's rules in text the splitter that made its sentences."""
        plain = self.protocol == "exact" or self.haystack.is_noise
        return self.haystack.id if plain else f"{self.haystack.id}:{sentence_splitter()[0]}"

    def random(self, purpose: object) -> Random:
        """A random stream of this cell that hangs on nothing else, so that samples can be made in any order."""
        return Random(f"{self.seed}/{self.task.name}/{self.protocol}/{self.haystack.id}/{self.length}/{purpose}")

    def sample(
        self, number: int, rope: Rope, spans: dict[str, tuple[int, int]], key: str, answer: str, texts: list[str]
    ) -> Sample:
        """Put a sample together; `texts` are the continuations to be ranked, the true one first."""
        return Sample(
            self.task,
            self.protocol,
            self.length,
            number,
            self.seed,
            self.haystack_id,
            rope,
            context=spans["context"],
            needle=spans["needle"],
            question=spans["context"][1],
            key=key,
            answer=answer,
            candidates=tuple(tuple(self.encode(text)) for text in texts),
        )


def exact(cell: Cell, haystack: TokenisedHaystack) -> Build:
    """Prompts of exactly `cell.length` tokens, the needle at the depth asked for (uniform where it is None)."""

    def build(number: int, depth: float | None, random: Random) -> Sample:
        kind = cell.task.kind
        key, value = random_word(random), random_value(kind, random)
        head, tail = (cell.encode(text) for text in frame(kind, key))
        insert = Insert(random.random() if depth is None else depth, needle(kind, key, value))
        first = random.randrange(len(haystack))
        try:
            context = haystack.fill(cell.length - len(head) - len(tail), [insert], first)
        except UserError:
            least = len(head) + len(tail) + len(cell.encode(insert.text))
            raise too_short(cell, least) from None
        rope = Rope([head, *context.pieces, tail])
        a, b = context.spans[0]
        spans = {"context": (len(head), len(rope) - len(tail)), "needle": (len(head) + a, len(head) + b)}
        return cell.sample(number, rope, spans, key, value, continuations(kind, value, random))

    return build


def ruler(cell: Cell) -> Build:
    """Prompts by RULER's rules: the haystack grows by words (text) or lines (noise) while prompt and answer fit.

    Without a depth, needles stand where RULER puts them: before a uniformly random line of noise, or in text at one
    of 40 depths.
    """
    noise = cell.haystack.is_noise
    step = (5 if cell.length < 4096 else 25) if noise else 500
    limit = None if noise or cell.protocol == "ruler2025" else len(cell.haystack.words)
    size = _largest(cell, step, limit)

    def build(number: int, depth: float | None, random: Random) -> Sample:
        used = max(1, size)
        while True:
            text = _Text.draw(cell, used, depth, random)
            counted = text.whole if cell.protocol != "lm-eval" else text.without_prefix
            tokens = len(cell.encode(counted)) + GENERATED
            if tokens <= cell.length:
                return text.sample(number, random)
            if used == 1:
                raise too_short(cell, tokens)
            used = max(1, used - step)

    return build


def too_short(cell: Cell, least: int) -> UserError:
    """The error for a length that cannot hold the needle and its question."""
    return UserError(
        f"--lengths holds {cell.length}; it must be at least about {least} tokens, the needle with its question in "
        f"{cell.task.name} with protocol {cell.protocol} and this tokenizer"
    )


@dataclass(frozen=True)
class _Text:
    """A prompt as text, with the parts whose token positions are wanted."""

    cell: Cell
    key: str
    value: str
    head: str
    context: str
    tail: str
    at: int  # characters of the context before the needle

    @classmethod
    def draw(cls, cell: Cell, size: int, depth: float | None, random: Random) -> "_Text":
        kind = cell.task.kind
        key, value = random_word(random), random_value(kind, random)
        units, joint = ([NOISE] * size, "\n") if cell.haystack.is_noise else (_sentences(cell.haystack, size), " ")
        if depth is not None:
            index = min(len(units), int(len(units) * depth))
        elif cell.haystack.is_noise:
            index = random.randrange(size)
        else:
            index = int(len(units) * random.choice(GRID) / 100)
        # Upstream joins three parts in text, so that an empty one leaves a space, but inserts a line in noise.
        bare = cell.haystack.is_noise
        before = "" if bare and not index else joint.join(units[:index]) + joint
        after = "" if bare and index == len(units) else joint + joint.join(units[index:])
        head, tail = frame(kind, key)
        return cls(cell, key, value, head, before + needle(kind, key, value) + after, tail, len(before))

    @property
    def whole(self) -> str:
        return self.head + self.context + self.tail

    @property
    def without_prefix(self) -> str:
        return self.whole[: self.whole.rindex("?") + 1]

    def sample(self, number: int, random: Random) -> Sample:
        encode, kind = self.cell.encode, self.cell.task.kind
        ids = encode(self.whole)
        first = len(encode(self.head))
        until = len(encode(self.head + self.context[: self.at].rstrip()))
        size = len(encode(" " + needle(kind, self.key, self.value)))
        context = (first, len(ids) - len(encode(self.tail)))
        spans = {"context": context, "needle": (until, min(until + size, context[1]))}
        return self.cell.sample(
            number, Rope([ids]), spans, self.key, self.value, continuations(kind, self.value, random)
        )


def _largest(cell: Cell, step: int, limit: int | None) -> int:
    """Words or lines of the haystack. Both rules ask for the largest size that fits, in steps or one by one."""
    random = cell.random("size")
    stride = 1 if cell.protocol == "ruler2025" else step

    def fits(count: int) -> bool:
        text = _Text.draw(cell, min(count * stride, limit or count * stride), None, random)
        counted = {"ruler2025": text.whole, "lm-eval": text.without_prefix + text.value}.get(
            cell.protocol, text.whole + text.value
        )
        return len(cell.encode(counted)) + GENERATED <= cell.length

    low, high = 0, 1
    most = None if limit is None else -(-limit // stride)
    while fits(high) and (most is None or high < most):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return min(low * stride, limit or low * stride) if low else (step if stride == 1 else 0)


@lru_cache(maxsize=4)
def _sentences(haystack: Haystack, words: int) -> list[str]:
    """Sentences of the first `words` words, from the beginning again where the text runs out."""
    text = haystack.words
    repeated = text * -(-words // len(text)) if words > len(text) else text
    return sentence_splitter()[1](" ".join(repeated[:words]))


def sentence_splitter() -> tuple[str, Callable[[str], list[str]]]:
    """Upstream's splitter where `nltk` and its data are installed, else our own, by name."""
    try:
        from nltk import sent_tokenize  # type: ignore[import-not-found]

        sent_tokenize("One. Two.")
    except (ImportError, LookupError):
        return "own-sentences", split_sentences
    return "nltk-sentences", sent_tokenize

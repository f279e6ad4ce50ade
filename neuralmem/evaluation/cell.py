"""What the samples of one table row share, and how long they are: the length rules of RULER and lm-evaluation-harness.

Special: "2K" differs by up to 44% between the published rules, so the rule is a choice and every row stores its
tokens. The two older rules grow the haystack in coarse steps; the newest searches one by one; all count the tokens that
the answer may have. `exact` fills the prompt, question included, to the very token and places needles by depth.
Differences that remain: upstream draws all samples from one global random stream, here each has its own; a prompt that
cannot fit is an error here and an endless loop, or a prompt that is too long, upstream.
Source: NVIDIA/RULER 4f6507e (2024) and c3f5e3b (2025) niah.py; lm-evaluation-harness 4e7e0d4 prepare_niah.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from neuralmem.errors import UserError
from neuralmem.evaluation.contexts import Encode
from neuralmem.evaluation.haystack import Haystack
from neuralmem.evaluation.prompts import Task
from neuralmem.evaluation.rope import Rope
from neuralmem.evaluation.sample import Sample

PROTOCOLS = ("exact", "ruler2024", "ruler2025", "lm-eval")

Build = Callable[
    [int, "float | None", Random], Sample
]  # number, depth in 0..1 or None for the rule's own, random -> sample
Span = tuple[int, int]


@dataclass(frozen=True)
class Cell:
    """What the samples of one table row share.

    Args:
        task: the task
        protocol: one of PROTOCOLS
        length: nominal length in tokens
        haystack: the text around the needles
        seed: of the run
        encode: the tokenizer's
        splitter: name of what makes sentences of the text, where a rule needs them
    """

    task: Task
    protocol: str
    length: int
    haystack: Haystack
    seed: int
    encode: Encode
    splitter: str = ""

    @property
    def haystack_id(self) -> str:
        """The haystack's id, and for RULER's rules in text the splitter that made its sentences."""
        return f"{self.haystack.id}:{self.splitter}" if self.splitter and self.haystack.text else self.haystack.id

    def random(self, purpose: object) -> Random:
        """A random stream of this cell that hangs on nothing else, so that samples can be made in any order."""
        return Random(f"{self.seed}/{self.task.name}/{self.protocol}/{self.haystack.stream}/{self.length}/{purpose}")

    def sample(
        self,
        number: int,
        rope: Rope,
        context: Span,
        needles: Sequence[Span],
        key: str,
        answers: Sequence[str],
        texts: Sequence[str] = (),
        counted: Sequence[str] = (),
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
            context=context,
            needles=tuple(sorted(needles)),
            question=context[1],
            key=key,
            answers=tuple(answers),
            candidates=tuple(tuple(self.encode(text)) for text in texts),
            counted=tuple(counted),
        )


@dataclass(frozen=True)
class Draft:
    """A prompt as text, with the parts whose token positions are wanted.

    Args:
        head, context, question, prefix: its parts, in order; with the answer prefix it ends
        key: what is asked for
        answers: its values
        needles: characters of the context, from and to, of every needle asked for; none: the whole context
        others: values of other keys in the context
        said: the answer, as the older rules count it while they look for a size
        counted: the context's words in their order, where words are to be counted
    """

    head: str
    context: str
    question: str
    prefix: str
    key: str
    answers: tuple[str, ...]
    needles: tuple[Span, ...] = ()
    others: tuple[str, ...] = ()
    said: str = ""
    counted: tuple[str, ...] = ()

    @property
    def whole(self) -> str:
        """The prompt."""
        return self.head + self.context + self.question + self.prefix

    def sample(self, cell: Cell, number: int, texts: Sequence[str] = ()) -> Sample:
        """Tokenise it, as one text."""
        encode, whole = cell.encode, self.whole
        ids = encode(whole)
        context = (len(encode(self.head)), len(ids) - len(encode(self.question + self.prefix)))
        needles = []
        for start, stop in self.needles:
            before = self.context[:start].rstrip()
            begin = len(encode(self.head + before))
            needles.append((begin, min(begin + len(encode(self.context[len(before) : stop])), context[1])))
        return cell.sample(
            number, Rope([ids]), context, needles or [context], self.key, self.answers, texts, self.counted
        )


Draw = Callable[[int, "float | None", Random], Draft]  # size of the haystack, depth, random -> draft


@dataclass(frozen=True)
class Sizes:
    """Sizes of a haystack, in the unit of its task (words, lines, needles).

    Args:
        step: what the older rules grow by, and every rule takes back where a sample does not fit
        stride: what this rule grows by
        least: smallest size
        most: largest size, None: there is none
        further: largest size where `most` does not fill the length, of words that the task makes; None: `most`
        offset: sizes are this and a multiple of the stride
        spare: tokens that must be left over while a size is looked for
    """

    step: int
    stride: int
    least: int = 1
    most: int | None = None
    further: int | None = None
    offset: int = 0
    spare: int = 0

    def clip(self, count: int) -> int:
        """The size of so many strides."""
        size = max(self.least, self.offset + count * self.stride)
        return size if self.most is None else min(size, self.most)


def by_rule(
    cell: Cell,
    draw: Draw,
    sizes: Sizes,
    rank: Callable[[Draft, Random], list[str]] = lambda draft, random: [],
    prefix_counts: bool = True,
) -> Build:
    """Prompts by RULER's rules: the haystack grows while prompt and answer fit.

    Args:
        cell: of what
        draw: makes a prompt with a haystack of some size
        sizes: which sizes there are
        rank: continuations of a prompt to be ranked
        prefix_counts: whether the answer prefix is counted (lm-evaluation-harness leaves that of needles out)
    """

    def tokens(draft: Draft, said: str = "") -> int:
        text = draft.whole if prefix_counts else draft.whole.removesuffix(draft.prefix)
        return len(cell.encode(text + said)) + reserve(cell.task)

    def fits(count: int) -> bool:
        draft = draw(sizes.clip(count), None, random)
        return tokens(draft, "" if cell.protocol == "ruler2025" else draft.said) + sizes.spare <= cell.length

    random = cell.random("size")
    size = _largest(fits, sizes)
    if size == sizes.most and sizes.further:
        sizes = replace(sizes, most=sizes.further)
        size = max(size, _largest(fits, sizes))

    def build(number: int, depth: float | None, random: Random) -> Sample:
        used = size
        while True:
            draft = draw(used, depth, random)
            if (needed := tokens(draft)) <= cell.length:
                return draft.sample(cell, number, rank(draft, random))
            if used == sizes.least:
                raise too_short(cell, needed)
            used = max(sizes.least, used - sizes.step)

    return build


def reserve(task: Task) -> int:
    """Tokens that the rules keep free for the answer: as many as are generated, but none for frequent words."""
    return 0 if task.haystack == "coded" else task.generated


def too_short(cell: Cell, least: int) -> UserError:
    """The error for a length that cannot hold the needles and their question."""
    return UserError(
        f"--lengths holds {cell.length}; it must be at least about {least} tokens, what is asked with its question in "
        f"{cell.task.name} with protocol {cell.protocol} and this tokenizer"
    )


def _largest(fits: Callable[[int], bool], sizes: Sizes) -> int:
    """All rules ask for the largest size that fits, in steps or one by one."""
    low, high = 0, 1
    while fits(high):
        if sizes.most is not None and sizes.clip(high) == sizes.most:
            return sizes.most
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    # Where not even the smallest fits, the newest rule begins with a step, and samples give back what is too much.
    return sizes.clip(low) if low or sizes.stride > 1 else max(sizes.least, sizes.step)

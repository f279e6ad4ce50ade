"""Repeated words: copy a word repeated many times, one of whose copies differs from the others.

Special: nothing has to be understood, so what fails as the text grows is the context alone. Similarity alone misleads:
who repeats the common word as often as asked scores nearly 1 without having seen the odd one, so that null model stands
beside it, with the share of answers that have the odd word, and have it in its place.
Source: chroma-core/context-rot 1091346, experiment "repeated words" (evaluation.md section 4.4).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from neuralmem.errors import UserError
from neuralmem.evaluation.bootstrap import Mean, weighted_mean
from neuralmem.evaluation.levenshtein import similarity
from neuralmem.evaluation.prompts import Task
from neuralmem.evaluation.reader import Answer
from neuralmem.evaluation.rope import Rope
from neuralmem.evaluation.rows import Subject, facts_of_line
from neuralmem.evaluation.sample import Sample
from neuralmem.evaluation.stats import Share, wilson

PROMPT = "Simply replicate the following text, output the exact same text: "
COUNTS = (25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10000)
_TASK = Task("repeated-words", None, "words")


def places(count: int) -> list[int]:
    """Where the odd word stands: everywhere below 100 words, else at every hundredth part and at the end.

    Example:
        >>> places(3), places(250)[:3], places(250)[-2:], len(places(10000))
        ([0, 1, 2], [0, 2, 4], [248, 249], 101)
    """
    step = max(1, count // 100)
    return sorted({*range(0, count, step), count - 1})


def some_places(count: int, wanted: int | None) -> list[int]:
    """So many of `places`, spread evenly, both ends among them; None: all.

    Example:
        >>> some_places(50, 3), some_places(50, 1), len(some_places(50, None))
        ([0, 24, 49], [0], 50)
    """
    every = places(count)
    if wanted is None or wanted >= len(every):
        return every
    if wanted == 1:
        return every[:1]
    return [every[i * (len(every) - 1) // (wanted - 1)] for i in range(wanted)]


def text_of(pair: tuple[str, str], count: int, place: int) -> str:
    """The text to be copied.

    Example:
        >>> text_of(("apple", "apples"), 4, 2)
        'apple apple apples apple'
    """
    return " ".join([pair[0]] * place + [pair[1]] + [pair[0]] * (count - place - 1))


def samples(
    pair: tuple[str, str], count: int, wanted: int | None, encode: Callable[[str], list[int]], seed: int
) -> list[Sample]:
    """Prompts of one pair and count. The needle is the odd word; the whole text is the context.

    Args:
        pair: common and odd word
        count: words
        wanted: places of the odd word; None: all of `places`
        encode: text to token ids
        seed: of the run, which only names the rows: nothing here is drawn
    """
    head, key, found = encode(PROMPT), f"{pair[0]}/{pair[1]}", []
    for place in some_places(count, wanted):
        text = text_of(pair, count, place)
        before, upto = (len(encode(text[:n])) for n in _span(pair, place))
        ids = encode(text)
        rope = Rope([head, ids])
        span = (len(head) + before, len(head) + upto)
        context = (len(head), len(rope))
        # The question is the last token: there is none, and a fresh state must have something to go on from.
        found.append(
            Sample(
                _TASK, "exact", count, place, seed, "words", rope, context, (span,), len(rope) - 1, key, (pair[1],), ()
            )
        )
    return found


def _span(pair: tuple[str, str], place: int) -> tuple[int, int]:
    """First character of the odd word and the one after its last."""
    start = place * (len(pair[0]) + 1)
    return start, start + len(pair[1])


def find_pair(text: str) -> tuple[str, str]:
    """A pair as the user writes it, apple/apples.

    Raises:
        UserError: it is none: one word each, and not the same.
    """
    words = text.split("/")
    if len(words) != 2 or not all(w and not any(c.isspace() for c in w) for w in words) or words[0] == words[1]:
        raise UserError(f"--pairs holds {text!r}; it must be two different words, as in apple/apples")
    return words[0], words[1]


def new_tokens(cell: Sequence[Sample]) -> int:
    """Length of the answers of prompts of one count: twice the tokens of the text, as published."""
    return 2 * max(sample.context[1] - sample.context[0] for sample in cell)


def score(sample: Sample, answer: Answer, reach: int) -> dict[str, Any]:
    """Scores of one copy, and what a copy without the odd word would get; see `_judge`."""
    return _judge(sample, answer.text, reach)


def score_again(sample: Sample, row: dict[str, Any], subject: Subject) -> dict[str, Any]:
    """What a row must say by its prompt and its prediction."""
    return facts_of_line(sample, subject) | _judge(sample, row["pred"], subject.reach)


def _judge(sample: Sample, prediction: str, reach: int) -> dict[str, Any]:
    """Scores of what was said.

    Similarity is 1 less the edit distance in characters by the length of the longer text, 0 for an empty answer; white
    space at the ends of the answer is left off. Every word is copied from as far back as the text is long, so that is
    the distance, and beyond reach are texts longer than the reach.
    """
    common, odd = find_pair(sample.key)
    text, said = text_of((common, odd), sample.length, sample.number), prediction.strip()
    words, tokens = said.split(), sample.context[1] - sample.context[0]
    return {
        "words": sample.length,
        "place": sample.number,
        "distance_to_query": tokens,
        "beyond_window": tokens > reach,
        "similarity": similarity(text, said),
        "null_similarity": similarity(text, " ".join([common] * sample.length)),
        "exact": int(said == text),
        "odd_present": int(odd in words),
        "odd_in_place": int(odd in words and words.index(odd) == sample.number),
        "word_delta": len(words) - sample.length,
    }


class Line(NamedTuple):
    """What one control says to one count of words.

    Args:
        words, ablation: which
        tokens: mean length of the texts
        beyond: share of texts longer than attention's reach
        similarity: mean, with an interval over prompts
        null: similarity of the common word repeated as often
        exact, present, in_place: shares of answers that are the text, that have the odd word, that have it in place
        delta: mean of words too many
    """

    words: int
    ablation: str
    tokens: float
    beyond: float
    similarity: Mean
    null: float
    exact: Share
    present: Share
    in_place: Share
    delta: float


def summarise(rows: Sequence[dict[str, Any]], seed: int = 0) -> list[Line]:
    """A line for every count and control, in the order of counts."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["words"], row["ablation"]), []).append(row)

    def mean(own: list[dict[str, Any]], name: str) -> float:
        return sum(row[name] for row in own) / len(own)

    lines = []
    for (words, ablation), own in sorted(groups.items(), key=lambda pair: pair[0][0]):
        exact, present, in_place = (
            wilson(sum(row[name] for row in own), len(own)) for name in ("exact", "odd_present", "odd_in_place")
        )
        similar = weighted_mean([row["similarity"] for row in own], [1] * len(own), seed)
        tokens, beyond, null = (mean(own, name) for name in ("context_tokens", "beyond_window", "null_similarity"))
        delta = mean(own, "word_delta")
        lines.append(Line(words, ablation, tokens, beyond, similar, null, exact, present, in_place, delta))
    return lines

"""What the two tasks of counting words share: lists cut to an exact length, and whether their answer is clear."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from random import Random

from neuralmem.errors import UserError
from neuralmem.evaluation.cell import Build, Cell, Draft, Draw, too_short
from neuralmem.evaluation.rope import Rope
from neuralmem.evaluation.sample import Sample

TRIES = 20  # prompts that are drawn until one's answer is clear after the cut
DOTS = "..."  # no word: the most frequent of the coded ones, to be left out


def is_clear(words: Iterable[str], answers: Sequence[str]) -> bool:
    """Whether every answer is more frequent than everything else.

    Example:
        >>> is_clear(["a", "a", "b", "b", "c"], ["a", "b"]), is_clear(["a", "a", "b", "c"], ["a", "b"])
        (True, False)
    """
    counts = Counter(word for word in words if word != DOTS)
    most = max((count for word, count in counts.items() if word not in answers), default=0)
    return all(counts[answer] > most for answer in answers)


def exact(
    cell: Cell,
    draw: Draw,
    entries: Callable[[Sequence[str]], list[str]],
    least: int,
    most: int,
    further: int | None = None,
) -> Build:
    """Prompts of exactly `cell.length` tokens: a list a little too long, whose end is cut off.

    Args:
        cell: of what
        draw: makes a prompt with a list of some size
        entries: the list's words as they are written, each with what parts it from the one before
        least, most: sizes of lists
        further: largest size where `most` does not fill the length; None: `most`
    """
    last = further or most

    def parts(draft: Draft) -> tuple[list[list[int]], int]:
        pieces = [cell.encode(entry) for entry in entries(draft.counted)]
        around = len(cell.encode(draft.head)) + len(cell.encode(draft.question + draft.prefix))
        return pieces, around + sum(map(len, pieces))

    def enough(size: int, random: Random) -> bool:
        return parts(draw(size, None, random))[1] >= cell.length

    def grown(size: int, wanted: int) -> int:
        # Not past `most` in one go: it is to be seen first whether it is enough.
        return min(wanted, most if size <= most else last)

    random, low, high = cell.random("size"), least, least
    while not enough(high, random):
        if high == last:
            raise too_long(cell, last)
        low, high = high, grown(high + 1, 2 * high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle, random) else (middle, high)
    start = grown(high, high + high // 100)

    def build(number: int, depth: float | None, random: Random) -> Sample:
        size, tries = start, TRIES
        while True:
            draft = draw(size, depth, random)
            pieces, tokens = parts(draft)
            if tokens < cell.length:
                if size == last:
                    raise too_long(cell, last)
                size = grown(size + 1, size + 1 + size // 100)
                continue
            front, back = cell.encode(draft.head), cell.encode(draft.question + draft.prefix)
            room = cell.length - len(front) - len(back)
            kept, whole = cut(pieces, room)
            if room > 0 and is_clear(draft.counted[:whole], draft.answers):
                rope, inside = Rope([front, list(chain.from_iterable(kept)), back]), (len(front), len(front) + room)
                words = draft.counted[:whole]
                return cell.sample(number, rope, inside, [inside], draft.key, draft.answers, (), words)
            tries -= 1
            if not tries:
                raise too_short(cell, 2 * max(cell.length, len(front) + len(back)))

    return build


def cut(pieces: Sequence[list[int]], room: int) -> tuple[list[list[int]], int]:
    """The first `room` tokens of the pieces, and how many pieces are whole.

    Example:
        >>> cut([[1, 2], [3, 4], [5, 6]], 3)
        ([[1, 2], [3]], 1)
    """
    kept: list[list[int]] = []
    for piece in pieces:
        if room <= 0:
            break
        kept.append(piece[:room])
        room -= len(piece)
    return kept, len(kept) - (room < 0)


def clear(cell: Cell, build: Build) -> Build:
    """The same prompts, but one whose answer is not clear is refused. Upstream asks it all the same."""

    def checked(number: int, depth: float | None, random: Random) -> Sample:
        sample = build(number, depth, random)
        if not is_clear(sample.counted, sample.answers):
            raise too_short(cell, 2 * len(sample.rope))
        return sample

    return checked


def too_long(cell: Cell, most: int) -> UserError:
    """The error for a length that the words there are do not fill."""
    return UserError(
        f"--lengths holds {cell.length}; it must be less: {cell.task.name} has {most:,} different words, too few for it"
    )

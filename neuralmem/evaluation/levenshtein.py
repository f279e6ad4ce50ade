"""Edit distance of texts of a hundred thousand characters, in seconds and without a library.

Special: a whole column of the table is one Python integer, so a character costs a few operations on long integers.
Source: Myers 1999 (JACM 46:3), in the form of Hyyro 2003 for the distance between whole strings.
"""


def distance(first: str, second: str) -> int:
    """The least number of characters to insert, delete or replace that turns one text into the other.

    Example:
        >>> distance("kitten", "sitting"), distance("", "abc"), distance("same", "same")
        (3, 3, 0)
    """
    first, second = _without_shared_ends(first, second)
    if len(first) < len(second):
        first, second = second, first
    if not second:
        return len(first)
    size, score = len(first), len(first)
    everywhere = (1 << size) - 1
    places = _places(first)
    up, down = everywhere, 0  # where the table goes up by one from row to row, and where it goes down
    for letter in second:
        equal = places.get(letter, 0)
        diagonal = (((equal & up) + up) ^ up) | equal
        right = down | (everywhere & ~(diagonal | up))
        left = up & diagonal
        score += (right >> (size - 1) & 1) - (left >> (size - 1) & 1)
        right, left = (right << 1 | 1) & everywhere, left << 1 & everywhere
        held = equal | down
        up, down = left | (everywhere & ~(held | right)), right & held
    return score


def similarity(first: str, second: str) -> float:
    """1 less the distance by the length of the longer text; 0 where one text is empty.

    Example:
        >>> similarity("abcd", "abcx"), similarity("abcd", ""), similarity("", "")
        (0.75, 0.0, 0.0)
    """
    if not first or not second:
        return 0.0
    return 1 - distance(first, second) / max(len(first), len(second))


def _places(text: str) -> dict[str, int]:
    """For every character the bits of the places where it stands."""
    size = len(text) // 8 + 1
    bits: dict[str, bytearray] = {}
    for i, letter in enumerate(text):
        bits.setdefault(letter, bytearray(size))[i >> 3] |= 1 << (i & 7)
    return {letter: int.from_bytes(some, "little") for letter, some in bits.items()}


def _without_shared_ends(first: str, second: str) -> tuple[str, str]:
    start, shorter = 0, min(len(first), len(second))
    while start < shorter and first[start] == second[start]:
        start += 1
    end = 0
    while end < shorter - start and first[-1 - end] == second[-1 - end]:
        end += 1
    return first[start : len(first) - end], second[start : len(second) - end]

"""Endless English-like sentences from a small grammar: a haystack that needs no files and has no licence.

Special: seeded, without digits and without hyphens, so that nothing in it can be mistaken for a needle's key or value.
Source: our own (evaluation.md section 5).
"""

from collections.abc import Iterator
from itertools import pairwise
from random import Random

PARTS = {
    "noun": "river garden teacher winter letter village song window mountain boat market farmer lamp road forest dog "
    "tower kitchen stone harbour child painter bridge story field bell horse doctor evening shadow bread table "
    "sailor valley clock orchard poet fence morning coat barrel island meadow candle",
    "adj": "old quiet bright heavy narrow gentle distant green empty warm broken early patient golden small cold "
    "crooked curious hollow steady wooden pale sudden familiar",
    "verb": "follows remembers crosses carries watches finds leaves paints hears repairs forgets visits describes "
    "keeps guards counts opens admires avoids answers",
    "intr": "sleeps waits sings wanders laughs disappears returns listens trembles rests",
    "prep": "behind near under beside beyond above across through",
    "adv": "slowly often quietly rarely again together early gladly",
    "conj": "while because although before when after",
}
WORDS = {part: words.split() for part, words in PARTS.items()}
NP = ("the noun", "the adj noun", "a noun", "the noun prep the noun", "every adj noun")
CLAUSES = ("NP verb NP", "NP verb NP prep the noun", "NP intr adv", "NP intr prep the adj noun", "adv NP verb NP")
SENTENCES = ("CLAUSE", "CLAUSE", "CLAUSE conj CLAUSE", "CLAUSE and CLAUSE", "prep the noun NP intr")


def sentences(seed: int) -> Iterator[str]:
    """Sentences without end, the same for the same seed.

    Example:
        >>> first = next(sentences(0))
        >>> first[0].isupper(), first[-1], any(c.isdigit() for c in first)
        (True, '.', False)
    """
    random = Random(f"grammar/{seed}")
    while True:
        text = _expand(random.choice(SENTENCES), random)
        yield _articles(text[0].upper() + text[1:] + ".")


def _expand(pattern: str, random: Random) -> str:
    out = []
    for word in pattern.split():
        if word in ("CLAUSE", "NP"):
            out.append(_expand(random.choice(CLAUSES if word == "CLAUSE" else NP), random))
        else:
            out.append(random.choice(WORDS[word]) if word in WORDS else word)
    return " ".join(out)


def _articles(text: str) -> str:
    words = text.split(" ")
    for i, (word, following) in enumerate(pairwise(words)):
        if word in ("a", "A") and following[0] in "aeiou":
            words[i] = word + "n"
    return " ".join(words)

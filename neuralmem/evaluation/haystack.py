"""Where the text around the needle comes from: the built-in corpus, a grammar, RULER's noise line, or a user's file.

Special: every haystack has an id with the hash of its text, which every result row carries, because the same model
scores differently in different haystacks; a haystack of which longer prompts need more has one id at all lengths, and
what a prompt is made of hangs on its own length alone. The built-in corpus is used in its held-out part only, which
training never reads.
The essays of the official haystack may not be redistributed: point `file:` to them.
Source: evaluation.md sections 2.1 and 5.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

from neuralmem.errors import UserError, nearest
from neuralmem.evaluation.grammar import sentences as grammar_sentences
from neuralmem.evaluation.prompts import NOISE

NAMES = ("builtin", "stdlib", "grammar", "noise", "file:PATH")
LEAST_OF_FILE = 1 << 20  # characters that are read of a file however short the prompts are
LONGEST_UNIT = 240  # characters; a longer "sentence" (tables, code) is cut at a space, so that depths stay exact


@dataclass(frozen=True)
class Haystack:
    """Text to hide needles in.

    Args:
        name: as given on the command line
        text: all of it; empty for noise, which is one line repeated, and for what a task makes itself
        shared: how many characters of the text it has for every length of prompts; None: all
    """

    name: str
    text: str = ""
    shared: int | None = None

    @cached_property
    def id(self) -> str:
        """Name and first eight hexadecimal digits of the sha256 of the text that all lengths share."""
        return self._named(self.text[: self.shared])

    @cached_property
    def stream(self) -> str:
        """What random streams hang on: as the id, but of the whole text."""
        return self._named(self.text)

    def _named(self, text: str) -> str:
        """The name, of a file its last part, with the hash of a text, if there is one."""
        if not text:
            return self.name
        name = "file:" + Path(self.name[5:]).name if self.name.startswith("file:") else self.name
        return f"{name}:{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def is_noise(self) -> bool:
        """Whether this is RULER's repeated line."""
        return self.name == "noise"

    @cached_property
    def words(self) -> list[str]:
        """The text's words: RULER measures its essay haystack in them."""
        return self.text.split()

    @cached_property
    def sentences(self) -> list[str]:
        """The text in sentences of normalised white space, none over 240 characters; of noise, its line."""
        return [NOISE] if self.is_noise else list(_cut(split_sentences(" ".join(self.words))))

    def passage(self, characters: int) -> str:
        """The text's first characters, up to the end of a line; of noise, its line over and over."""
        if self.is_noise:
            return (NOISE + "\n") * 64
        return self.text if len(self.text) <= characters else self.text[: self.text.rfind("\n", 0, characters) + 1]


def open_haystack(name: str, characters: int, seed: int = 0, share: float | None = None) -> Haystack:
    """The haystack of that name.

    Args:
        name: "builtin" or "stdlib" (their held-out parts), "grammar", "noise", or "file:PATH"
        characters: how many the grammar makes, and at most so many are read of a file (at least a million)
        seed: of the grammar, and of the order of the corpus's documents
        share: part of the corpus that training held out; None is the default of `data/corpus.py`

    Raises:
        UserError: no such haystack, a file that cannot be read or holds no text.

    Example:
        >>> open_haystack("grammar", 1000).text[:4]
        'The '
    """
    if name == "noise":
        return Haystack(name)
    if name == "grammar":
        text = _grammar(characters, seed)
        return Haystack(f"grammar-{seed}", text, len(text.partition("\n")[0]))
    if name in ("builtin", "stdlib"):
        return Haystack(f"{name}-held-out", _held_out(name, seed, share))
    if name.startswith("file:"):
        return Haystack(name, _file(Path(name[5:]), characters), LEAST_OF_FILE)
    raise UserError(f"--haystack is {name!r}; it must be one of {', '.join(NAMES)}{nearest(name, NAMES)}")


def split_sentences(text: str) -> list[str]:
    """Sentences of a text of normalised white space; joined by spaces they are the text again.

    Example:
        >>> split_sentences("It rains. Does it? Yes.")
        ['It rains.', 'Does it?', 'Yes.']
    """
    return re.split(r"(?<=[.!?])(?<!\b[A-Z]\.) ", text)


def _held_out(name: str, seed: int, share: float | None) -> str:
    """All validation documents of the corpus, once each."""
    from neuralmem.data import corpus

    flavour, share = cast(corpus.Flavour, name), corpus.VALIDATION_SHARE if share is None else share
    missing = corpus.size(flavour, "validation", share)
    return "".join(_until(corpus.haystack(flavour, "validation", seed, share), missing))


def _until(texts: Iterable[str], characters: int) -> Iterator[str]:
    """Texts until so many characters have been given; the last text is not cut."""
    for text in texts:
        if characters <= 0:
            return
        yield text
        characters -= len(text)


def _grammar(characters: int, seed: int) -> str:
    """Paragraphs of six sentences, one per line."""
    out, size, paragraph = [], 0, []
    for sentence in grammar_sentences(seed):
        paragraph.append(sentence)
        size += len(sentence) + 1
        if len(paragraph) == 6:
            out.append(" ".join(paragraph))
            paragraph = []
            if size >= characters:
                return "\n".join(out)
    raise AssertionError("the grammar has no end")


def _file(path: Path, characters: int) -> str:
    if not path.is_file():
        raise UserError(f"--haystack is 'file:{path}', which is no file")
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(max(characters, LEAST_OF_FILE))
    if not text.strip():
        raise UserError(f"--haystack is 'file:{path}', which holds no text")
    return text


def _cut(units: Iterable[str]) -> Iterator[str]:
    for unit in units:
        while len(unit) > LONGEST_UNIT:
            at = unit.rfind(" ", 1, LONGEST_UNIT)
            at = at if at > 0 else LONGEST_UNIT
            yield unit[:at]
            unit = unit[at:].lstrip()
        if unit:
            yield unit

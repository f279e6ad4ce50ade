"""How facts and the questions about them are written, and which of them are kept for validation.

Which is decided by hash, here and nowhere else, so that evaluation asks for what training never saw.
"""

from dataclasses import dataclass

import numpy as np

from neuralmem.data.document import on_side
from neuralmem.errors import UserError


@dataclass(frozen=True)
class NeedleFormat:
    """How facts and questions are written.

    Args:
        fact: a fact with {key} and {value}
        ask: a question with {key}, which a space and the value answer; None: a fact's text up to the value
        digits: decimal digits of a value; there are 10 ** digits values, written with leading zeros
        key_words: words of a key, joined by hyphens; each stands in one key of a row only
        key_tokens: words of keys are words of exactly this many tokens; 0: of any number
        pairs_held_out: share of all (key, value) pairs that only validation uses
        keys_held_out: share of all keys that only validation uses, where it asks for them
    """

    fact: str = "@{key}={value}\n"
    ask: str | None = None
    digits: int = 3
    key_words: int = 1
    key_tokens: int = 1
    pairs_held_out: float = 0.25
    keys_held_out: float = 0.1

    def head(self, key: str) -> str:
        r"""-> the text of a fact up to its value, spaces before the value left out.

        Example:
            >>> NeedleFormat("@{key} {value}\n").head("word")
            '@word'
        """
        return self.fact.partition("{value}")[0].rstrip(" ").format(key=key)

    def told(self, value: int) -> str:
        r"""-> the rest of a fact: the value with the spaces before it and what follows it.

        Example:
            >>> NeedleFormat("@{key} {value}\n").told(7)
            ' 007\n'
        """
        before, _, after = self.fact.partition("{value}")
        return " " * (len(before) - len(before.rstrip(" "))) + self.number(value) + after

    def statement(self, key: str, value: int) -> str:
        """-> a fact."""
        return self.head(key) + self.told(value)

    def question(self, key: str) -> str:
        r"""-> what is asked; the model goes on with the answer.

        Example:
            >>> NeedleFormat("{key} is {value}.\n", ask="What is {key}? It is").question("word")
            'What is word? It is'
        """
        return self.head(key) if self.ask is None else self.ask.format(key=key)

    def answer(self, value: int) -> str:
        """-> the value with the spaces before it and, as in a fact, what follows it."""
        return self.told(value) if self.ask is None else f" {self.number(value)}{self.fact.partition('{value}')[2]}"

    def number(self, value: int) -> str:
        """-> the value alone, with leading zeros."""
        return f"{value:0{self.digits}d}"

    def is_held_out(self, key: str, value: int) -> bool:
        """Whether a pair belongs to validation."""
        return on_side(f"pair {key}={value}", "validation", self.pairs_held_out)

    def is_key_held_out(self, key: str) -> bool:
        """Whether a key belongs to validation."""
        return on_side(f"key {key}", "validation", self.keys_held_out)

    def value(self, rng: np.random.Generator, key: str, held_out: bool) -> int:
        """-> a random value such that the pair is (not) held out."""
        for _ in range(10_000):
            if self.is_held_out(key, value := int(rng.integers(10**self.digits))) == held_out:
                return value
        raise UserError(f"pairs_held_out is {self.pairs_held_out}, which leaves key {key!r} without a value")

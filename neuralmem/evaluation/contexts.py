"""Haystacks in tokens, filled to an exact length, with needles between their sentences or lines.

Special: a haystack is tokenised once; every context is a few views of those tokens (`Rope`), from a random sentence
or line on, and goes round when the text runs out. Only its last one is cut, so the length is exact.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from neuralmem.errors import UserError

Encode = Callable[[str], list[int]]


class Insert(NamedTuple):
    """A text to be placed at a depth: 0 in front of the haystack, 1 behind it."""

    depth: float
    text: str


class Context(NamedTuple):
    """A filled haystack: its pieces, and where each insert stands, as token spans in the order of the inserts."""

    pieces: list[Tensor | list[int]]
    spans: list[tuple[int, int]]


class TokenisedHaystack:
    """A haystack as tokens that can be parted where a unit (a sentence, a line) begins.

    Args:
        ids: Int[N] all tokens
        starts: where units begin, from 0, and N
        encode: the tokenizer's
        separator: what stands in front of a unit, and so of an insert
        units: the units without separators, which open a context; None: contexts begin with a separator as well

    Example:
        >>> hay = TokenisedHaystack.of_units(["ab.", "cd."], " ", lambda text: list(text.encode()), enough=100)
        >>> context = hay.fill(11, [Insert(0.5, "X")], first=0)
        >>> bytes(i for piece in context.pieces for i in torch.as_tensor(piece).tolist())
        b'ab. X cd. a'
        >>> context.spans
        [(3, 5)]
    """

    def __init__(
        self, ids: Tensor, starts: list[int], encode: Encode, separator: str = "", units: Sequence[str] | None = None
    ) -> None:
        if not len(ids):
            raise UserError("--haystack holds no text")
        self.ids, self.starts, self.encode, self.separator, self.units = ids, starts, encode, separator, units

    def __len__(self) -> int:
        return len(self.starts) - 1

    @classmethod
    def of_units(cls, units: Sequence[str], separator: str, encode: Encode, enough: int) -> "TokenisedHaystack":
        """Tokenised unit by unit, so that every unit has the same tokens wherever it stands.

        Args:
            units: sentences or lines
            separator: what joins two units, a space or a line break
            encode: the tokenizer's
            enough: tokens after which the rest of the units is left out
        """
        ids: list[int] = []
        starts = [0]
        for unit in units:
            ids += encode(separator + unit)
            starts.append(len(ids))
            if len(ids) >= enough:
                break
        return cls(torch.tensor(ids, dtype=torch.int32), starts, encode, separator, units)

    @classmethod
    def of_text(cls, text: str, ends: Sequence[bool], encode: Encode) -> "TokenisedHaystack":
        """Tokenised as a whole, as training text is; a unit begins after a token that ends a line.

        Args:
            text: all of it
            ends: for every token id, whether its text ends with a line break
            encode: the tokenizer's
        """
        ids = encode(text)
        starts = [0, *(i for i, token in enumerate(ids[:-1], 1) if ends[token]), len(ids)]
        return cls(torch.tensor(ids, dtype=torch.int32), starts, encode)

    def fill(self, length: int, inserts: Sequence[Insert], first: int) -> Context:
        """Exactly `length` tokens from unit `first` on, each insert between two units, nearest to its depth.

        Args:
            length: tokens of the context, inserts and their separators included
            inserts: what to place; of two at one place the one of smaller depth comes first
            first: number of the unit to begin with

        Raises:
            UserError: the inserts alone are longer.
        """
        encoded = [self.encode(self.separator + insert.text) for insert in inserts]
        order = sorted(range(len(inserts)), key=lambda i: inserts[i].depth)
        room, leading = length - sum(map(len, encoded)), self.units is None
        middle = (self.starts[first + 1] - self.starts[first]) / 2
        if not leading and order and inserts[order[0]].depth * room <= middle:  # an insert opens the context
            encoded[order[0]] = self.encode(inserts[order[0]].text)
            room, leading = length - sum(map(len, encoded)), True
        if room < 0:
            raise UserError(f"a context of {length} tokens is smaller than its needles of {length - room}")
        head = [] if leading or self.units is None else self.encode(self.units[first])[:room]
        begin = self.starts[first] if leading else self.starts[first + 1]
        pieces: list[Tensor | list[int]] = []
        spans = [(0, 0)] * len(inserts)
        done = at = 0
        for i in order:
            place = self._boundary(inserts[i].depth * room, first, room, len(head))
            pieces += self._between(head, begin, done, place)
            at += place - done
            spans[i] = (at, at + len(encoded[i]))
            pieces.append(encoded[i])
            at, done = spans[i][1], place
        return Context(pieces + self._between(head, begin, done, room), spans)

    def _boundary(self, target: float, first: int, room: int, head: int) -> int:
        """The place between two units nearest to a target, in haystack tokens of this context.

        The very end is one only for sentences: there a needle may follow a cut one, but a fact begins a line.
        """
        if self.units is not None and target >= room:
            return room
        shift = self.starts[first + 1] - head if head else self.starts[first]
        size, target = len(self.ids), min(max(target, head), room)
        rounds, inside = divmod(target + shift, size)
        index = bisect_left(self.starts, inside)
        near = {self.starts[max(0, index - 1)], self.starts[min(index, len(self.starts) - 1)]}
        places = [int(rounds * size + start - shift) for start in near]
        return min((p for p in places if head <= p <= room), key=lambda p: (abs(p - target), p), default=room)

    def _between(self, head: list[int], begin: int, start: int, stop: int) -> list[Tensor | list[int]]:
        """Haystack tokens start..stop of this context: `head`, then the tokens from `begin` on, round and round."""
        out: list[Tensor | list[int]] = [head[start:stop]] if start < len(head) else []
        start, stop = max(start, len(head)) - len(head) + begin, stop - len(head) + begin
        while start < stop:
            inside = start % len(self.ids)
            taken = min(stop - start, len(self.ids) - inside)
            out.append(self.ids[inside : inside + taken])
            start += taken
        return out

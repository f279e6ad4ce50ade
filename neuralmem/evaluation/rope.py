"""A long prompt as a list of views: haystack tokens that many prompts share are held once.

Special: a prompt of a million tokens costs a few tensors of no size of its own, so a batch of them does too; what is
read next is put together piece by piece.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor


class Rope:
    """Token ids, immutable.

    Args:
        pieces: tensors Int[T_i] or lists of ids, read one after the other

    Example:
        >>> rope = Rope([[1, 2], torch.tensor([3, 4, 5])])
        >>> len(rope), rope.slice(1, 4).tolist()
        (5, [2, 3, 4])
    """

    def __init__(self, pieces: Sequence[Tensor | list[int]]) -> None:
        tensors = [p if isinstance(p, Tensor) else torch.tensor(p, dtype=torch.int32) for p in pieces]
        self.pieces = [p for p in tensors if len(p)]
        self.starts = list(accumulate((len(p) for p in self.pieces), initial=0))

    def __len__(self) -> int:
        return self.starts[-1]

    def slice(self, start: int, stop: int) -> Tensor:
        """Int[stop - start], the ends cut to the rope's."""
        stop = min(stop, len(self))
        parts = []
        for index in range(max(0, bisect_right(self.starts, start) - 1), len(self.pieces)):
            at = self.starts[index]
            if at >= stop:
                break
            parts.append(self.pieces[index][max(0, start - at) : stop - at])
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int32)

    def sha256(self) -> str:
        """Hash of the ids as little-endian 32-bit integers: what the model reads, whatever it is called."""
        digest = hashlib.sha256()
        for piece in self.pieces:
            digest.update(piece.to(torch.int32).numpy().astype("<i4").tobytes())
        return digest.hexdigest()

"""A shuffled order of n numbers that takes no memory: any place of it is computed alone.

A Feistel network permutes the numbers below a power of four; what lands at n or above is sent through again
(cycle walking; Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
"""

import hashlib

_ROUNDS = 8  # with 4 the order of a few numbers is visibly not uniform
_MASK = (1 << 64) - 1


class Permutation:
    """The order of `size` numbers that a seed names.

    Args:
        size: how many numbers, at least 1
        seed: any integer

    Example:
        >>> order = Permutation(10, seed=1)
        >>> sorted(order(place) for place in range(10)) == list(range(10))
        True
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self._half = max(1, ((size - 1).bit_length() + 1) // 2)
        digest = hashlib.blake2b(str(seed).encode(), digest_size=8 * _ROUNDS).digest()
        self._keys = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS)]

    def __call__(self, place: int) -> int:
        """-> the number at a place, 0 to size - 1."""
        number = self._once(place)
        while number >= self.size:
            number = self._once(number)
        return number

    def _once(self, number: int) -> int:
        low = (1 << self._half) - 1
        left, right = number >> self._half, number & low
        for key in self._keys:
            mixed = (right + key) * 0x9E3779B97F4A7C15 & _MASK
            mixed = (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 & _MASK
            left, right = right, left ^ (mixed >> 32 & low)
        return left << self._half | right

"""The axis alphabet: every tensor in the package is described with these letters, in this order.

B batch · T tokens · H memory heads · N attention heads · D head width · C chunk · G grid slots (tokens laid out in
whole chunks or segments) · L weight matrices of a memory · V vocabulary · K keys (cached and new) · P persistent
tokens.

Order is [B, T, H, D]; memory weights are [B, H, D_out, D_in]. Inside an op heads may move before tokens; where they do,
the line says so.
"""

from typing import Literal

from torch import Tensor

Tensors = tuple[Tensor, ...]
MemoryMode = Literal["on", "frozen", "off"]

__all__ = ["MemoryMode", "Tensor", "Tensors"]

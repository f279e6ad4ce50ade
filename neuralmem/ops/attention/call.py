"""One attention call after its checks: what every rung of the ladder is given.

Rotation happens here, once, so that a rung knows neither positions nor their base.
"""

from typing import NamedTuple

import torch

from neuralmem.errors import UserError
from neuralmem.ops.attention.rotary import rotary_table, rotate
from neuralmem.ops.checks import check_shape
from neuralmem.typing import Tensor

HOLE = -1  # the document of a key that nobody sees


class Call(NamedTuple):
    """The inputs of `attend`, rotated and of one dtype. T queries belong to the last T of K keys."""

    query: Tensor  # [B, T, N, D] without positions: what the prefix is scored with
    rotated: Tensor  # [B, T, N, D] the same with positions
    key: Tensor  # [B, K, N, D] with positions
    value: Tensor  # [B, K, N, D]
    window: int | None
    query_document: Tensor | None  # [B, T]
    key_document: Tensor | None  # [B, K]
    prefix: tuple[Tensor, Tensor] | None  # two [P, N, D], P > 0

    @property
    def cached(self) -> int:
        """Keys that come before the first query's own."""
        return self.key.shape[1] - self.query.shape[1]

    @property
    def accumulator(self) -> torch.dtype:
        """The dtype of scores and softmax."""
        return torch.promote_types(self.query.dtype, torch.float32)


def check_shapes(q: Tensor, k: Tensor, v: Tensor, prefix: tuple[Tensor, Tensor] | None) -> None:
    """Refuse what does not fit, naming the argument."""
    if q.ndim != 4:
        raise UserError(f"q has shape {list(q.shape)}; it must be [B, T, N, D]")
    batch, tokens, heads, width = q.shape
    if k.ndim != 4 or k.shape[0] != batch or k.shape[1] < tokens or k.shape[2:] != q.shape[2:]:
        raise UserError(f"k has shape {list(k.shape)}; it must be [{batch}, K >= {tokens}, {heads}, {width}]")
    check_shape("v", v, k.shape)
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype:
            raise UserError(f"{name} has dtype {x.dtype}; it must be {q.dtype} like q")
    for name, x in zip(("key", "value"), prefix or (), strict=False):
        if x.ndim != 3 or x.shape[1:] != q.shape[2:]:
            raise UserError(f"prefix {name} has shape {list(x.shape)}; it must be [P, {heads}, {width}]")


def documents_of(q: Tensor, k: Tensor, query: Tensor | None, key: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Checked documents of queries and keys; the queries' default to those of the last T keys."""
    if key is None:
        if query is not None:
            raise UserError("query_document is given without key_document; give both, or key_document alone")
        return None, None
    check_shape("key_document", key, k.shape[:2])
    if query is None:
        query = key[:, key.shape[1] - q.shape[1] :]
    check_shape("query_document", query, q.shape[:2])
    return query, key


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    documents: tuple[Tensor | None, Tensor | None],
    prefix: tuple[Tensor, Tensor] | None,
    rotary_base: float,
) -> Call:
    """Check the arguments of `attend`, turn queries and keys by their index on the key axis, blank the holes."""
    check_shapes(q, k, v, prefix)
    if window is not None and window < 1:
        raise UserError(f"attention.window is {window}; it must be at least 1 or None")
    query_document, key_document = documents_of(q, k, *documents)
    if key_document is not None:
        # A weight of zero does not silence a NaN in an unused cache slot: 0 * NaN is NaN.
        hole = (key_document == HOLE)[..., None, None]
        k, v = k.masked_fill(hole, 0), v.masked_fill(hole, 0)
    if prefix is not None:
        prefix = (prefix[0].to(q.dtype), prefix[1].to(q.dtype)) if len(prefix[0]) else None
    accumulator = torch.promote_types(q.dtype, torch.float32)
    cos, sin = rotary_table(torch.arange(k.shape[1], device=q.device), q.shape[-1], rotary_base, accumulator)
    cached = k.shape[1] - q.shape[1]
    rotated = rotate(q, (cos[cached:], sin[cached:]))
    return Call(q, rotated, rotate(k, (cos, sin)), v, window, query_document, key_document, prefix)

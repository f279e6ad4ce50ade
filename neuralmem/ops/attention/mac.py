"""Attention inside one segment of memory-as-context: over [persistent | h | s], one softmax.

h is what the long-term memory recalled for the segment's tokens and s the tokens themselves; h_j and s_j share slot j
and its rotary position, so the concatenation never shifts a token. Segments are short: explicit products, any device.
Source: Titans (2501.00663) equations 22-23; where they leave causality open, slot i sees h and s up to i (README.md).
"""

import torch

from neuralmem.errors import UserError
from neuralmem.ops.attention.call import check_shapes
from neuralmem.ops.attention.dense import masked_attention
from neuralmem.ops.attention.rotary import rotary_table, rotate
from neuralmem.ops.autocast import to_autocast, without_autocast
from neuralmem.ops.checks import check_shape
from neuralmem.typing import Tensor


def attend_segment(
    q: Tensor,
    ks: Tensor,
    vs: Tensor,
    kh: Tensor,
    vh: Tensor,
    *,
    prefix: tuple[Tensor, Tensor] | None = None,
    first: int | Tensor = 0,
    rotary_base: float = 10000.0,
) -> Tensor:
    """Queries of some slots of a segment over the persistent tokens, the recalled slots and the token slots.

    Args:
        q: Float [B, Q, N, D] un-rotated queries of slots first ... first + Q - 1
        ks, vs: Float [B, S, N, D] un-rotated keys and values of the tokens in slots 0 ... S - 1, S >= first + Q
        kh, vh: Float [B, S, N, D] the same of what the memory recalled
        prefix: None, or keys and values Float [P, N, D] of the persistent tokens, which have no position
        first: the slot of the first query; Int [B] if it differs between rows
        rotary_base: base of the rotary positions, which are slots

    Returns:
        Float [B, Q, N, D] in the dtype of q; slot i sees the prefix, h up to i and s up to i

    Raises:
        UserError: shapes or dtypes that do not fit, naming the argument.

    Example:
        >>> q, k, v = torch.zeros(3, 1, 4, 2, 8).unbind(0)
        >>> attend_segment(q, k, v + 1, k, v)[0, :, 0, 0]  # half of the weight on s (ones), half on h (zeros)
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    kind = q.device.type
    q, ks, vs, kh, vh = to_autocast(q, ks, vs, kh, vh)
    check_shapes(q, ks, vs, prefix)
    check_shape("kh", kh, ks.shape)
    check_shape("vh", vh, ks.shape)
    last = ks.shape[1] - q.shape[1]
    if isinstance(first, int) and not 0 <= first <= last:
        raise UserError(f"first is {first}; it must be 0 to {last} for {q.shape[1]} queries in {ks.shape[1]} slots")
    with without_autocast(kind):
        return _attend_segment(q, torch.cat([kh, ks], 1), torch.cat([vh, vs], 1), prefix, first, rotary_base)


def _attend_segment(
    q: Tensor, k: Tensor, v: Tensor, prefix: tuple[Tensor, Tensor] | None, first: int | Tensor, rotary_base: float
) -> Tensor:
    """k, v [B, 2S, N, D]: h, then s."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    slot = torch.arange(k.shape[1] // 2, device=q.device).repeat(2)  # [2S]
    start = first[:, None] if isinstance(first, Tensor) else first
    query_slot = start + torch.arange(q.shape[1], device=q.device)  # [Q] or [B, Q]
    seen = query_slot[..., :, None] >= slot  # [Q, 2S] or [B, Q, 2S]
    rotated = rotate(q, rotary_table(query_slot, q.shape[-1], rotary_base, dtype))
    key = rotate(k, rotary_table(slot, q.shape[-1], rotary_base, dtype))
    plain, rotated, key, value = (x.to(dtype).transpose(1, 2) for x in (q, rotated, key, v))
    if prefix is not None and not len(prefix[0]):
        prefix = None
    return masked_attention(rotated, key, value, seen.unsqueeze(-3), plain, prefix).transpose(1, 2).to(q.dtype)

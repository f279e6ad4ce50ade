"""The Omega rule's window (ATLAS, 2505.23735): which gradients a step is made of, with which weights.

Special: which tokens stand in which window depends on masks and resets only, not on the memory, so all of it is known
before the first chunk, and what a window takes from earlier chunks is no recurrent state. README.md derives it.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from neuralmem.ops.neural_memory.call import Call, History
from neuralmem.typing import Tensor, Tensors


class Members(NamedTuple):
    """The tokens that the steps of a chunk are made of: the P before the chunk that its windows reach, then its own."""

    written: Tensors  # k, v and the bias's settings, [B, H, P + C, ...]
    gamma: Tensor | None  # [B, H, C, P + C], the weight of each in each step; None for a token's own, 1


def members(call: Call) -> list[Members]:
    """Those of every chunk, in order."""
    # Split once: the gradient of a slice is as long as what it was cut from.
    own = zip(*(x.transpose(1, 2).split(call.chunk_size, dim=2) for x in call.written()), strict=True)
    if call.omega is None:
        return [Members(written, None) for written in own]
    starts = list(range(0, call.k.shape[1], call.chunk_size))
    places, valid = _reached(call, starts)
    before = zip(*(x.transpose(2, 3).unbind(1) for x in _pick(call, places, valid)), strict=True)
    return [
        Members(tuple(torch.cat(both, dim=2) for both in zip(past, now, strict=True)), gamma)
        for past, now, gamma in zip(before, own, _gammas(call, valid), strict=True)
    ]


def history_after(call: Call) -> History:
    """The last tokens of the call that a window after it may reach."""
    places, valid = _reached(call, [call.k.shape[1]])
    k, v, *settings = (x[:, 0] for x in _pick(call, places, valid))
    return History(k.to(call.operand), v.to(call.operand), valid[:, 0], *(x[..., 0] for x in settings))


def _reached(call: Call, starts: list[int]) -> tuple[Tensor, Tensor]:
    """The last P real tokens of the same document before each start, the newest in the last place.

    Returns:
        Int [B, starts, P], places in [history, tokens], and Bool [B, starts, P], whether there is such a token.
    """
    assert call.history is not None
    reach, real = call.reach, torch.cat([call.history.valid, _written(call)], dim=1)
    order = real.long().argsort(dim=1, descending=True, stable=True)  # the places of real tokens, oldest first
    starts_at = reach + torch.tensor(starts, dtype=torch.long, device=real.device)
    count = F.pad(real.long().cumsum(1), (1, 0))[:, starts_at]  # real tokens before each start
    rank = count[..., None] + torch.arange(-reach, 0, device=real.device)
    places = order[:, None].expand(-1, len(starts), -1).gather(2, rank.clamp(min=0))
    if call.reset is None:
        return places, rank >= 0
    document = F.pad(call.reset.long(), (reach, 1)).cumsum(1)
    same = document[:, None].expand(-1, len(starts), -1).gather(2, places) == document[:, starts_at, None]
    return places, (rank >= 0) & same


def _pick(call: Call, places: Tensor, valid: Tensor) -> list[Tensor]:
    """What [history, tokens] hold at places [B, starts, P]: k, v, settings [B, starts, P, H, ...], 0 if not valid."""
    rows = torch.arange(len(places), device=places.device)[:, None, None]
    both = (torch.cat(pair, dim=1) for pair in zip(call.past(), call.written(), strict=True))
    return [torch.where(valid[..., None, None], x[rows, places], 0) for x in both]


def _gammas(call: Call, valid: Tensor) -> list[Tensor]:
    """Gamma of every chunk over its members, [B, H, C, P + C]. valid: Bool [B, chunks, P], which of the P there are."""
    assert call.omega is not None
    gammas, reach = [], call.reach
    own = call.omega.transpose(1, 2).split(call.chunk_size, dim=2), _written(call).split(call.chunk_size, dim=1)
    for before, omega, written in zip(valid.unbind(1), *own, strict=True):
        real = torch.cat([before, written], dim=1)
        rank = real.cumsum(1)
        lag = rank[:, reach:, None] - rank[:, None, :]  # [B, C, P + C], in real tokens
        inside = (lag >= 0) & (lag <= reach) & real[:, None]
        index = lag.clamp(0, reach)[:, None].expand(-1, omega.shape[1], -1, -1)
        gammas.append(torch.where(inside[:, None], omega.gather(-1, index), 0))
    return gammas


def _written(call: Call) -> Tensor:
    """Bool [B, T], the tokens that are written."""
    everything = torch.ones_like(call.theta[..., 0], dtype=torch.bool)
    return everything if call.write_mask is None else call.write_mask

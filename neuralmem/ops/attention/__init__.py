"""Causal softmax attention with a sliding window, documents, cached keys and a persistent prefix: six rungs.

`attend` picks the fastest rung that can serve the call and says so once in the log "neuralmem". Derivations: README.md.
Source: Titans (2501.00663) 3.3 and 4 for persistent tokens; Mistral (2310.06825) for the window.
"""

import logging
from types import ModuleType

import torch

from neuralmem.errors import UserError, nearest
from neuralmem.ops.attention import banded, cpu_flash, dense, flash, flex, torch_flash
from neuralmem.ops.attention.call import Call, prepare
from neuralmem.ops.attention.mac import attend_segment
from neuralmem.ops.attention.rotary import rotary_table, rotate
from neuralmem.ops.autocast import to_autocast, without_autocast
from neuralmem.typing import Tensor

__all__ = ["BACKENDS", "attend", "attend_segment", "rotary_table", "rotate"]

BACKENDS: dict[str, ModuleType] = {
    "flash_attn": flash,
    "torch_flash": torch_flash,
    "flex": flex,
    "banded": banded,
    "cpu_flash": cpu_flash,
    "dense": dense,
}
_announced: set[tuple[object, ...]] = set()


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None,
    query_document: Tensor | None = None,
    key_document: Tensor | None = None,
    prefix: tuple[Tensor, Tensor] | None = None,
    rotary_base: float = 10000.0,
    backend: str = "auto",
) -> Tensor:
    """Causal attention of new tokens over cached and new tokens and a persistent prefix, in one softmax.

    Args:
        q: Float [B, T, N, D] queries, not yet rotated; D is even
        k, v: Float [B, K, N, D], K >= T, not yet rotated: K - T cached tokens, the latest last, then the T new ones
        window: tokens that a query sees, itself included; None: all
        query_document: Int [B, T]; None: that of the last T keys
        key_document: Int [B, K]; a query sees keys of its own document, and nobody sees a key of document -1 (an empty
            cache slot, padding). None: all one document. Leave it None where you can: the flash rungs cannot take it
        prefix: None, or keys and values, each Float [P, N, D], that every query sees; they have no position, so the
            un-rotated query meets them
        rotary_base: base of the rotary positions, which are indices on the key axis
        backend: "auto", or a rung: "flash_attn", "torch_flash", "flex", "banded", "cpu_flash", "dense"

    Returns:
        Float [B, T, N, D] in the dtype of q (under autocast: of autocast). A query that sees no token key gets the
        prefix alone, or zeros. Scores and softmax are float32, or float64 for float64 inputs.

    Raises:
        UserError: shapes or dtypes that do not fit, a backend that does not exist or cannot serve the call

    Example:
        >>> q, k = torch.zeros(1, 4, 1, 2), torch.zeros(1, 4, 1, 2)
        >>> v = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 1, 2)
        >>> attend(q, k, v, window=2)[0, :, 0, 0]  # equal scores: the mean over the window
        tensor([0.0000, 0.5000, 1.5000, 2.5000])
    """
    kind = q.device.type
    q, k, v = to_autocast(q, k, v)
    with without_autocast(kind):
        call = prepare(q, k, v, window, (query_document, key_document), prefix, rotary_base)
        name = _choose(call, backend)
        _announce(name, call)
        return BACKENDS[name].run(call)


def _choose(call: Call, backend: str) -> str:
    """The name of the rung that serves the call."""
    if backend == "auto":
        return next(name for name in _ladder(call) if BACKENDS[name].refuses(call) is None)
    if backend not in BACKENDS:
        allowed = ", ".join(["auto", *BACKENDS])
        raise UserError(f"attention.backend is {backend!r}; it must be one of {allowed}{nearest(backend, BACKENDS)}")
    if reason := BACKENDS[backend].refuses(call):
        raise UserError(
            f"attention.backend is {backend!r}, which cannot serve this call: {reason}; 'auto' picks one that can"
        )
    return backend


def _ladder(call: Call) -> list[str]:
    """The rungs worth trying for this call, fastest first; dense serves anything."""
    tokens = call.query.shape[1]
    rungs = []
    if call.query.is_cuda:
        rungs += ["flash_attn", "torch_flash"]
        rungs += ["flex"] if tokens >= flex.SHORTEST_CALL else []
    if call.window is not None:
        rungs += ["banded"] if tokens > call.window else []
    elif tokens * call.key.shape[1] >= cpu_flash.FEWEST_SCORES:
        rungs += ["cpu_flash"]
    return [*rungs, "dense"]


def _announce(name: str, call: Call) -> None:
    """Log a choice the first time it is made."""
    if torch.compiler.is_compiling():
        return
    device, dtype = call.query.device.type, call.query.dtype
    documents = "one document" if call.key_document is None else "documents"
    choice = (name, device, dtype, call.window, documents)
    if choice not in _announced:
        _announced.add(choice)
        logging.getLogger("neuralmem").info("attention: %s (%s, %s, window %s, %s)", *choice)

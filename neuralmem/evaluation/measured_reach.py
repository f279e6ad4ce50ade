"""How far attention and convolutions really reach: the farthest token whose change still alters a logit.

Special: the reach that a model states is added up over its layers, a bound; trained weights may use less of it, and a
mistake in a mask would show as more, of which a warning is given. Measured in float64 with the memory frozen, so that
nothing is written.
"""

import copy
import warnings
from typing import Any

import torch

ALTERED = 1e-12  # difference of a logit in float64 that is more than rounding between rows of a batch
TEXTS, PLACES = 2, 8
WORK = 1e12  # tokens times parameters, seconds to a minute; what takes more is not measured
FASTER = 20  # an accelerator; not measured: at a tenth of a teraflop in float64, the slowest, a few minutes
LOGITS = 1 << 25  # float64 numbers at once


@torch.no_grad()
def measured_reach(model: Any, seed: int = 0) -> int | None:
    """Tokens back, at most, that a changed token acts on a logit while nothing is written.

    Warns where that is farther than the model states: what counts as beyond reach may then be seen without a memory.

    Args:
        model: a `CausalLM`; not changed
        seed: of the random texts and of the tokens that are changed in them

    Returns:
        The farthest of what was tried; None where that takes more than about a minute, or attention is full.

    Example:
        >>> from neuralmem import CausalLM, ModelConfig
        >>> config = ModelConfig(vocab_size=257, width=16, depth=1, pattern=["titans_mag"])
        >>> model = CausalLM(config)
        >>> measured_reach(model), model.reach
        (63, 63)
    """
    span = model.config.attention.segment  # a token's reach hangs on its place in a segment of MAC
    length, places = span + model.reach + 16, torch.arange(0, span, max(1, span // PLACES))
    parameters = sum(p.numel() for p in model.parameters())
    work = WORK * (1 if next(model.parameters()).device.type == "cpu" else FASTER)
    if TEXTS * (len(places) + 1) * length * parameters > work:
        return None
    double, random = copy.deepcopy(model).double(), torch.Generator().manual_seed(seed)
    vocabulary, device = model.config.vocab_size, next(model.parameters()).device
    piece = max(1, LOGITS // ((len(places) + 1) * vocabulary))
    farthest = 0
    for _ in range(TEXTS):
        text = torch.randint(vocabulary, (1, length), generator=random)
        rows = text.repeat(len(places) + 1, 1)
        rows[torch.arange(len(places)), places] = (text[0, places] + 1) % vocabulary
        state = None
        for at in range(0, length, piece):
            logits, state = double(rows[:, at : at + piece].to(device), state, memory="frozen")
            altered = ((logits[:-1] - logits[-1:]).abs().amax(-1) > ALTERED).nonzero().cpu()
            distances = at + altered[:, 1] - places[altered[:, 0]]
            farthest = max([farthest, *distances.tolist()])
    if farthest > model.reach:
        warnings.warn(
            f"attention and convolutions reach {farthest:,} tokens back, farther than the {model.reach:,} that the "
            "model states (a mask is wrong?); answers beyond the stated reach say nothing about the memory",
            stacklevel=3,  # no_grad is between
        )
    return farthest

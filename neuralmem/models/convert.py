"""A trained Transformer whose feed-forwards become continuum memories, computing the same until they learn.

Nested Learning (2512.24695) starts continuum memories from a trained model's feed-forwards and trains on. Special:
nothing else changes. In a chain the slowest level is the feed-forward and the others start by adding nothing; side by
side the feed-forward's hidden units are dealt out.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from neuralmem.config import ContinuumConfig, ModelConfig
from neuralmem.errors import UserError
from neuralmem.layers._layer import hidden_width
from neuralmem.layers.hope_attention import HopeAttention
from neuralmem.layers.transformer import Transformer
from neuralmem.memory._continuum import Levels
from neuralmem.models.causal_lm import CausalLM
from neuralmem.modules.feed_forward import FeedForward
from neuralmem.typing import Tensor


def with_continuum_memory(
    model: CausalLM,
    periods: Sequence[int | None],
    *,
    variant: str = "sequential",
    learn: Sequence[bool] | None = None,
    theta_max: float = ContinuumConfig.theta_max,
) -> CausalLM:
    """Make `hope_attention` layers of `transformer` layers. With theta_max = 0, or no period at all, the logits are the
    Transformer's; else they are until the first update, after one period.

    Args:
        model: of `transformer` layers only; not changed
        periods: tokens between two updates of a level, fastest first, null for never
        variant: "sequential" or "independent"; "nested" with one level only, as it would apply the feed-forward again
        learn: per level, whether it learns while reading; None is all
        theta_max: the largest inner learning rate

    Returns:
        A new model in the dtype, mode and place of the old one. What is new in it, gates and values, is not trained.

    Raises:
        UserError: another layer than `transformer`, levels that cannot start as the feed-forward, wrong periods.

    Example:
        >>> model = CausalLM(ModelConfig(vocab_size=11, width=16, depth=1, pattern=["transformer"]))
        >>> learner = with_continuum_memory(model, [8, None])
        >>> tokens = torch.arange(11)[None]
        >>> same = torch.isclose(learner(tokens)[0], model(tokens)[0], atol=1e-5).all(-1)
        >>> same[0, :8].all().item(), same[0, 8:].any().item()  # it learns after every eighth token
        (True, False)
    """
    if other := sorted(set(model.config.layer_names) - {"transformer"}):
        raise UserError(f"model.pattern has {other[0]}; only transformer layers have a feed-forward to convert")
    continuum = ContinuumConfig(
        periods=list(periods),
        learn=None if learn is None else list(learn),
        variant=variant,  # type: ignore[arg-type]  # checked by the config
        theta_max=theta_max,
    )
    if variant == "nested" and len(periods) > 1:
        raise UserError("variant is 'nested'; its levels share one shape, so only a single one is the feed-forward")
    example = next(model.parameters())
    converted = CausalLM(_config(model.config, continuum)).to(example.device, example.dtype)
    weights = converted.state_dict()
    kept = {name: x for name, x in model.state_dict().items() if name in weights}
    converted.load_state_dict({**weights, **kept})
    for old, new in zip(model.layers, converted.layers, strict=True):
        assert isinstance(old, Transformer)
        assert isinstance(new, HopeAttention)
        _fill(new.feed_forward.levels, old.feed_forward, old.feed_forward_norm.gain)
    return converted.train(model.training)


def _config(config: ModelConfig, continuum: ContinuumConfig) -> ModelConfig:
    """The converted model's: in a chain every level is as wide as the feed-forward was."""
    levels, hidden = len(continuum.periods or ()), hidden_width(config)
    each = -(-hidden // levels) if continuum.variant == "independent" else hidden
    return replace(
        config,
        pattern=["hope_attention"],
        feed_forward=levels * each / config.width,
        memory=replace(config.memory, continuum=continuum),
    )


@torch.no_grad()
def _fill(levels: Levels, trained: FeedForward, gain: Tensor) -> None:
    """Give the levels the trained feed-forward and its norm."""
    for norm in levels.norms:
        norm.gain.copy_(gain)
    if levels.mix is not None:
        levels.mix.fill_(1 / len(levels.up))  # once more, in this dtype
    gate, value = trained.up.weight.chunk(2)
    for i, (up, down) in enumerate(zip(levels.up, levels.down, strict=True)):
        down.zero_()  # units that are given nothing add nothing, and keep their random way in
        size = down.shape[-1]
        if levels.mix is not None:
            units = slice(i * size, min((i + 1) * size, len(gate)))
        else:
            units = slice(0, len(gate) if i == len(levels.up) - 1 else 0)
        count = len(gate[units])
        up[0, :count], up[0, size : size + count] = gate[units], value[units]
        down[0, :, :count] = trained.down.weight[:, units] * (1 if levels.mix is None else len(levels.up))

"""A trained Transformer whose feed-forwards become continuum memories, computing the same until they learn.

Nested Learning (2512.24695) starts continuum memories from a trained model's feed-forwards and trains on. Special:
nothing else changes. In a chain the slowest level is the feed-forward and the others start by adding nothing; side by
side the feed-forward's hidden units are dealt out. With next-token loss they always are, and there is no new parameter:
the result is the model `ttt_e2e` of the same weights.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from neuralmem.config import ContinuumConfig, EndToEndConfig, ModelConfig
from neuralmem.errors import UserError, nearest
from neuralmem.layers._layer import hidden_width
from neuralmem.layers.hope_attention import HopeAttention
from neuralmem.layers.transformer import Transformer
from neuralmem.memory._continuum import Levels
from neuralmem.models.causal_lm import CausalLM
from neuralmem.models.ttt_e2e import EndToEnd
from neuralmem.modules.feed_forward import FeedForward
from neuralmem.typing import Tensor

LOSSES = ("reconstruction", "next_token")


def with_continuum_memory(
    model: CausalLM,
    periods: Sequence[int | None],
    *,
    loss: str = "reconstruction",
    variant: str | None = None,
    learn: Sequence[bool] | None = None,
    theta_max: float | None = None,
) -> CausalLM:
    """Make levels of the feed-forwards. With theta_max = 0, or no period at all, the logits are the Transformer's; else
    they are until the first update, after one period.

    Args:
        model: of `transformer` layers only; not changed
        periods: tokens between two updates of a level, fastest first, null for never
        loss: what the levels lower while they read. "reconstruction": their own error, in every layer, which becomes
            `hope_attention`; "next_token": the model's loss on what it reads, in the last quarter of the layers, which
            need a window of at least the first period (model `ttt_e2e`)
        variant: "sequential" (the default for reconstruction) or "independent" (the only one for next_token);
            "nested" with one level only, as it would apply the feed-forward again
        learn: per level, whether it learns while reading; None is all
        theta_max: the largest inner learning rate, with next_token the only one; None is the config's default

    Returns:
        A new model in the dtype, mode and place of the old one. What is new in it is not trained: gates and values for
        reconstruction, nothing for next_token.

    Raises:
        UserError: another layer than `transformer`, levels that cannot start as the feed-forward, wrong periods, loss
            or variant, too small a window.

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
    if model.config.model != CausalLM.name:
        raise UserError(f"model is of kind {model.config.model!r}; only {CausalLM.name!r} can be converted")
    if not periods:
        raise UserError("periods is []; it must name at least one level")
    if loss not in LOSSES:
        raise UserError(f"loss is {loss!r}; it must be one of {', '.join(LOSSES)}{nearest(loss, LOSSES)}")
    converted: CausalLM
    if loss == "next_token":
        converted = EndToEnd(_end_to_end(model.config, periods, variant, learn, theta_max))
    else:
        converted = CausalLM(_reconstructing(model.config, periods, variant, learn, theta_max))
    example = next(model.parameters())
    converted = converted.to(example.device, example.dtype)
    weights = converted.state_dict()
    kept = {name: x for name, x in model.state_dict().items() if name in weights}
    converted.load_state_dict({**weights, **kept})
    for old, new in zip(model.layers, converted.layers, strict=True):
        if isinstance(old, Transformer) and isinstance(new, HopeAttention):
            _fill(new.feed_forward.levels, old.feed_forward, old.feed_forward_norm.gain)
    return converted.train(model.training)


def _end_to_end(
    config: ModelConfig,
    periods: Sequence[int | None],
    variant: str | None,
    learn: Sequence[bool] | None,
    theta: float | None,
) -> ModelConfig:
    """The model's whose feed-forwards learn by next-token loss. Without a period nothing learns, in any mini-batch."""
    if variant not in (None, "independent"):
        raise UserError(f"variant is {variant!r}; with loss 'next_token' it must be 'independent'")
    fastest = next(iter(periods), None)
    levels = EndToEndConfig(
        mini_batch=fastest or config.attention.window or 1,
        learns="feed_forward",
        periods=None if fastest is None else list(periods),
        learn=[False] if fastest is None else None if learn is None else list(learn),
        theta=EndToEndConfig.theta if theta is None else theta,
    )
    return replace(config, model=EndToEnd.name, end_to_end=levels)


def _reconstructing(
    config: ModelConfig,
    periods: Sequence[int | None],
    variant: str | None,
    learn: Sequence[bool] | None,
    theta_max: float | None,
) -> ModelConfig:
    """The model's whose feed-forwards learn by their own error: in a chain every level is as wide as one was."""
    continuum = ContinuumConfig(
        periods=list(periods),
        learn=None if learn is None else list(learn),
        variant=variant or "sequential",  # type: ignore[arg-type]  # checked by the config
        theta_max=ContinuumConfig.theta_max if theta_max is None else theta_max,
    )
    if variant == "nested" and len(periods) > 1:
        raise UserError("variant is 'nested'; its levels share one shape, so only a single one is the feed-forward")
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

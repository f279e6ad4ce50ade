"""How many floating point operations a model needs: counted from its config, not measured.

What is counted are the products of matrices that the mathematics asks for: linear maps, attention over the keys that a
query may see, memory update and read, head. A multiplication and its addition are two operations. Not counted, as is
usual: what is elementwise, what a kernel computes and masks away, what is computed again in backward.

Special: linear maps are found in the model itself, built without its weights, so that a new layer needs nothing here; a
new memory rule needs a formula in flops_memory.py, and a test says so.
"""

from dataclasses import dataclass, fields

import torch
from torch import nn

from neuralmem.config import ModelConfig
from neuralmem.layers.titans_mac import TitansMAC
from neuralmem.memory._memory import Memory
from neuralmem.models.causal_lm import build_model
from neuralmem.models.ttt_e2e import EndToEnd
from neuralmem.modules.attention import Attention
from neuralmem.training.flops_memory import read_cost, update_cost

BACKWARD = 2
"""Every product of the forward pass has two in backward: a gradient for each factor."""


@dataclass(frozen=True)
class Flops:
    """Operations of one forward pass over a row, by what they are for.

    Args:
        tokens: of the row
        linear: linear maps but the head: projections, feed-forward, gates
        attention: scores and weighted sums, over what each query sees
        memory: products of memory update and read
        solves: triangular systems of the delta rule and its relatives, which torch's counter does not see
        inner: the gradient that `ttt_e2e` takes of its own loss while it reads
        head: of one predicted token
    """

    tokens: int
    linear: float
    attention: float
    memory: float
    solves: float
    inner: float
    head: float

    @property
    def body(self) -> float:
        """Everything but the head."""
        return self.linear + self.attention + self.memory + self.solves + self.inner

    def forward(self, targets: int | None = None) -> float:
        """Operations of the forward pass; `targets`: tokens that are predicted, None for all."""
        return self.body + self.head * (self.tokens if targets is None else targets)

    def training(self, targets: int | None = None) -> float:
        """Operations of a training step: forward and backward."""
        return (1 + BACKWARD) * self.forward(targets)

    def __str__(self) -> str:
        parts = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("tokens", "head")}
        parts["head"] = self.head * self.tokens
        whole = sum(parts.values())
        shares = ", ".join(f"{name} {part / whole:.0%}" for name, part in parts.items() if part)
        return f"{whole / self.tokens:.3g} forward operations per token: {shares}"


def count_flops(config: ModelConfig, tokens: int) -> Flops:
    """Count the operations of a model that reads one row of `tokens` tokens from a fresh state.

    Args:
        config: the model's
        tokens: of the row; attention and memory cost depends on it

    Example:
        >>> config = ModelConfig(vocab_size=256, width=64, depth=2, pattern=["transformer"])
        >>> count = count_flops(config, tokens=128)
        >>> count.linear == 2 * 128 * 2 * (4 * 64**2 + 3 * 64 * 171)  # q, k, v, o and SwiGLU, two layers
        True
        >>> count.training() == 3 * count.forward()
        True
    """
    with torch.device("meta"):
        model = build_model(config)
    linear = sum(2.0 * tokens * m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    head = 2.0 * model.head.weight.numel()
    attention = memory = solves = 0.0
    within = {part for mac in model.modules() if isinstance(mac, TitansMAC) for part in mac.modules()}
    for module in model.modules():
        if isinstance(module, TitansMAC):
            part = _memory_as_context(module, tokens)
        elif isinstance(module, Attention):
            part = 0.0, _attention(module, tokens), 0.0, 0.0
        elif isinstance(module, Memory) and module not in within:
            part = 0.0, 0.0, *update_cost(module, tokens)
        else:
            continue
        linear, attention = linear + part[0], attention + part[1]
        memory, solves = memory + part[2], solves + part[3]
    inner = _inner(model, tokens) if isinstance(model, EndToEnd) else 0.0
    return Flops(tokens, linear - head * tokens, attention, memory, solves, inner, head)


def visible_keys(tokens: int, window: int | None) -> int:
    """Pairs of a query and a key that it sees, over a row.

    Example:
        >>> visible_keys(4, None), visible_keys(4, 2)
        (10, 7)
    """
    seen = tokens if window is None else min(window, tokens)
    return seen * (seen + 1) // 2 + (tokens - seen) * seen


def _attention(module: Attention, tokens: int) -> float:
    """Scores and sums over keys: 2 + 2 operations per pair and channel."""
    pairs = visible_keys(tokens, module.config.window) + tokens * module.config.persistent_tokens
    return 4.0 * module.query.out_features * pairs


def _memory_as_context(layer: TitansMAC, tokens: int) -> tuple[float, float, float, float]:
    """Segment by segment: recall, attention over recalled and read tokens, and the update, whose chunks start anew."""
    memory, attention = layer.memory, layer.attention
    parts = [layer.size] * (tokens // layer.size) + ([tokens % layer.size] if tokens % layer.size else [])
    # Twice what the walk over the modules saw: keys and values of what is recalled, and the memory asked again.
    linear = 2.0 * tokens * sum(f.weight.numel() for f in (attention.key, attention.value))
    asked = [getattr(memory, name, None) for name in ("query", "gate", "output")]
    linear += 2.0 * tokens * sum(f.weight.numel() for f in asked if isinstance(f, nn.Linear))
    prefix = attention.config.persistent_tokens
    scores = 4.0 * attention.query.out_features * sum(2 * visible_keys(part, None) + part * prefix for part in parts)
    costs = [update_cost(memory, part) for part in parts]
    products = sum(cost[0] for cost in costs) + tokens * read_cost(memory)
    return linear, scores, products, sum(cost[1] for cost in costs)


def _inner(model: EndToEnd, tokens: int) -> float:
    """The gradient of the next-token loss with respect to what learns, over complete mini-batches.

    The head once more, and back through it and all layers down to the first weights that learn: for weights that
    reading does not change, only the gradient of what goes in; for those that learn, that of both.
    """
    settings = model.config.end_to_end
    if not model.has_memory:
        return 0.0
    learnt = (tokens - 1) // settings.mini_batch * settings.mini_batch  # the last waits for the token after it
    chained, levels = settings.learns == "prime", model.first_weights()
    products, attention = 2 * model.head.weight.numel(), 0.0
    for j, layer in enumerate(model.layers[model.prefix :]):
        fixed = {*layer.modules()} if j else {*layer.feed_forward.modules()}
        fixed -= set() if chained else {*layer.feed_forward.modules()}
        products += sum(m.weight.numel() for m in fixed if isinstance(m, nn.Linear))
        attention += 2 * sum(_attention(m, learnt) for m in fixed if isinstance(m, Attention))
        for i, (level, interval) in enumerate(zip(levels, settings.intervals, strict=True)):
            up, down = (w.numel() for w in level[2 * j : 2 * j + 2])
            products += up + down if interval is not None else 0
            if j or (chained and i):  # before it something learns, so that its input needs a gradient
                products += up + down
            elif interval is not None:
                products += down
    return 2.0 * learnt * products + attention

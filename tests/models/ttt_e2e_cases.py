"""A small TTT-E2E and its equations, read one token at a time by a reference that shares no step with the model."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import neuralmem as nm
from neuralmem.config import EndToEndConfig
from neuralmem.models.ttt_e2e import EndToEnd
from neuralmem.modules.stream import Rows
from neuralmem.ops.attention import rotary_table, rotate

b, T = 4, 19
CONFIG = nm.ModelConfig(
    vocab_size=11,
    width=8,
    depth=8,  # two layers learn
    pattern=["transformer"],
    attention=nm.AttentionConfig(heads=2, window=5, persistent_tokens=2),
    model="ttt_e2e",
    end_to_end=EndToEndConfig(mini_batch=b),
)


def build(dtype: torch.dtype = torch.float64, *, moved: bool = True, depth: int = 8, **options: Any) -> EndToEnd:
    torch.manual_seed(1)
    config = replace(CONFIG, depth=depth, end_to_end=replace(CONFIG.end_to_end, **options))
    model = EndToEnd(config).to(dtype)
    with torch.no_grad():
        for x in model.parameters():
            x.add_(0.1 * torch.randn_like(x) if moved else 0)
    return model


def text(rows: int = 2, tokens: int = T) -> Tensor:
    return torch.randint(11, (rows, tokens), generator=torch.Generator().manual_seed(3))


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def gated(x: Tensor) -> Tensor:
    gate, value = x.chunk(2)
    return F.silu(gate) * value


class Reference:
    """One sequence, one token at a time, one mini-batch after another, as the equations say."""

    def __init__(self, model: EndToEnd, tokens: Tensor) -> None:
        self.model, self.tokens = model, tokens
        self.config = model.config.end_to_end
        self.x, _ = model.pass_layers(model.embedding(tokens)[None], None, model.prefix, Rows(), "on")
        self.layers = list(model.layers)[model.prefix :]
        # weights[level][layer] = up, down; the cache of a layer is the keys and values of every token so far
        levels = range(len(self.config.intervals))
        if self.config.learns == "feed_forward":
            self.weights = [[self.units(layer.feed_forward, level) for layer in self.layers] for level in levels]
        else:
            self.weights = [[[w * 1 for w in mlps[level].initial()] for mlps in model.prime] for level in levels]
        self.cache: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.layers]

    def units(self, feed_forward: Any, level: int) -> list[Tensor]:
        """The part of a feed-forward that is a level's: the first levels get one unit more where it does not divide."""
        hidden, levels = feed_forward.down.in_features, len(self.config.intervals)
        owner = sorted(unit % levels for unit in range(hidden))
        mine = [unit for unit in range(hidden) if owner[unit] == level]
        up, down = feed_forward.up.weight, feed_forward.down.weight
        return [up[[*mine, *(hidden + unit for unit in mine)]], down[:, mine]]

    def attend(self, layer: Any, x: Tensor, cache: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The last token's, [width]; its own keys and values are in the cache."""
        attention = layer.attention
        query = attention.query(layer.norm(x)).view(2, -1)
        seen = cache[-attention.config.window :]
        keys, values = (torch.stack(part) for part in zip(*seen, strict=True))  # [K, N, D]
        table = rotary_table(torch.arange(len(seen)), query.shape[-1], attention.config.rotary_base, x.dtype)
        turned = rotate(keys[None], table)[0]
        at_end = rotate(query[None, None], tuple(c[-1:] for c in table))[0, 0]
        scores = torch.cat([(at_end * turned).sum(-1), (query * attention.persistent.keys).sum(-1)])  # [K + P, N]
        weights = (scores / query.shape[-1] ** 0.5).softmax(0)
        out = (weights[..., None] * torch.cat([values, attention.persistent.values])).sum(0)
        return attention.output(out.flatten())

    def read(self, t: int, weights: Any, caches: Any) -> Tensor:
        """Logits after token t; extends the caches."""
        x = self.x[0, t]
        for j, layer in enumerate(self.layers):
            h = layer.norm(x)
            caches[j].append((layer.attention.key(h).view(2, -1), layer.attention.value(h).view(2, -1)))
            x = x + self.attend(layer, x, caches[j])
            x = self.learner(j, layer, x, [level[j] for level in weights])
        return self.model.head(self.model.norm(x))

    def learner(self, j: int, layer: Any, x: Tensor, weights: list[list[Tensor]]) -> Tensor:
        """The residual stream after what learns in layer j, and the feed-forward."""
        if self.config.learns == "feed_forward":
            return x + sum(down @ gated(up @ layer.feed_forward_norm(x)) for up, down in weights)
        for mlp, (up, down) in zip(self.model.prime[j], weights, strict=True):
            x = x + mlp.after(down @ gated(up @ mlp.before(x)))
        return x + layer.feed_forward(layer.feed_forward_norm(x))

    def gradient(self, first: int, weights: Any) -> list[list[list[Tensor]]]:
        """Of the mean loss of the mini-batch that begins at `first`, with respect to these weights."""
        variables = [[[w.view_as(w) for w in layer] for layer in level] for level in weights]
        caches = [list(cache) for cache in self.cache]
        losses = [F.cross_entropy(self.read(t, variables, caches), self.tokens[t + 1]) for t in range(first, first + b)]
        flat = [w for level in variables for layer in level for w in layer]
        found: Iterator[Tensor] = iter(torch.autograd.grad(sum(losses) / b, flat, create_graph=True))
        return [[[next(found) for _ in layer] for layer in level] for level in variables]

    def run(self) -> Tensor:
        """All logits, [T, V]."""
        logits, kept = [], [[] for _ in self.weights]
        for first in range(0, len(self.tokens), b):
            here = range(first, min(first + b, len(self.tokens)))
            gradient = self.gradient(first, self.weights) if first + b < len(self.tokens) else None
            logits += [self.read(t, self.weights, self.cache) for t in here]
            for level, interval in enumerate(self.config.intervals):
                if gradient is None or interval is None:
                    continue
                kept[level].append(gradient[level])
                if len(kept[level]) == interval:
                    self.step(level, kept[level])
                    kept[level] = []
        return torch.stack(logits)

    def step(self, level: int, gradients: Any) -> None:
        mean = [[sum(g[j][k] for g in gradients) / len(gradients) for k in (0, 1)] for j in range(len(self.layers))]
        norm = sum(g.square().sum() for layer in mean for g in layer) ** 0.5
        scale = self.config.theta * min(1.0, self.config.clip / norm)
        for j, layer in enumerate(mean):
            self.weights[level][j] = [w - scale * g for w, g in zip(self.weights[level][j], layer, strict=True)]

"""Continuum memory as it is written: one token at a time, gradients by autograd, no speed.

y_t = MLP_k( ... MLP_1(q_t))                                              2512.24695 Eq. 70
W_l <- W_l - sum over the period of theta_t grad loss_l(W_l; k_t, v_t)    Eq. 71, when the period of level l ends
with forgetting and a bounded step (README.md). Everything else in this folder is measured against this file.
"""

import torch
from torch.func import grad
from torch.nn import functional as F

from neuralmem import probe
from neuralmem.ops.continuum.levels import Form, Pair
from neuralmem.typing import Tensor, Tensors


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    alpha: Tensor,
    weights: Tensors,
    sums: Tensors,
    form: Form,
    *,
    chunk_size: int,
    write_mask: Tensor | None,
    initial: Tensors,
    reset: Tensor | None,
    checkpoint_every: int | None,
) -> tuple[Tensor, Tensors, Tensors]:
    """The token loop. Arguments as in `continuum_memory`; all tensors already in the state's dtype."""
    state, outputs = _State(form, chunk_size, (*weights, *sums)), []
    for t in range(q.shape[1]):
        if t % chunk_size == 0 and reset is not None:
            rows = reset[:, t, None, None, None]
            both = zip(initial, state.tensors(), strict=True)
            state = _State(form, chunk_size, tuple(torch.where(rows, a, b) for a, b in both))
        pairs = form.pairs(state.weights())
        outputs.append(_read(form, q[:, t], pairs)[-1])
        probe.observe("surprise", (_read(form, k[:, t], pairs)[-1] - v[:, t]).square().sum(-1))
        real = torch.ones_like(q[:, t, 0, 0], dtype=torch.bool) if write_mask is None else write_mask[:, t]
        state.write(k[:, t], v[:, t], theta[:, t], alpha[:, t], real)
        if (t + 1) % chunk_size == 0 or t + 1 == q.shape[1]:
            state.end_chunk()
    y = torch.stack(outputs, dim=1) if outputs else torch.empty_like(q)
    return y, state.weights(), state.tensors()[len(weights) :]


def _level(form: Form, i: int, x: Tensor, pair: Pair) -> Tensor:
    """One level of the chain, x [B, H, D] -> the same."""
    u = F.rms_norm(x, x.shape[-1:], form.gains[i], form.eps)
    gate, value = torch.einsum("bhij,bhj->bhi", pair[0].expand(len(x), -1, -1, -1), u).chunk(2, -1)
    return torch.einsum("bhij,bhj->bhi", pair[1].expand(len(x), -1, -1, -1), F.silu(gate) * value)


def _inside(form: Form, i: int, x: Tensor, pair: Pair) -> Tensors:
    """z, n(x) and s^2 of one level: s^2 is the squared norm of W_down diag(dz / dW_up n(x))."""
    u = F.rms_norm(x, x.shape[-1:], form.gains[i], form.eps)
    gate, value = torch.einsum("bhij,bhj->bhi", pair[0].expand(len(x), -1, -1, -1), u).chunk(2, -1)
    slope = torch.sigmoid(gate) + F.silu(gate) * (1 - torch.sigmoid(gate))
    moved = [pair[1] * x[..., None, :] for x in (value * slope, F.silu(gate))]
    return F.silu(gate) * value, u, sum((m.square().sum((-2, -1)) for m in moved), torch.zeros_like(gate[..., 0]))


def _curvature(seen: list[Tensors]) -> list[Tensor]:
    """2 max_t sum_s theta_s k_ts over the written tokens of a chunk, [B, H] for each matrix.

    k_ts is (s_t^2 + s_s^2) |u_t u_s| / 2 for up, |z_t z_s| for down.
    """
    largest = [torch.zeros_like(seen[0][0])] * 2
    for theta, z, u, reach in seen:
        rows = [torch.zeros_like(theta)] * 2
        for t, other, at, far in seen:
            rows[0] = rows[0] + t * (reach + far) / 2 * (u * at).sum(-1).abs()
            rows[1] = rows[1] + t * (z * other).sum(-1).abs()
        largest = [torch.maximum(a, torch.where(theta > 0, b, 0)) for a, b in zip(largest, rows, strict=True)]
    return [2 * x for x in largest]


def _read(form: Form, x: Tensor, pairs: list[Pair]) -> list[Tensor]:
    """What is read after each level, then the answer; [B, H, D] each."""
    h, seen = x, []
    for i, pair in enumerate(pairs):
        out = _level(form, i, x if form.mix is not None else h, pair)
        h = h + out
        seen.append(x + out if form.mix is not None else h)
    answer = h if form.mix is None else x + sum(w * (y - x) for w, y in zip(form.mix, seen, strict=True))
    return [y if form.residual else y - x for y in (*seen, answer)]


class _State:
    """Weights and sums by level; sums are gradient of up, of down, tokens, forgetting, curvatures."""

    def __init__(self, form: Form, size: int, tensors: Tensors) -> None:
        self.form, self.size, rest = form, size, list(tensors)
        self.learning = [i for i, period in enumerate(form.periods) if period is not None]
        self.pair: dict[int, Pair] = {i: (rest.pop(0), rest.pop(0)) for i in self.learning}
        self.sums: dict[int, list[Tensor]] = {}
        self.seen: dict[int, list[Tensors]] = {i: [] for i in self.learning}  # of a chunk's tokens: theta, z, n(x), s^2
        for i in self.learning:
            if i in form.late(size):
                up, down, tally = rest.pop(0), rest.pop(0), rest.pop(0)
                self.sums[i] = [up, down, *(x[..., None] for x in tally.unbind(-1))]
            else:
                self.sums[i] = self.zeros(i)

    def zeros(self, i: int) -> list[Tensor]:
        one = self.pair[i][0][..., :1, :1]
        return [torch.zeros_like(x) for x in (*self.pair[i], one, one, one, one)]

    def weights(self) -> Tensors:
        return tuple(x for i in self.learning for x in self.pair[i])

    def tensors(self) -> Tensors:
        late = [self.sums[i] for i in self.form.late(self.size)]
        return (*self.weights(), *(x for s in late for x in (s[0], s[1], torch.cat(s[2:], dim=-1))))

    def write(self, k: Tensor, v: Tensor, theta: Tensor, alpha: Tensor, real: Tensor) -> None:
        """Add one token [B, H, ...] to the sums of every level."""
        pairs, form = self.form.pairs(self.weights()), self.form
        before = [torch.zeros_like(k), *(y - k if form.residual else y for y in _read(form, k, pairs))]
        limit = form.clip * k.shape[-1] ** 0.5
        for at, i in enumerate(self.learning):
            chained = before[i] if form.mix is None else torch.zeros_like(k)

            def error(pair: Pair, i: int = i, chained: Tensor = chained) -> Tensor:
                y = chained + _level(form, i, k + chained, pair)
                return (k + y if form.residual else y) - v

            def loss(pair: Pair) -> Tensor:
                length = error(pair).square().sum(-1).clamp(min=1e-24).sqrt()
                return torch.where(length > limit, 2 * limit * length - limit**2, length**2).sum()

            up, down = grad(loss)(self.pair[i])
            t = theta[..., at]
            self.seen[i].append((t * real[:, None], *_inside(form, i, k + chained, self.pair[i])))
            new = [x[..., None, None] for x in (torch.ones_like(t), alpha[..., at], 0 * t, 0 * t)]
            new = [t[..., None, None] * up, t[..., None, None] * down, *new]
            rows = real[:, None, None, None]
            self.sums[i] = [torch.where(rows, a + b, a) for a, b in zip(self.sums[i], new, strict=True)]

    def end_chunk(self) -> None:
        """Update every level whose period has no room for another chunk, the slowest first."""
        form, slower, anew = self.form, self.form.first[-1], torch.tensor(False)
        for i in self.learning:
            bounds = zip(self.sums[i][-2:], _curvature(self.seen[i]), strict=True)
            self.sums[i][-2:] = [a + b[..., None, None] for a, b in bounds]
            self.seen[i] = []
        for i in reversed(range(len(form.periods))):
            base = slower if form.nested else form.first[i]
            slower, period = base, form.periods[i]
            if period is None:
                continue
            *gradient, tokens, forget, of_up, of_down = self.sums[i]
            due = (tokens > 0) & (tokens + self.size > period)
            both = zip(self.pair[i], base, gradient, (of_up, of_down), strict=True)
            new = [torch.where(due, w - forget * (w - b) - g / (1 + c), w) for w, b, g, c in both]
            if form.nested:
                new, due = [torch.where(anew, b, w) for w, b in zip(new, base, strict=True)], due | anew
                anew = due
            self.pair[i] = slower = (new[0], new[1])
            self.sums[i] = [torch.where(due, torch.zeros_like(x), x) for x in self.sums[i]]

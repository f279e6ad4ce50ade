"""Self-modifying Titans a chunk at a time, exact: per layer one linear recurrence, solved as in `delta_descent`.

Everything that the memories make of a chunk's tokens comes from the chunk's first weights, so each layer's recurrence
is known and linear: delta_descent with the layer's input as key and minus its gradient as value. Derivation: README.md.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from neuralmem import probe
from neuralmem.ops.chunk_loop import Stepped, run_chunks
from neuralmem.ops.decay import decay_products
from neuralmem.ops.neural_memory.mlp import ACTIVATIONS
from neuralmem.ops.self_modifying.call import Call
from neuralmem.typing import Tensor, Tensors


class Decay(NamedTuple):
    """What is left of the chunk's first weights, [B, 1, H, C, 1], and of each token's write, [B, 1, H, C, C]."""

    first: Tensor
    written: Tensor

    def one_token_earlier(self) -> "Decay":
        """The same before a token's own decay and write."""
        first = torch.cat([torch.ones_like(self.first[..., :1, :]), self.first[..., :-1, :]], dim=-2)
        return Decay(first, F.pad(self.written[..., :-1, :], (0, 0, 1, 0)))


class Layer(NamedTuple):
    """What a chunk writes to one layer of all memories: W_t = first_t W - sum_s written_ts rate_s error_s input_s^T."""

    weights: Tensor  # [B, 5, H, D_out, D_in]
    inputs: Tensor  # [B, 5 or 1, H, C, D_in]
    errors: Tensor  # [B, 5, H, C, D_out]
    rate: Tensor  # [B, 5 or 1, H, 1, C]

    def memory(self) -> "Layer":
        """The last box alone, which is the one that is read."""
        return Layer(*(x[:, -1:] for x in self))

    def read(self, x: Tensor, decay: Decay) -> Tensor:
        """W_t x_t for every token: [B, 1 or 5, H, C, D_in] -> [..., D_out]."""
        scores = decay.written * self.rate * (x @ self.inputs.mT)
        return decay.first * (x @ self.weights.mT) - scores @ self.errors

    def last(self, decay: Decay) -> Tensor:
        """The weights after the chunk."""
        row = (decay.written[..., -1:, :] * self.rate).mT
        return decay.first[..., -1:, :] * self.weights - (row * self.errors).mT @ self.inputs


def chunked(call: Call) -> tuple[Tensor, Tensors]:
    """The update in chunks. y [B, H, T, D], weights [B, 5, H, D_out, D_in] after the last token."""
    total = call.q.shape[2]
    if total == 0:
        return torch.empty_like(call.q), call.weights
    # Split once: the gradient of a slice is as long as what it was cut from.
    parts = [x.split(call.chunk_size, dim=2) for x in (call.q, call.key_input, call.x)]

    def step(start: int, stop: int, weights: Tensors) -> Stepped:
        q, key_input, x = (part[start // call.chunk_size] for part in parts)
        write = None if call.write_mask is None else call.write_mask[:, None, start:stop]
        return _chunk(q, key_input, x, write, call.restart(start, weights), call)

    return run_chunks(step, call.weights, total, call.chunk_size, call.checkpoint_every)


def _chunk(q: Tensor, key_input: Tensor, x: Tensor, write: Tensor | None, weights: Tensors, call: Call) -> Stepped:
    """q, key_input, x: [B, H, C, D]; write: Bool [B, 1, C] or None -> y [B, H, C, D], weights."""
    boxes = call.boxes
    made = boxes.make(key_input, x, weights)
    theta, keep = made.theta, 1 - made.alpha
    _observe(theta / boxes.theta_max, theta, made.alpha)
    if write is not None:
        theta, keep = torch.where(write, theta, 0), torch.where(write, keep, 1)
    inputs, deltas, error = boxes.form.backpropagate(
        weights, made.k[:, None], boxes.target(made.v, weights), lambda error: 2 * error, torch.matmul
    )
    probe.observe("surprise", error[:, -1].square().sum(-1), tokens=2)
    decay = Decay(keep.cumprod(-1)[:, None, ..., None], decay_products(keep)[:, None])
    layers = [_layer(*layer, theta[:, None], decay, call.dgd) for layer in zip(weights, inputs, deltas, strict=True)]
    act, _ = ACTIVATIONS[boxes.form.activation]
    u = q[:, None]
    for i, layer in enumerate(layers):
        u = layer.memory().read(act(u) if i else u, decay)
    return boxes.recall.finish(u[:, 0], q), tuple(layer.last(decay) for layer in layers)


def _layer(weights: Tensor, h: Tensor, delta: Tensor, theta: Tensor, decay: Decay, dgd: bool) -> Layer:
    """One layer of all memories. theta: [B, 1, H, C]."""
    if not dgd:
        return Layer(weights, h, delta, theta[..., None, :])
    layer = Layer(weights, h, delta, (theta / (1 + theta * h.square().sum(-1)))[..., None, :])
    before = decay.one_token_earlier()
    # error_t = W_{t-1} h_t + delta_t, which depends on the errors before it through the inputs alone.
    system = (before.written * layer.rate * (h @ h.mT)).tril(-1)
    right = before.first * (h @ weights.mT) + delta
    system = system.expand(*right.shape[:-2], *system.shape[-2:])
    return layer._replace(errors=torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True))


def _observe(write: Tensor, theta: Tensor, alpha: Tensor) -> None:
    probe.observe_saturation("theta", write)
    probe.observe_saturation("alpha", alpha)
    for name, gate in (("write", write), ("theta", theta), ("alpha", alpha)):
        probe.observe(name, gate, tokens=2)  # always: a checkpoint compares what forward and backward save

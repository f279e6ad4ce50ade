"""TNT: one memory of the whole text in large chunks, and local ones in small chunks that start anew at every shard.

o_t = f(V, q_t) + sum_i f(W^i_t, unit(Pi_t q_t))                                              TNT (2511.07343) 8.1
V   <- V - sum_t theta_t grad |f(V, k_t) - v_t|^2        over a global chunk, read as of the chunk's start
W^i <- W^i - theta_t grad |f(W^i, k_t) - v_t|^2          in chunks of their own, W^i = W^i_init at every shard start
Pi_t = sum_s k_s k_s^T / |k_s|^2                         over the shard's tokens up to t

Special: plain gradient descent, no momentum and no forgetting. f(x) = x + LN(MLP(x)) as in Titans, a residual in every
memory: what is read holds the raw query once and the projected one once per local memory, before the norm on the way
out. Pi_t q_t grows with the shard, so it gets the raw query's length, one. It is a plain sum, so the first token of a
document, whose key may be zero, and a frozen memory, in which no key was seen, ask the local memories for M(0).
A shard's start replaces the local weights when its first chunk is written, so that between the two the last shard's can
still be read.

The grid is that of the largest local chunk, and everything is counted in its chunks: one that is closed early, as MAC
does, counts as one. theta = theta_max sigmoid(.) over the memory's own chunk, with a gate per memory.

Stage 2 of the paper goes on training with smaller local chunks. No parameter's shape depends on a chunk or a shard:
load a checkpoint, build a model of its config with another memory.tnt.local_chunks of the same length (write
global_chunk and shard out, since what is not given follows the largest local chunk), and load the state_dict of the one
into the other. Local steps per token then grow as the chunks shrink.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from neuralmem import probe
from neuralmem.config import MemoryConfig
from neuralmem.errors import UserError
from neuralmem.memory._chunks import Fast
from neuralmem.memory._memory import MemoryState
from neuralmem.memory._tnt import Schedule, at_tokens, read_and_gather, schedule
from neuralmem.memory.titans import Titans
from neuralmem.modules.gate_map import GateMap
from neuralmem.modules.stream import Rows
from neuralmem.ops import evaluate_memory, neural_memory, query_projection
from neuralmem.ops.neural_memory.call import Norm, prepare
from neuralmem.ops.unit import unit
from neuralmem.typing import Tensor, Tensors


class TNT(Titans):
    """A global memory and `memory.tnt.local_chunks` local ones. memory.momentum, eta_bias and alpha_bias do not apply.

    Of a state, `weights` are the global memory's, then those of every local one, then Pi; `momentum` is the global
    chunk's sum of gradients so far, times theta, and a count of chunks.
    """

    uses = frozenset({"depth", "expansion", "activation", "residual", "norm", "theta_max", "tnt"})
    forgets = False

    def __init__(self, width: int, config: MemoryConfig) -> None:
        tnt = config.tnt
        size = config.chunk_size
        self.local_chunks = tnt.local_chunks or ([size // 2, size] if size % 2 == 0 else [size])
        unit_size = max(self.local_chunks)
        self.global_chunk, self.shard = tnt.global_chunk or 2 * unit_size, tnt.shard or 4 * unit_size
        for name, tokens in (("global_chunk", self.global_chunk), ("shard", self.shard)):
            if tokens % unit_size:
                raise UserError(
                    f"memory.tnt.{name} is {tokens}; it must be a multiple of the largest local chunk, {unit_size}"
                )
        super().__init__(width, replace(config, momentum=False, chunk_size=unit_size))
        locals_, H, D = len(self.local_chunks), self.heads, self.head_width
        shapes = [w.shape for w in self.weights] * locals_
        self.local_weights = nn.ParameterList(torch.randn(shape) / shape[-1] ** 0.5 for shape in shapes)
        self.gate_map = GateMap(width, H, [config.theta_bias] * (1 + locals_))
        self.local_gain = nn.Parameter(torch.ones(locals_, H, D)) if config.norm else None
        self.local_bias = nn.Parameter(torch.zeros(locals_, H, D)) if config.norm else None

    def initial(self) -> Fast:
        weights = tuple(self.weights)
        projection = weights[0].new_zeros(self.heads, self.head_width, self.head_width)
        count = weights[0].new_zeros(1, 1, 1)
        return (*weights, *self.local_weights, projection), (*map(torch.zeros_like, weights), count)

    def gates(self, x: Tensor) -> Tensors:
        every = torch.stack(self.gate_map(x))
        probe.observe_saturation("theta", every)
        probe.observe("write", every.movedim(0, -1), tokens=1)
        chunks = every.new_tensor([self.global_chunk, *self.local_chunks])
        every = self.theta_max * every / chunks[:, None, None, None]
        probe.observe("theta", every.movedim(0, -1), tokens=1)
        return every.unbind()

    def update(
        self, q: Tensor, written: Tensors, fast: Fast, write_mask: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, Fast]:
        first, kept = self.fast(len(q)), len(self.weights)
        plan = self._plan(q, fast, write_mask, reset)
        k, v, theta, *_ = written
        call = prepare(
            q,
            k.to(q.dtype),
            v.to(q.dtype),
            theta,
            None,
            torch.zeros_like(theta),
            fast[0][:kept],
            None,
            chunk_size=self.config.chunk_size,
            write_mask=write_mask,
            checkpoint_every=self.config.checkpoint_every,
            **self._form,
        )
        start = first[0][:kept], first[1][:kept]
        y, (weights, gathered) = read_and_gather(call, (fast[0][:kept], fast[1][:kept]), start, plan)
        local, others = self._read_local(q, written, fast[0][kept:], write_mask, plan)
        period = math.lcm(self.shard, self.global_chunk) // self.config.chunk_size  # what a float can count exactly
        count = (plan.total % period)[:, None, None, None]
        return (y + local).to(call.operand), ((*weights, *others), (*gathered, count))

    def read_unfinished(self, q: Tensor, written: Tensors, fast: Fast, write_mask: Tensor) -> Tensor:
        # A chunk that has not ended writes nothing that the global memory could be asked for.
        padded = F.pad(q, (0, 0, 0, 0, write_mask.shape[1] - 1, 0))
        plan, kept = self._plan(padded, fast, write_mask, None), len(self.weights)
        local, _ = self._read_local(padded, written, fast[0][kept:], write_mask, plan)
        return (evaluate_memory(q, fast[0][:kept], **self._form) + local[:, -1:]).to(q.dtype)

    def evaluate(self, q: Tensor, weights: Tensors) -> Tensor:
        projected = unit(torch.einsum("bhij,bthj->bthi", weights[-1].to(q.dtype), q)).to(q.dtype)
        reads = [evaluate_memory(q if i == 0 else projected, w, **form) for i, (w, form) in self._members(weights)]
        return torch.stack(reads).sum(0)

    def recall_error(self, x: Tensor, state: MemoryState) -> Tensor:
        """The mean of |f(k) - v|^2 over tokens and memories, each of which lowers its own."""
        _, (keys, values, *_), _ = self.project(x, self.init_state(len(x)).convolution, Rows())
        members = self._members(self.close(state).weights)
        errors = [(evaluate_memory(keys, w, **form) - values).square().sum(-1).mean() for _, (w, form) in members]
        return torch.stack(errors).mean()

    def _plan(self, q: Tensor, fast: Fast, write_mask: Tensor | None, reset: Tensor | None) -> Schedule:
        size = self.config.chunk_size
        count = fast[1][-1][:, 0, 0, 0].detach()
        return schedule(count, write_mask, reset, q.shape[1], size, self.shard // size, self.global_chunk // size)

    def _read_local(
        self, q: Tensor, written: Tensors, fast: Tensors, write_mask: Tensor | None, plan: Schedule
    ) -> tuple[Tensor, Tensors]:
        """What the local memories say, added up, and their weights and Pi after the last token."""
        k, v, _, *thetas = written
        k, v, size = k.to(q.dtype), v.to(q.dtype), self.config.chunk_size
        reset = at_tokens(plan.shards, q.shape[1], size)
        options: dict[str, Any] = {"write_mask": write_mask, "reset": reset}
        options["checkpoint_every"] = self.config.checkpoint_every
        asked, projection = query_projection(q, k, fast[-1], chunk_size=size, **options)
        asked, reads = unit(asked).to(q.dtype), []
        after: Tensors = ()
        first = dict(self._members(self.fast(len(q))[0]))
        current = dict(self._members((*self.fast(len(q))[0][: len(self.weights)], *fast)))
        for i, (chunk, theta) in enumerate(zip(self.local_chunks, thetas, strict=True), start=1):
            weights, form = current[i]
            with probe.inside(self.local_weights):  # apart from the global one's: at a shard's start all is new to them
                y, weights, _ = neural_memory(
                    asked,
                    k,
                    v,
                    theta,
                    None,
                    torch.zeros_like(theta),
                    weights,
                    None,
                    chunk_size=chunk,
                    initial=(first[i][0], None),
                    backend=self.config.backend,
                    **options,
                    **form,
                )
            reads.append(y)
            after = (*after, *weights)
        return torch.stack(reads).sum(0), (*after, projection)

    def _members(self, weights: Tensors) -> list[tuple[int, tuple[Tensors, dict[str, Any]]]]:
        """Weights and form of every memory: 0 is the global one."""
        count, members = len(self.weights), []
        for i in range(1 + len(self.local_chunks)):
            form = self._form
            if i and self.local_gain is not None and self.local_bias is not None:
                norm: Norm = self.local_gain[i - 1], self.local_bias[i - 1]
                form = {**form, "norm": norm}
            members.append((i, (weights[i * count : (i + 1) * count], form)))
        return members

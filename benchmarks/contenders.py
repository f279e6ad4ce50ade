"""Who races in op.py: neuralmem's backends and titans-pytorch, as bare ops and as whole memory layers, for equal work.

Choices, the same for every size:
* memory: an MLP of two matrices, d -> e d -> d, with LayerNorm on its output and a residual, in neuralmem `norm` and
  `residual`, in titans-pytorch its own ResidualNorm; momentum of first order; no batch dimension is shared.
* neuralmem's layer: no convolution and no output gate, which titans-pytorch has not; its SiLU and unit length of
  queries and keys, and RMSNorm of what is read, stay.
* titans-pytorch's layer: RMSNorm of its input and its gate per head stay, they are its defaults; `qk_rmsnorm`,
  `post_rmsnorm`, `max_grad_norm`, per-layer rates and everything else that is optional is off, so it is the fastest
  form of it (with the first and third of these it took 3 to 9% longer). Its activation is exact GELU, neuralmem's
  SiLU; with SiLU titans-pytorch took the same time within 4%. The accelerated scan is on where there is a GPU.
* `batch_size=chunk_size` moves its gradient anchor every chunk, as neuralmem does; its default, None, takes every
  gradient of a call at the call's first weights and is another algorithm. It decays and keeps momentum per chunk,
  neuralmem per token.
* as a bare op its projections, norms and gate per head are identities and q = k = v; its maps from input to rates
  stay (0.3% of the work), since it cannot be called without.
* gates of the bare op are about those of an untrained layer. eta near 0.25 has powers that are denormal numbers from 63
  tokens on; an implementation that computes with these instead of zeros pays for it, here as in a layer.
"""

import functools
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuralmem.config import MemoryConfig
from neuralmem.errors import UserError
from neuralmem.memory.titans import Titans
from neuralmem.ops import neural_memory

Run = Callable[[], Any]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Unavailable(Exception):
    """A contender that cannot run here, and why."""


@dataclass(frozen=True)
class Shape:
    """Sizes of one race.

    Args:
        batch: texts
        total: tokens of each
        heads: memory heads
        width: of one head, d
        expansion: hidden width in head widths, e
        chunk: tokens per gradient anchor
    """

    batch: int
    total: int
    heads: int
    width: int
    expansion: int
    chunk: int

    def flops(self, backward: bool) -> int:
        """Floating-point operations of the algorithm, not of an implementation: recomputation does not count.

        Forward is 22 e d^2 + 4 C d (1 + e) per token and head (neuralmem/ops/neural_memory/README.md), products with a
        triangular matrix counted in full; backward is counted as twice forward.
        """
        d, e = self.width, self.expansion
        forward = 22 * e * d * d + 4 * self.chunk * d * (1 + e)
        return self.batch * self.total * self.heads * forward * (3 if backward else 1)

    @property
    def every(self) -> int:
        """Chunks per recomputed group for which what is held is least."""
        return max(1, math.isqrt(self.total // self.chunk))


@dataclass(frozen=True)
class Contender:
    """One way of doing it.

    Args:
        kind: a backend of neuralmem, or "titans-pytorch"
        bf16: operands in bfloat16
        grouped: with `checkpoint_every` = sqrt(chunks)
        anchored: for titans-pytorch, batch_size=chunk_size rather than its default
    """

    kind: str
    bf16: bool = False
    grouped: bool = False
    anchored: bool = True

    @property
    def name(self) -> str:
        marks = [", bf16"] * self.bf16 + [", grouped"] * self.grouped + [" (default)"] * (not self.anchored)
        return self.kind + "".join(marks)

    def check(self) -> None:
        """Raise Unavailable if it cannot run here."""
        if self.kind == "titans-pytorch":
            titans_pytorch()
        else:
            check_backend(self.kind, self.bf16)


@functools.cache
def check_backend(kind: str, bf16: bool) -> None:
    """Raise Unavailable, with the op's own words, if a backend does not run on DEVICE."""
    try:
        forward(bare(Contender(kind, bf16), Shape(1, 16, 1, 64, 1, 16)))()
    except UserError as error:
        raise Unavailable(str(error)) from error


@functools.cache
def titans_pytorch() -> Any:
    """The package, or Unavailable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import titans_pytorch
    except ImportError as error:
        raise Unavailable(f"titans-pytorch cannot be imported ({error}): pip install 'neuralmem[bench]'") from error
    return titans_pytorch


@dataclass(frozen=True)
class Job:
    """Something to run forward, and backward from `dy` to `leaves`."""

    read: Callable[[], Tensor]
    leaves: list[Tensor]
    dy: Tensor


def forward(job: Job) -> Run:
    return torch.no_grad()(job.read)


def both(job: Job) -> Run:
    """Forward and backward. Some leaves have no gradient: titans-pytorch has parameters that it replaces by others."""
    return lambda: torch.autograd.grad(job.read(), job.leaves, job.dy, allow_unused=True)


def bare(contender: Contender, shape: Shape) -> Job:
    """The update alone."""
    torch.manual_seed(0)
    B, T, H, D, dtype = *sizes(shape), torch.bfloat16 if contender.bf16 else torch.float32
    if contender.kind == "titans-pytorch":
        memory = peer(contender, shape, pre_rmsnorm=False)
        memory.to_queries = memory.to_keys = memory.to_values = memory.combine_heads = nn.Identity()
        memory.retrieve_gate = None
        return module_job(memory, shape)
    q, k, v = (F.normalize(torch.randn(B, T, H, D, device=DEVICE), dim=-1).to(dtype) for _ in range(3))
    theta, eta, alpha = (torch.rand(B, T, H, device=DEVICE) * scale for scale in (0.8 / shape.chunk, 0.5, 0.01))
    hidden = shape.expansion * D
    weights = tuple(torch.randn(B, H, *s, device=DEVICE) / s[1] ** 0.5 for s in ((hidden, D), (D, hidden)))
    norm = (torch.ones(H, D, device=DEVICE), torch.zeros(H, D, device=DEVICE))
    momentum = tuple(map(torch.zeros_like, weights))
    leaves = [x.requires_grad_() for x in (q, k, v, theta, eta, alpha, *weights, *norm)]

    def read() -> Tensor:
        y, _, _ = neural_memory(
            *(q, k, v, theta, eta, alpha, weights, momentum),
            chunk_size=shape.chunk,
            norm=norm,
            checkpoint_every=shape.every if contender.grouped else None,
            backend=contender.kind,
        )
        return y

    return Job(read, leaves, torch.randn(B, T, H, D, device=DEVICE).to(dtype))


def layer(contender: Contender, shape: Shape) -> Job:
    """A whole memory layer: projections, gates, update, way out."""
    return module_job(build_layer(contender, shape), shape, contender.bf16)


def build_layer(contender: Contender, shape: Shape) -> nn.Module:
    torch.manual_seed(0)
    if contender.kind == "titans-pytorch":
        return peer(contender, shape)
    config = MemoryConfig(
        heads=shape.heads,
        head_width=shape.width,
        depth=2,
        expansion=shape.expansion,
        chunk_size=shape.chunk,
        convolution=1,
        induction=False,
        output_gate=False,
        checkpoint_every=shape.every if contender.grouped else None,
        backend=contender.kind,  # type: ignore[arg-type]
    )
    return Titans(shape.heads * shape.width, config).to(DEVICE)


def peer(contender: Contender, shape: Shape, **options: Any) -> Any:
    """titans_pytorch.NeuralMemory of the same sizes."""
    package, D = titans_pytorch(), shape.width
    memory = package.NeuralMemory(
        dim=shape.heads * D,
        dim_head=D,
        heads=shape.heads,
        chunk_size=shape.chunk,
        batch_size=shape.chunk if contender.anchored else None,
        model=package.MemoryMLP(D, depth=2, expansion_factor=float(shape.expansion)),
        momentum=True,
        default_step_transform_max_lr=0.1,
        use_accelerated_scan=DEVICE.type == "cuda",
        **options,
    )
    return memory.to(DEVICE)


def module_job(module: nn.Module, shape: Shape, bf16: bool = False) -> Job:
    x, dtype = tokens(shape).requires_grad_(), torch.bfloat16 if bf16 else torch.float32

    def read() -> Tensor:
        with autocast(bf16):
            return module(x)[0]

    return Job(read, [x, *module.parameters()], torch.randn(x.shape, device=DEVICE).to(dtype))


def autocast(bf16: bool) -> torch.autocast:
    """How a layer gets operands in bfloat16."""
    return torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=bf16)


def tokens(shape: Shape) -> Tensor:
    return torch.randn(shape.batch, shape.total, shape.heads * shape.width, device=DEVICE)


def sizes(shape: Shape) -> tuple[int, int, int, int]:
    return shape.batch, shape.total, shape.heads, shape.width


def matmul(size: int, dtype: torch.dtype) -> Run:
    """A large square matrix product."""
    a, b = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(2))
    return lambda: a @ b


def runnable(contenders: Iterable[Contender]) -> tuple[list[Contender], dict[str, str]]:
    """Those that can run here, and for the others why not."""
    able, reasons = [], {}
    for contender in contenders:
        try:
            contender.check()
        except Unavailable as error:
            reasons[contender.kind] = str(error)
        else:
            able.append(contender)
    return able, reasons

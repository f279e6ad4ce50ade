"""The CUDA kernels on a processor: the entry points of cuda/launchers.h, emulated, called on torch tensors.

Every tensor ends where an unmapped page begins and starts as NaN, so that what is not written, or read past its end,
shows. As a program, `python -m tests.native.emulated barrier 3` (or `lane`) breaks something on purpose.
"""

import ctypes
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from math import ceil
from typing import Any

import torch
from torch import Tensor

from neuralmem import build, library, toolchain
from neuralmem.ops import neural_memory

SOURCES = library.sources()
FLAGS = ["-O1", "-std=c++17", "-Wall", "-shared", "-fPIC", "-fvisibility=hidden"]
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "identity")
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

Pointers = ctypes.c_void_p * 8
Tensors = list[Tensor]


class Problem(ctypes.Structure):
    """nm_problem."""

    _fields_ = (
        *[(name, ctypes.c_int64) for name in ("B", "T", "H", "D", "layers")],
        ("widths", ctypes.c_int64 * 9),
        *[(name, ctypes.c_int64) for name in ("chunk_size", "keep_every")],
        *[(name, ctypes.c_int32) for name in ("dtype", "activation", "residual")],
        *[(name, ctypes.c_void_p) for name in ("q", "k", "v", "theta", "eta", "alpha")],
        *[(name, Pointers) for name in ("weights", "momentum", "first_weights", "first_momentum")],
        *[(name, ctypes.c_void_p) for name in ("gain", "bias", "write_mask", "reset")],
    )


class Forward(ctypes.Structure):
    """nm_forward."""

    _fields_ = (("y", ctypes.c_void_p), ("weights", Pointers), ("momentum", Pointers), ("boundaries", ctypes.c_void_p))


class Backward(ctypes.Structure):
    """nm_backward."""

    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("boundaries", "dy")],
        *[(name, Pointers) for name in ("dweights_end", "dmomentum_end")],
        *[(name, ctypes.c_void_p) for name in ("dq", "dk", "dv", "dtheta", "deta", "dalpha")],
        *[(name, Pointers) for name in ("dweights", "dmomentum", "dfirst_weights", "dfirst_momentum")],
        *[(name, ctypes.c_void_p) for name in ("dgain", "dbias")],
    )


@cache
def emulator() -> ctypes.CDLL:
    """The library, compiled when its sources have changed."""
    compiler, version = toolchain.find_compiler()
    files = [f for folder in ("", "gpu", "tests") for f in sorted((SOURCES / folder).glob("*.h"))]
    files.append(SOURCES / "tests" / "emulated.cpp")
    state = library.digest(files, SOURCES) + version + " ".join(FLAGS)
    output = build.work_folder() / "tests" / "libnm_emulated.so"
    stamp = output.with_suffix(".stamp")
    output.parent.mkdir(parents=True, exist_ok=True)
    with build.locked(output.with_suffix(".lock")):  # two processes of pytest compile it once
        if not (output.exists() and stamp.exists() and stamp.read_text() == state):
            fresh = output.with_name(f"{output.name}.{os.getpid()}")
            command = [*compiler, *FLAGS, str(SOURCES / "tests" / "emulated.cpp"), "-o", str(fresh)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
            fresh.replace(output)
            stamp.write_text(state)
    loaded = ctypes.CDLL(str(output))
    for name in ("nm_cuda_forward_workspace", "nm_cuda_backward_workspace", "emulated_faults"):
        getattr(loaded, name).restype = ctypes.c_int64
    loaded.emulated_take.restype = ctypes.c_void_p
    loaded.nm_cuda_reason.restype = ctypes.c_char_p
    return loaded


class Memory:
    """Tensors in guarded memory, which live as long as this does."""

    def __init__(self) -> None:
        self.owners: list[ctypes.c_void_p] = []

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        count = max(1, int(torch.Size(shape).numel())) * dtype.itemsize
        owner = ctypes.c_void_p()
        address = emulator().emulated_take(ctypes.c_int64(count), ctypes.byref(owner))
        self.owners.append(owner)
        buffer = (ctypes.c_char * count).from_address(address)
        return torch.frombuffer(buffer, dtype=dtype)[: torch.Size(shape).numel()].view(shape)

    def like(self, x: Tensor) -> Tensor:
        return self.empty(x.shape, x.dtype)

    def copy(self, x: Tensor) -> Tensor:
        return self.like(x).copy_(x)

    def __del__(self) -> None:
        for owner in self.owners:
            emulator().emulated_give_back(owner)


def pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.untyped_storage().data_ptr()  # x.data_ptr() is 0 without elements


def pointers(tensors: Sequence[Tensor]) -> Any:
    return Pointers(*map(pointer, tensors))


@dataclass
class Example:
    """Arguments of the op with the gradients of what it returns; tensors by name, states numbered: weights0, ..."""

    tensors: dict[str, Tensor]
    dy: Tensor
    dend: dict[str, Tensor]  # of weights0, weights1, momentum0, momentum1 after the last token
    options: dict[str, Any]
    masks: dict[str, Tensor] = field(default_factory=dict)

    def states(self, name: str) -> tuple[Tensor, ...]:
        return tuple(self.tensors[f"{name}{i}"] for i in (0, 1) if f"{name}{i}" in self.tensors)

    def to(self, dtype: torch.dtype) -> "Example":
        tensors = {name: x.to(dtype) for name, x in self.tensors.items()}
        dend = {name: x.to(dtype) for name, x in self.dend.items()}
        return Example(tensors, self.dy.to(dtype), dend, self.options, self.masks)

    def autograd(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Outputs and gradients by `chunked`, in the example's own dtype."""
        leaves = Example(
            {name: x.clone().requires_grad_() for name, x in self.tensors.items()}, self.dy, {}, {}, self.masks
        )
        x = leaves.tensors
        rest: dict[str, Any] = {**self.masks, **self.options}
        if "reset" in rest:
            rest["initial"] = leaves.states("first_weights"), leaves.states("first_momentum") or None
        if "gain" in x:
            rest["norm"] = x["gain"], x["bias"]
        weights, momentum = leaves.states("weights"), leaves.states("momentum") or None
        gates = x["theta"], x.get("eta"), x["alpha"]
        y, weights, momentum = neural_memory(
            x["q"], x["k"], x["v"], *gates, weights, momentum, backend="chunked", **rest
        )
        outputs = {"y": y, "weights0": weights[0], "weights1": weights[1]}
        outputs |= {f"momentum{i}": s for i, s in enumerate(momentum or ())}
        loss = sum(((out * {**self.dend, "y": self.dy}[name]).sum() for name, out in outputs.items()), torch.zeros(()))
        gradients = torch.autograd.grad(loss, list(x.values()))
        return {name: out.detach() for name, out in outputs.items()}, dict(zip(x, gradients, strict=True))

    def emulated(self, keep_every: int = 1, schedule: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The same by the CUDA kernels."""
        memory, library = Memory(), emulator()
        library.emulated_schedule(schedule)
        given = {name: memory.copy(x) for name, x in {**self.tensors, **self.masks}.items()}
        example = Example(given, memory.copy(self.dy), {n: memory.copy(x) for n, x in self.dend.items()}, self.options)
        problem = self._problem(example, keep_every)
        reason = library.nm_cuda_reason(ctypes.byref(problem), 80)
        assert reason is None, reason

        def workspace(size: int) -> ctypes.c_void_p:
            return ctypes.c_void_p(memory.empty((size,), torch.uint8).data_ptr())

        outputs = {"y": memory.like(given["q"])}
        outputs |= {name: memory.like(given[name]) for name in self.dend}
        weights, momentum = ([x for n, x in outputs.items() if n.startswith(kind)] for kind in ("weights", "momentum"))
        chunks = ceil(problem.T / problem.chunk_size)
        numbers = sum(given[name].shape[2] * given[name].shape[3] for name in self.dend)
        boundaries = memory.empty((ceil(chunks / keep_every), problem.B, problem.H, numbers), torch.float32)
        forward = Forward(pointer(outputs["y"]), pointers(weights), pointers(momentum), pointer(boundaries))
        space = workspace(library.nm_cuda_forward_workspace(ctypes.byref(problem)))
        assert library.nm_cuda_forward(ctypes.byref(problem), ctypes.byref(forward), space, None) == 0

        gradients = {name: memory.like(x) for name, x in given.items() if name not in self.masks}
        for name in {"gain", "bias"} & gradients.keys():
            gradients[name] = memory.empty((problem.B, *gradients[name].shape), torch.float32)
        if "reset" not in self.masks:
            gradients = {name: x for name, x in gradients.items() if not name.startswith("first_")}
        backward = Backward(pointer(boundaries), pointer(example.dy))
        for name in ("q", "k", "v", "theta", "eta", "alpha", "gain", "bias"):
            setattr(backward, f"d{name}", pointer(gradients.get(name)))
        for kind in ("weights", "momentum"):
            setattr(backward, f"d{kind}_end", pointers([x for n, x in example.dend.items() if n.startswith(kind)]))
            for name in (kind, f"first_{kind}"):
                setattr(backward, f"d{name}", pointers([x for n, x in gradients.items() if n[:-1] == name]))
        space = workspace(library.nm_cuda_backward_workspace(ctypes.byref(problem)))
        assert library.nm_cuda_backward(ctypes.byref(problem), ctypes.byref(backward), space, None) == 0
        for name in {"gain", "bias"} & gradients.keys():
            gradients[name] = gradients[name].sum(0)
        return {n: x.clone() for n, x in outputs.items()}, {n: x.clone() for n, x in gradients.items()}

    def _problem(self, example: "Example", keep_every: int) -> Problem:
        given = example.tensors
        B, T, H, D = given["q"].shape
        problem = Problem(B=B, T=T, H=H, D=D, layers=2, keep_every=keep_every, chunk_size=self.options["chunk_size"])
        problem.widths[:3] = [D, given["weights0"].shape[2], D]
        problem.dtype, problem.residual = DTYPES[given["q"].dtype], int(self.options["residual"])
        problem.activation = ACTIVATIONS.index(self.options["activation"])
        for name in ("q", "k", "v", "theta", "eta", "alpha", "gain", "bias", "write_mask", "reset"):
            setattr(problem, name, pointer(given.get(name)))
        for name in ("weights", "momentum", "first_weights", "first_momentum"):
            setattr(problem, name, pointers(example.states(name)))
        return problem


def make(
    tokens: int,
    chunk_size: int = 16,
    *,
    shape: tuple[int, int] = (2, 2),
    width: int = 64,
    expansion: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    momentum: bool = True,
    norm: bool = True,
    residual: bool = True,
    mask: bool = False,
    reset: bool = False,
    activation: str = "silu",
    seed: int = 0,
) -> Example:
    """A random example whose memory is alive and stable; some gates are exactly 0 and 1. shape: samples, heads."""
    random = torch.Generator().manual_seed(seed)
    (B, H), D, hidden = shape, width, expansion * width

    def draw(*size: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*size, generator=random) * scale

    def gate(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(B, tokens, H, generator=random)

    def states(name: str, scale: float) -> dict[str, Tensor]:
        first, second = draw(B, H, hidden, D, scale=scale / D**0.5), draw(B, H, D, hidden, scale=scale / hidden**0.5)
        return {f"{name}0": first, f"{name}1": second}

    unit = torch.nn.functional.normalize
    x = {"q": unit(draw(B, tokens, H, D), dim=-1), "k": unit(draw(B, tokens, H, D), dim=-1)}
    x["v"] = draw(B, tokens, H, D, scale=0.5)
    x = {name: t.to(dtype) for name, t in x.items()}
    # The norm's derivative makes inner gradients larger; a memory all but erased by alpha = 1 makes it enormous.
    x["theta"], x["alpha"] = gate(0.0, 0.005 if norm else 0.05), gate(0.0, 0.1)
    x["theta"][:, 3::7] = 0
    x["alpha"][:, 2::9] = 0
    x["alpha"][:, 5::37] = 0.5 if norm else 1
    if momentum:
        x["eta"] = gate(0.5, 0.9)
        x["eta"][:, 6::13] = 0
        x["eta"][:, 5::11] = 1
        x["eta"][..., -1:] = gate(0.9, 1.0)[..., -1:]  # the last head's momentum outlives a chunk
    x |= states("weights", 1.0) | (states("momentum", 0.05) if momentum else {})
    masks = {}
    if reset:
        x |= states("first_weights", 1.0) | (states("first_momentum", 0.05) if momentum else {})
        masks["reset"] = torch.zeros(B, tokens, dtype=torch.bool)
        masks["reset"][0, 2 * chunk_size :: 3 * chunk_size] = True  # this sample keeps its first state for a while
        masks["reset"][1:, :: 3 * chunk_size] = True
    if norm:
        x |= {"gain": 1 + draw(H, D, scale=0.1), "bias": draw(H, D, scale=0.1)}
    if mask:
        masks["write_mask"] = torch.rand(B, tokens, generator=random) > 0.3
    # In fp16 the op in torch, with which the kernels are compared, overflows at larger gradients.
    scale = 1 / 1024 if dtype == torch.float16 else 1.0
    dend = states("weights", 0.1 * scale) | (states("momentum", 0.1 * scale) if momentum else {})
    options = {"chunk_size": chunk_size, "activation": activation, "residual": residual}
    return Example(x, draw(B, tokens, H, D, scale=scale).to(dtype), dend, options, masks)


def relative_error(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())


def compare(example: Example, keep_every: int = 1, schedule: int = 0, gate: float = 3.0) -> dict[str, str]:
    """What is further from float64 than `gate` times the op in torch with the same operands: nothing, if good."""
    exact, rounded = example.to(torch.float64).autograd(), example.autograd()
    worse = {}
    for ours, right, reach in zip(example.emulated(keep_every, schedule), exact, rounded, strict=True):
        assert ours.keys() == right.keys()
        for name, x in right.items():
            error, reached = relative_error(ours[name], x), relative_error(reach[name], x)
            assert 0 < reached < 0.1, f"{name} is no test, torch itself is off by {reached}"
            if not error <= gate * reached:
                worse[name] = f"{error:.2e}, in torch {reached:.2e}"
    return worse


def main(fault: str, number: str = "") -> int:
    """0: the fault went unnoticed, 1: the numbers are wrong, 3: the emulator stopped, 4: the fault never occurred."""
    if fault == "barrier":
        emulator().emulated_drop_barrier(int(number))
    else:
        emulator().emulated_wrong_lane()
    worse = compare(make(24, shape=(1, 1)), keep_every=2)
    print(worse)
    return 1 if worse else 0 if emulator().emulated_faults() else 4


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

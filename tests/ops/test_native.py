"""The native kernels: precision, strides, threads, instruction sets, and numbers that are none.

That they are the paper's loop in float64 is checked where it is for every backend: test_neural_memory.py,
test_decode_memory.py. What torch does with the op: test_native_op.py; when it is taken: test_native_choice.py.
"""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralmem.ops.neural_memory.native import CPU_ERROR
from tests.ops.memory_cases import (
    Call,
    assert_all_close,
    make,
    needs_native,
    outputs_and_gradients,
    relative_error,
)
from tests.ops.memory_streams import Shape, check_against_rounded_chunked, exact, results, stream
from tests.ops.native_process import start

pytestmark = needs_native
ODD = Shape(tokens=77, batch=2, heads=3, width=20, hidden=(36,), chunk_size=16, mask=True, reset=True)
UGLY = [ODD, Shape(tokens=130, hidden=(256,)), Shape(tokens=70, width=33, hidden=(65, 7), chunk_size=100, norm=False)]


@pytest.mark.parametrize("shape", UGLY, ids=str)
def test_float32_is_float64_to_five_digits(shape: Shape) -> None:
    arguments = stream(shape, torch.float32)
    (y, *ours), (z, *right) = results(arguments, "native", checkpoint_every=2), exact(arguments)
    assert relative_error([y], [z]) < 1e-5
    for part, wanted in zip(ours, right, strict=True):
        assert relative_error(part, wanted) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        Shape(),
        Shape(norm=False),
        Shape(momentum=False, activation="gelu_tanh"),
        Shape(tokens=700, hidden=(), mask=True),
        Shape(tokens=600, width=20, hidden=(36,), chunk_size=33, reset=True),
    ],
    ids=str,
)
def test_rounded_operands_cost_what_they_cost_chunked(shape: Shape, dtype: torch.dtype) -> None:
    check_against_rounded_chunked(stream(shape, dtype), checkpoint_every=3)


def instruction_sets() -> list[str]:
    return [] if CPU_ERROR else json.loads(torch.ops.neuralmem.native_info())["runs"].split(",")


@pytest.mark.parametrize("name", instruction_sets())
def test_every_instruction_set_that_runs_here(name: str) -> None:
    process = start("check", NEURALMEM_CPU_ISA=name)
    said, wrong = process.communicate(timeout=300)
    assert process.returncode == 0, wrong
    assert said.strip() == name


def test_an_instruction_set_that_does_not_exist_is_refused_by_name() -> None:
    process = start("check", NEURALMEM_CPU_ISA="mmx")
    _, wrong = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "backend is 'native', which cannot run here: NEURALMEM_CPU_ISA is 'mmx'; it must be one of " in wrong


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_any_number_of_threads_gives_the_same_bits(dtype: torch.dtype) -> None:
    arguments, found = stream(ODD, dtype), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y, state, gradients = results(arguments, "native", checkpoint_every=2)
            found.append([y, *state, *gradients])
    finally:
        torch.set_num_threads(1)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def elsewhere(x: Tensor) -> Tensor:
    """The same numbers one element into another storage, where no vector is aligned."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


def strided(x: Tensor) -> Tensor:
    """The same numbers with the axes stored in reverse order and a gap between elements."""
    axes = tuple(reversed(range(x.ndim)))
    return torch.stack([x.permute(axes)] * 2, dim=-1).contiguous()[..., 0].permute(axes)


@pytest.mark.parametrize("place", [elsewhere, strided])
def test_where_the_numbers_lie_does_not_matter(place: Any) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        arguments = stream(ODD, dtype)
        y, state, gradients = results(arguments, "native")
        change = lambda x: place(x.detach()) if isinstance(x, Tensor) else x
        moved = {
            k: tuple(map(change, x)) if isinstance(x, tuple) and k != "initial" else change(x)
            for k, x in arguments.items()
        }
        other, same, slopes = results(moved, "native")
        assert torch.equal(y, other)
        assert all(torch.equal(a, b) for a, b in zip([*state, *gradients], [*same, *slopes], strict=True))


def test_a_state_that_is_a_view_of_one_set_of_weights() -> None:
    call = make()
    first = tuple(w[:1].detach().requires_grad_() for w in call.tensors["weights"])
    expanded = Call({**call.tensors, "weights": tuple(w.expand(2, -1, -1, -1) for w in first)}, call.options)
    found = []
    for backend in ("native", "chunked"):
        y, *_ = expanded.run(backend=backend)
        found.append([y, *torch.autograd.grad(y.square().sum(), first)])
    assert_all_close(*found)


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"heads": 0}, {"tokens": 0}], ids=str)
def test_nothing_to_read(sizes: dict[str, int]) -> None:
    arguments = stream(Shape(**{"tokens": 5, "width": 4, "hidden": (6,), **sizes}), torch.float32)
    (y, *ours), (z, *theirs) = (results(arguments, backend) for backend in ("native", "chunked"))
    assert y.shape == z.shape
    for one, other in zip(ours, theirs, strict=True):
        assert_all_close(one, other)


@pytest.mark.parametrize("gate", ["theta", "eta", "alpha"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_gate_that_is_no_number_stays_in_its_sample_and_head(gate: str, value: float) -> None:
    call = make(13)
    clean, _ = outputs_and_gradients(call.run(backend="native"), call)
    broken = call.tensors[gate].detach().clone()
    broken[0, 7, 1] = value
    call = Call({**call.tensors, gate: broken.requires_grad_()}, call.options)
    parts, gradients = outputs_and_gradients(call.run(backend="native"), call)
    others = [[y[1], y[0, :, 0], y[0, :5]] for y in (parts[0], clean[0])]  # token 7 is in the chunk that begins at 5
    assert_all_close(*others, 0.0)
    assert not parts[0][0, 7:, 1].isfinite().all()
    assert gradients[0][1].isfinite().all()


def test_a_key_that_is_no_number_stays_in_its_chunk_and_after() -> None:
    call = make(13, chunk_size=5)
    clean = call.run(backend="native")[0]
    broken = call.tensors["k"].detach().clone()
    broken[1, 7] = torch.nan
    y = Call({**call.tensors, "k": broken}, call.options).run(backend="native")[0]
    assert torch.equal(y[0], clean[0])
    assert torch.equal(y[1, :5], clean[1, :5])
    assert y[1, 7:].isnan().all()
